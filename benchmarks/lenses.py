"""The logit lens over all layers against eager PyTorch and XLA with whole logits.

    benchmarks/peers/environment.sh [FOLDER]
    python benchmarks/lenses.py --peers FOLDER/bin/python [--json FILE]

All sides read the same residual streams of one run through the final LayerNorm and the unembedding:
five most probable tokens, log-probability and rank of a target, entropy, KL to the last layer.
PyTorch does so layer by layer; `whole logits` is an XLA program that holds `[layer, pos, d_vocab]`.
They run in turns (A B C A B C …), warm; ratios are medians of the rounds' ratios; compile time is
apart. Memory is what is held beside the model and the streams: by XLA's own account of its program,
of PyTorch the growth of the resident set (of a GPU, of what is allocated). In the same line: how
many of the top tokens differ from ours, and the largest difference of a log-probability and of KL.
`share of floor` is the FLOPs of every layer's logits at the rate of a 2048³ matrix product measured
in turns with it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import shapes
from harness import Pair, Peer, in_turn

import jaxasr_interp as ji
from jaxasr_interp.lens.logit import read_states
from jaxasr_interp.patching.cost import unembed_flops

TOP_K = 5

type Row = dict[str, Any]


class Side:
    """One way to read the streams: what its last run found."""

    def __init__(self, run: Callable[[], tuple[float, Row]]):
        self.run = run
        self.read: Row = {}

    def __call__(self) -> float:
        """Run once; return its seconds."""
        taken, self.read = self.run()
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="The logit lens against PyTorch and whole logits.")
    parser.add_argument("--peers", help="python of the peers' environment; without it, XLA alone")
    parser.add_argument("--model", default="base", help="bundled name, or a size of shapes.py")
    parser.add_argument("--random", action="store_true", help="random weights of that size")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, action="append", help="32 and 128 by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    rows: list[Row] = []
    for n_tokens in options.tokens or (32, 128):
        if options.random:
            shape = shapes.random(options.model, n_tokens, options.dtype)
        else:
            shape = shapes.real(options.model, n_tokens)
        for row in measure(shape, options.peers, options.dtype, options.rounds):
            rows.append({"shape": shape.name, "positions": n_tokens, **row})
            print(line(rows[-1]), flush=True)
    if options.json is not None:
        content = {**harness.provenance(), "rounds": options.rounds, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def measure(shape: shapes.Shape, python: str | None, dtype: str, rounds: int) -> list[Row]:
    """Our lens beside each of the others."""
    model, clean = shape.model, shape.clean
    states = ji.encode(model, clean.mel, sites=()).states
    run = ji.decode(model, clean.tokens, states, sites="resid_post")
    targets = np.asarray(run.logits.argmax(-1), np.int32)
    resid = run.acts.resid_post
    followed = jnp.asarray(targets)
    whole = (model.decoder, resid, followed)
    sides = {"whole logits": Side(lambda: timed(lambda: whole_logits(*whole)))}
    ours = Side(lambda: timed(lambda: found(ji.logit_lens(model, run, targets=targets))))
    peer = None
    if python is not None:
        peer = start_peer(python, shape, dtype, np.asarray(resid, np.float32), targets)
        sides["PyTorch"] = Side(lambda: answered(peer("lens", top_k=TOP_K)))
    first, *_ = (side() for side in (ours, *sides.values()))
    rates, own, *others = in_turn(
        [lambda: harness.matmul_rate(dtype, 3), ours, *sides.values()], rounds
    )
    if peer is not None:
        peer.close()
    flops = len(resid) * unembed_flops(model.config, len(targets))
    shares = [flops / rate / taken for rate, taken in zip(rates, own, strict=True)]
    common = {
        "layers": len(resid),
        "ours_seconds": statistics.median(own),
        "positions_per_second": len(targets) / statistics.median(own),
        "ours_extra_bytes": held(
            read_states, model.decoder, resid, resid[-1], followed, TOP_K, None
        ),
        "gflop": flops / 1e9,
        "matmul_gflops": statistics.median(rates) / 1e9,
        "share_of_floor": statistics.median(shares),
        "first_call_seconds": first,
    }
    return [
        {
            **common,
            "peer": name,
            "ratio": Pair(own, theirs).ratio,
            "theirs_seconds": statistics.median(theirs),
            "theirs_extra_bytes": side.read.get("extra_bytes", held(whole_logits, *whole)),
            **differences(ours.read, side.read),
        }
        for (name, side), theirs in zip(sides.items(), others, strict=True)
    ]


def found(lens: ji.LogitLens) -> Row:
    """The arrays of a lens by name."""
    return {name: value for name, value in vars(lens).items() if name not in ("site", "tokenizer")}


def held(program: Any, *arguments: Any) -> int:
    """Bytes that a jitted function holds beside its arguments and results."""
    return program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def timed(run: Callable[[], Row]) -> tuple[float, Row]:
    """One call's seconds and what it returned."""
    started = time.perf_counter()
    found = jax.block_until_ready(run())
    return time.perf_counter() - started, found


def answered(answer: Row) -> tuple[float, Row]:
    """A peer's seconds and what it found."""
    return answer["seconds"], answer


@jax.jit
def whole_logits(decoder: Any, resid: jax.Array, targets: jax.Array) -> Row:
    """The lens with the logits of all layers at once."""
    normed = jax.vmap(decoder.final_norm)(resid)
    logits = jnp.einsum(
        "lpd,vd->lpv", normed, decoder.embed[...], preferred_element_type=jnp.float32
    )
    log_p = jax.nn.log_softmax(logits)
    top_log_probs, top_tokens = jax.lax.top_k(log_p, TOP_K)
    followed = jnp.broadcast_to(targets, log_p.shape[:2])[..., None]
    own = jnp.take_along_axis(log_p, followed, axis=-1)
    return {
        "top_tokens": top_tokens,
        "top_log_probs": top_log_probs,
        "target_log_prob": own[..., 0],
        "target_rank": (log_p > own).sum(-1),
        "entropy": -(jnp.exp(log_p) * log_p).sum(-1),
        "kl": (jnp.exp(log_p[-1]) * (log_p[-1] - log_p)).sum(-1),
    }


def start_peer(
    python: str, shape: shapes.Shape, dtype: str, hidden: np.ndarray, targets: np.ndarray
) -> Peer:
    """A worker that has loaded the same weights and streams."""
    from peers.export import export_model

    peer = Peer(python)
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        export_model(shape.model, Path(folder))
        peer("load", folder=folder, device=device, dtype=dtype)
        np.savez(Path(folder) / "states.npz", hidden=hidden, targets=targets)
        peer("states", file=str(Path(folder) / "states.npz"))
    return peer


def differences(ours: Row, theirs: Row) -> Row:
    """How far a side's numbers are from ours."""

    def largest(name: str) -> float:
        return float(np.abs(np.asarray(ours[name]) - np.asarray(theirs[name])).max())

    top = np.asarray(ours["top_tokens"])[..., 0] != np.asarray(theirs["top_tokens"])[..., 0]
    return {
        "top_tokens_that_differ": int(top.sum()),
        "log_prob_difference": max(largest("top_log_probs"), largest("target_log_prob")),
        "kl_difference": largest("kl"),
    }


def line(row: Row) -> str:
    """One row as a line of the table in README.md."""
    speeds = (row["positions_per_second"], row["positions"] / row["theirs_seconds"])
    memory = (row[f"{side}_extra_bytes"] / 1e6 for side in ("ours", "theirs"))
    return (
        f"| {row['shape']} | {row['peer']} | {row['ratio']:.2f}× | "
        f"{row['ours_seconds']:.3f} s | {row['theirs_seconds']:.3f} s | "
        f"{' | '.join(f'{speed:.0f}/s' for speed in speeds)} | "
        f"{' | '.join(f'{size:.0f} MB' for size in memory)} | "
        f"{row['share_of_floor']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s | "
        f"{row['first_call_seconds']:.1f} s | "
        f"{row['top_tokens_that_differ']} of {row['layers'] * row['positions']}, "
        f"{row['log_prob_difference']:.0e}, {row['kl_difference']:.0e} |"
    )


if __name__ == "__main__":
    main()
