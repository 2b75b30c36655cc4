"""One run for an accelerator that is at hand for minutes: first what is right, then how fast it is.

    python benchmarks/accelerator.py [--peers PYTHON] [--seconds 360] [--json FILE]
    python benchmarks/accelerator.py --size tiny --dtype float32    # all of it, on a CPU

Random weights and random sound: it needs jax, flax and numpy, and for the peers torch and
transformers in the same or another environment (`--peers python` for the same). Each line is
printed and written to the file as it is found, so that a run that is cut short keeps what it
measured; what the seconds do not suffice for is named at the end. Ours and the peer's PyTorch run
in turns on the same device. The floor is each job's FLOPs at the rate of a large matrix product
measured beside it.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import lenses
import numpy as np
import shapes
import sweeps
from generation_sides import HEAD_SITES, zeroed

import jaxasr_interp as ji
from jaxasr_interp.extraction.programs import decode_reduced, encode_reduced
from jaxasr_interp.extraction.request import parse_request
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.kernels.attention import attend
from jaxasr_interp.kernels.lens import readout
from jaxasr_interp.patching import cost
from jaxasr_interp.speech.tokenizer import Tokenizer

TOKENS = 32
CLIPS = 8
NEW_TOKENS = 24
WORDS, TIMESTAMPS = 50257, 1501
EXACT = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 3e-2}

type Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages share.

    Attributes:
        sizes: of the models, the smallest first.
        dtype: of their weights.
        peers: python of the peers' environment, if any.
        rounds: of every measurement.
    """

    sizes: list[str]
    dtype: str
    peers: str | None
    rounds: int

    def shapes(self) -> Iterator[shapes.Shape]:
        """Each model with a pair of runs."""
        for size in self.sizes:
            yield shapes.random(size, TOKENS, self.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description="All of it on an accelerator, within minutes.")
    parser.add_argument("--peers", help="python of the peers' environment; without it, ours alone")
    parser.add_argument("--size", action="append", choices=shapes.SIZES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=STAGES, help="these stages alone")
    parser.add_argument("--seconds", type=float, default=360, help="when no more is begun")
    parser.add_argument("--json", type=Path, help="also write the results here")
    given = parser.parse_args()
    run = Run(given.size or ["small", "large-v3"], given.dtype, given.peers, given.rounds)
    started, rows, left_out = time.perf_counter(), [], []
    for name in given.only or STAGES:
        if time.perf_counter() - started > given.seconds:
            left_out.append(name)
            continue
        for row in STAGES[name](run):
            rows.append({"what": name, **row, "at_seconds": time.perf_counter() - started})
            print(line(rows[-1]), flush=True)
            if given.json is not None:
                content = {**harness.provenance(), "rounds": given.rounds, "rows": rows}
                given.json.write_text(json.dumps(content, indent=2) + "\n")
    if left_out:
        print(f"left out after {given.seconds:.0f} s: {', '.join(left_out)}")


def kernels(run: Run) -> Iterator[Row]:
    """Attention to shared keys against float64: of a sweep's rows, and of the encoder's frames."""
    for queries in (528, 1500):
        yield from attention(run, queries)


def attention(run: Run, queries: int) -> Iterator[Row]:
    """The error of each implementation that takes the dtype."""
    rng = np.random.default_rng(0)
    sizes = (queries, 20, 64), (20, 1500, 64), (20, 1500, 64)
    q, k, v = (rng.normal(size=size) for size in sizes)
    scores = np.einsum("qhd,hkd->hqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    right = np.einsum("hqk,hkd->qhd", weights / weights.sum(-1, keepdims=True), v)
    for implementation in ("xla", "cudnn"):
        arrays = [jnp.asarray(x, run.dtype) for x in (q, k, v)]
        try:
            with jax.default_matmul_precision("highest"):
                found = attend(*arrays, implementation=implementation)
        except ji.InputError as refusal:
            yield {"shape": implementation, "note": str(refusal)}
            continue
        error = float(np.abs(np.asarray(found, np.float64) - right).max() / np.abs(right).max())
        shape = f"attention of {queries} queries, {implementation}"
        yield {"shape": shape, "error": error, "bar": EXACT[run.dtype]}


def exactness(run: Run) -> Iterator[Row]:
    """The minimal method against a whole run for each patch, in float64, beside the effect."""
    with jax.enable_x64(True):
        yield from exact_sweeps(shapes.random(run.sizes[0], TOKENS, "float64"))


def exact_sweeps(shape: shapes.Shape) -> Iterator[Row]:
    """The difference between both methods at some cells of each kind of patch."""
    for stack, site in (("decoder", "resid_pre"), ("decoder", "z"), ("encoder", "ln_final")):
        plan = ji.plan_sweep(shape.model, tokens=shape.corrupted.tokens, stack=stack, site=site)
        some = np.linspace(0, plan.size - 1, 24).round().astype(int)
        runs = {"clean": shape.clean, "corrupted": shape.corrupted, "metric": shape.metric}
        ours, whole = (
            ji.activation_patching(
                shape.model,
                plan.select(some.tolist()),
                **runs,
                options=ji.SweepOptions(method=m),
            )
            for m in ("minimal", "vmap")
        )
        effect = float(np.abs(ours.clean - ours.corrupted).max())
        error = float(np.nanmax(np.abs(ours.patched - whole.patched))) / effect
        yield {"shape": f"{shape.name}, {stack}.{site}", "error": error, "bar": EXACT["float64"]}


def residual(run: Run) -> Iterator[Row]:
    """Every layer × position of `resid_pre`: one pair, 8 pairs, and against batched PyTorch."""
    for shape in run.shapes():
        for row in sweeps.utterances(shape, None, run.rounds):
            yield {**row, "shape": f"{shape.name}, {row['peer']}"}
        if run.peers is None:
            continue
        plan = ji.plan_sweep(shape.model, tokens=shape.corrupted.tokens, site=sweeps.RESIDUAL)
        ours = sweeps.Ours(shape, plan)
        values, common = ours.whole().patched[0], sweeps.measured(ours, run.rounds)
        cells = [[layer, pos] for layer in plan.layers for pos in plan.positions]
        wanted = {"method": "batched", "site": sweeps.RESIDUAL}
        peer = sweeps.start_peer(run.peers, shape, run.dtype)
        row = sweeps.against(peer, ours, values, wanted, [cells] * run.rounds, len(cells))
        peer.close()
        yield {**common, **row, "shape": f"{shape.name}, whole job against batched PyTorch"}


def components(run: Run) -> Iterator[Row]:
    """Every sublayer and head of the decoder."""
    for shape in run.shapes():
        for row in sweeps.components(shape, None, run.rounds):
            yield {**row, "shape": shape.name}


def encoder_windows(run: Run) -> Iterator[Row]:
    """Windows of 1 s of every encoder layer, and of the final states."""
    shape = next(run.shapes())
    for row in [*sweeps.encoder(shape, None, 1), *sweeps.states(shape, None, run.rounds)]:
        yield {**row, "shape": shape.name}


def lens(run: Run) -> Iterator[Row]:
    """The logit lens against whole logits, and PyTorch."""
    shape = next(run.shapes())
    for row in lenses.measure(shape, run.peers, run.dtype, run.rounds):
        error = row["log_prob_difference"]
        yield {**row, "shape": f"{shape.name}, {row['peer']}", "note": f"difference {error:.0e}"}


def lens_kernel(run: Run) -> Iterator[Row]:
    """The fused readout of all layers against XLA's, and both against float64."""
    for shape in run.shapes():
        config = shape.model.config
        rng = np.random.default_rng(0)
        size = config.decoder_layers, TOKENS, config.d_model
        states = jnp.asarray(rng.normal(size=size) / np.sqrt(config.d_model) * 4, run.dtype)
        embed = jnp.asarray(rng.normal(size=(config.d_vocab, config.d_model)), run.dtype)
        targets = jnp.asarray(rng.integers(0, config.d_vocab, TOKENS), jnp.int32)
        right = log_probs(states[0], embed, targets)
        for row in readouts(run, (states, states[-1], embed, targets), right):
            yield {**row, "shape": f"{shape.name}, {row['shape']}"}


def readouts(run: Run, arrays: tuple[jax.Array, ...], right: np.ndarray) -> Iterator[Row]:
    """Each implementation's error, and its time in turns with XLA's."""
    programs = {
        name: jax.jit(functools.partial(readout, implementation=name))
        for name in ("xla", "mosaic_gpu" if jax.default_backend() == "gpu" else "mosaic_tpu")
    }
    for name, program in programs.items():
        found = np.asarray(program(*arrays).target_log_prob[0], np.float64)
        error = float(np.abs(found - right).max() / np.abs(right).max())
        yield {"shape": name, "error": error, "bar": EXACT[run.dtype]}
    sides = [lambda p=p: harness.seconds(lambda: [p(*arrays) for _ in range(20)]) / 20
             for p in programs.values()]  # fmt: skip
    xla, fused = harness.in_turn(sides, run.rounds)
    states, positions = arrays[0], TOKENS
    yield {
        "shape": "fused against XLA",
        "positions_per_second": positions / statistics.median(fused),
        "ours_seconds": statistics.median(fused),
        "theirs_seconds": statistics.median(xla),
        "ratio": harness.Pair(fused, xla).ratio,
        "share_of_floor": 2
        * states.size
        * len(arrays[2])
        / harness.matmul_rate(run.dtype, 3)
        / statistics.median(fused),
    }


def log_probs(states: jax.Array, embed: jax.Array, targets: jax.Array) -> np.ndarray:
    """The targets' log-probabilities, in float64."""
    logits = np.asarray(states, np.float64) @ np.asarray(embed, np.float64).T
    own = logits[np.arange(len(logits)), np.asarray(targets)]
    highest = logits.max(-1)
    return own - highest - np.log(np.exp(logits - highest[:, None]).sum(-1))


def extraction(run: Run) -> Iterator[Row]:
    """Means of every layer of both stacks, of clips whose sound is at hand."""
    for shape in run.shapes():
        yield extracted(run, shape)


def extracted(run: Run, shape: shapes.Shape) -> Row:
    """The clips a second of one model."""
    model, config = shape.model, shape.model.config
    mels = jnp.stack([shape.clean.mel] * CLIPS)
    tokens = jnp.stack([jnp.asarray(shape.clean.tokens)] * CLIPS)
    frames, text = (
        (jnp.asarray([[0, stop]] * CLIPS, jnp.int32),) for stop in (config.max_frames, TOKENS)
    )
    of_encoder, of_decoder = (
        (parse_request(f"{stack}.resid_post:mean"),) for stack in ("encoder", "decoder")
    )

    def once() -> Any:
        states, heard = encode_reduced(model.encoder, mels, frames, requests=of_encoder)
        return heard, decode_reduced(model.decoder, states, tokens, text, requests=of_decoder)

    first = harness.seconds(once)
    sides = [lambda: harness.matmul_rate(run.dtype, 3), lambda: harness.seconds(once)]
    rate, taken = map(statistics.median, harness.in_turn(sides, run.rounds))
    each = cost.encoder_flops(config) + cost.cross_flops(config)
    each += cost.decoder_flops(config, TOKENS)
    return {
        "shape": f"{shape.name}, {CLIPS} clips",
        "per_second": CLIPS / taken,
        "unit": "clips",
        "share_of_floor": CLIPS * each / rate / taken,
        "first_call_seconds": first,
    }


def generation(run: Run) -> Iterator[Row]:
    """A transcript under each head zeroed, all in one batch."""
    for shape in run.shapes():
        yield generated(run, shape)


def generated(run: Run, shape: shapes.Shape) -> Row:
    """The transcripts a second of one model."""
    model = with_tokenizer(shape.model)
    states = ji.encode(model, shape.clean.mel, sites=()).states[None]
    heads = np.ndindex(model.config.decoder_layers, model.config.decoder_heads)
    cells = [(layer, head) for layer, head in heads]
    edits = [zeroed(site, *cell) for site in HEAD_SITES for cell in cells]
    choice = ji.Choice(max_new_tokens=NEW_TOKENS)

    def once() -> Any:
        return generate_rows(model, states, [edits], choice=choice)

    first = harness.seconds(once)
    return {
        "shape": f"{shape.name}, {NEW_TOKENS} tokens",
        "per_second": len(edits)
        / statistics.median(harness.seconds(once) for _ in range(run.rounds)),
        "unit": "transcripts",
        "first_call_seconds": first,
    }


def with_tokenizer(model: ji.Whisper) -> ji.Whisper:
    """Give a random model the special tokens of Whisper, and words without meaning."""
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Backend

    from jaxasr_interp.speech.languages import LANGUAGES

    backend = Backend(models.BPE({f"w{i}": i for i in range(WORDS)}, []))
    codes = [*LANGUAGES][: model.config.d_vocab - WORDS - TIMESTAMPS - 8]
    names = ["endoftext", "startoftranscript", *codes, "translate", "transcribe"]
    names += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    backend.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        backend.save(str(path))
        model.tokenizer = Tokenizer(str(path))
        model.tokenizer.prompt()  # It is read when it is first used.
    return model


def line(row: Row) -> str:
    """One row as a line of the table in README.md."""
    cells = [row["what"], row["shape"]]
    if "error" in row:
        held = "holds" if row["error"] <= row["bar"] else "FAILS"
        cells.append(f"{row['error']:.1e} of at most {row['bar']:.0e}: {held}")
        return f"| {' | '.join(cells)} |"
    for name, unit in (
        ("patches_per_second", "patches"),
        ("positions_per_second", "positions"),
        ("per_second", row.get("unit")),
    ):
        if name in row:
            cells.append(f"{row[name]:.0f} {unit}/s")
    cells += [f"{row['share_of_floor']:.0%} of floor"] if "share_of_floor" in row else []
    cells += [f"{row['ratio']:.2f}× the peer"] if "ratio" in row else []
    cells += (
        [f"first call {row['first_call_seconds']:.1f} s"] if "first_call_seconds" in row else []
    )
    cells += [row["note"]] if "note" in row else []
    return f"| {' | '.join(cells)} |"


STAGES: dict[str, Callable[[Run], Iterator[Row]]] = {
    "kernels": kernels,
    "exactness": exactness,
    "residual": residual,
    "components": components,
    "encoder windows": encoder_windows,
    "lens kernel": lens_kernel,
    "lens": lens,
    "extraction": extraction,
    "generation": generation,
}

if __name__ == "__main__":
    main()
