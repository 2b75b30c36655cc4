"""Sweeps against PyTorch: decoder residuals, all components, encoder windows, encoder states.

    benchmarks/peers/environment.sh [FOLDER]
    python benchmarks/sweeps.py --peers FOLDER/bin/python [--case decoder] [--json FILE]

Each line alternates ours and one peer in the same run (A B A B …), both warm, both with every
encode that a user pays for, and gives the median of the ratios; compile time is apart. A peer that
takes minutes is timed on some of the patches, other ones in every round, and its time scaled to
all. In the same line: the largest difference from the peer's numbers on the patches that both ran,
as a share of the effect. `share of floor` is the sweep itself (without the runs it starts from):
its FLOPs, as `plan_sweep` counts them, at the rate of a 2048³ matrix product measured in the run.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import shapes
from harness import Peer, alternate, seconds

import jaxasr_interp as ji
from jaxasr_interp.patching.inputs import SweepInputs
from jaxasr_interp.patching.prepared import Prepared, prepare
from jaxasr_interp.patching.sweep import run_prepared

RESIDUAL = "resid_pre"
SUBLAYERS = ["resid_pre", "resid_mid", "resid_mid_cross", "attn_out", "cross_attn_out", "mlp_out"]
WINDOWS = 30

type Row = dict[str, Any]


class Ours:
    """One sweep of ours, warm."""

    def __init__(self, shape: shapes.Shape, plan: ji.SweepPlan):
        self.shape, self.plan = shape, plan
        self.first = seconds(self.whole)

    def whole(self, method: str = "minimal") -> ji.SweepResult:
        """The whole job: both encodes, both decoder runs, every patch."""
        shape = self.shape
        return ji.activation_patching(
            shape.model,
            self.plan,
            clean=shape.clean,
            corrupted=shape.corrupted,
            metric=shape.metric,
            options=ji.SweepOptions(method=method),
        )

    def prepared(self, pairs: int = 1) -> Prepared:
        """Ready to run the patches alone, of several pairs together."""
        shape = self.shape
        inputs = SweepInputs(
            [shape.clean] * pairs, [shape.corrupted] * pairs, [shape.metric] * pairs
        )
        ready = prepare(shape.model, self.plan, inputs)
        jax.block_until_ready(ready.base)
        return ready


def main() -> None:
    parser = argparse.ArgumentParser(description="Sweeps against PyTorch.")
    parser.add_argument("--peers", help="python of the peers' environment; without it, ours alone")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--model", default="base", help="bundled name, or a size of shapes.py")
    parser.add_argument("--random", action="store_true", help="random weights of that size")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.random:
        shape = shapes.random(options.model, options.tokens, options.dtype)
    else:
        shape = shapes.real(options.model, options.tokens)
    peer = None if options.peers is None else start_peer(options.peers, shape, options.dtype)
    rows: list[Row] = []
    for name in options.case or CASES:
        for row in CASES[name](shape, peer, options.rounds):
            rows.append({"case": name, "shape": shape.name, **row})
            print(line(rows[-1]), flush=True)
            if options.json is not None:  # After every row, so that a run cut short keeps its own.
                content = {**harness.provenance(), "rounds": options.rounds, "rows": rows}
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(content, indent=2) + "\n")
    if peer is not None:
        peer.close()


def start_peer(python: str, shape: shapes.Shape, dtype: str) -> Peer:
    """A worker that has loaded the same weights and inputs."""
    from peers.export import export_model

    peer = Peer(python)
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        export_model(shape.model, Path(folder))
        peer("load", folder=folder, device=device, dtype=dtype)
        inputs = Path(folder) / "inputs.npz"
        np.savez(
            inputs,
            clean_mel=np.asarray(shape.clean.mel),
            corrupted_mel=np.asarray(shape.corrupted.mel),
            clean_tokens=np.asarray(shape.clean.tokens),
            corrupted_tokens=np.asarray(shape.corrupted.tokens),
            token=shape.token,
        )
        peer("inputs", file=str(inputs))
    return peer


def decoder(shape: shapes.Shape, peer: Peer | None, rounds: int) -> Iterator[Row]:
    """Every layer × position of the decoder's `resid_pre`."""
    plan = ji.plan_sweep(shape.model, tokens=shape.corrupted.tokens, site=RESIDUAL)
    ours = Ours(shape, plan)
    result, common = ours.whole(), measured(ours, rounds)
    yield {**common, "peer": "our own vmap", **against_vmap(ours, result, rounds)}
    cells = [[layer, pos] for layer in plan.layers for pos in plan.positions]
    some = shuffled(cells)
    for method, n in (
        ("hooks_model", 4),
        ("hooks_decoder", 8),
        ("batched", None),
        ("batched_onednn", None),
        ("nnsight", None),
    ):
        if peer is None or (method == "batched_onednn" and jax.devices()[0].platform != "cpu"):
            continue
        batches = (
            [cells] * rounds if n is None else [some[i * n : i * n + n] for i in range(rounds)]
        )
        wanted = {"method": method, "site": RESIDUAL}
        try:
            row = against(peer, ours, result.patched[0], wanted, batches, len(cells))
        except RuntimeError as error:
            print(f"{method} did not run: {error}", file=sys.stderr)
            continue
        yield {**common, "peer": method, **row}


def components(shape: shapes.Shape, peer: Peer | None, rounds: int) -> list[Row]:
    """Six residual and sublayer sites, and every head of self- and cross-attention."""
    tokens = shape.corrupted.tokens
    plan = ji.plan_sweep(
        shape.model, tokens=tokens, site=[*SUBLAYERS, "z", "cross_z"], heads="each"
    )
    ours = Ours(shape, plan)
    result, common = ours.whole(), measured(ours, 2)
    if peer is None:
        return [{**common, "peer": "none"}]
    grid = shuffled([(c, lay, pos) for c, lay, pos in np.ndindex(*result.patched.shape[1:])])
    differences, pairs = [], []
    for i in range(max(20, 4 * rounds)):
        component, layer, pos = grid[i]
        site, head = plan.components[component]
        answer = peer("run", method="hooks_model", site=site, head=head, cells=[[layer, pos]])
        scaled = answer["clean_seconds"] + answer["sweep_seconds"] * plan.runs
        mine = seconds(ours.whole) if i % 10 == 0 else pairs[-1][0]
        pairs.append((mine, scaled))
        differences.append(abs(answer["values"][0] - result.patched[0, component, layer, pos]))
    pair = harness.Pair(*(tuple(side) for side in zip(*pairs, strict=True)))
    effect = float(abs(result.clean[0] - result.corrupted[0]))
    row = {"ratio": pair.ratio, "theirs_seconds": statistics.median(pair.theirs)}
    row |= {"ours_seconds": statistics.median(pair.ours), "timed_patches": len(pairs)}
    row |= {"difference": float(max(differences)) / effect}
    return [{**common, "peer": "hooks_model", **row}]


def encoder(shape: shapes.Shape, peer: Peer | None, rounds: int) -> list[Row]:
    """Windows of 1 s of every encoder layer's `resid_pre`; two windows of each layer a round."""
    positions = [(50 * i, 50 * i + 50) for i in range(WINDOWS)]
    rows: list[Row] = []
    for start in (2, 17):
        chosen = [positions[start], positions[start + 7]]
        tokens = shape.corrupted.tokens
        plan = ji.plan_sweep(shape.model, tokens=tokens, stack="encoder", positions=chosen)
        ours = Ours(shape, plan)
        result, common = ours.whole(), measured(ours, 2)
        if peer is None:
            rows.append({**common, "peer": "none"})
            continue
        windows = [[layer, *window] for layer in plan.layers for window in chosen]
        wanted = {"method": "encoder_hooks_batched", "site": RESIDUAL}
        batches = [windows] * max(1, rounds // 2)
        row = against(peer, ours, result.patched[0], wanted, batches, len(windows), "windows")
        rows.append({**common, "peer": "encoder_hooks_batched", **row})
    return rows


def states(shape: shapes.Shape, peer: Peer | None, rounds: int) -> list[Row]:
    """Windows of 1 s of the final encoder states."""
    plan = ji.plan_sweep(
        shape.model, tokens=shape.corrupted.tokens, stack="encoder", site="ln_final"
    )
    ours = Ours(shape, plan)
    result, common = ours.whole(), measured(ours, rounds)
    if peer is None:
        return [{**common, "peer": "none"}]
    rows = []
    windows = [[0, start, stop] for start, stop in plan.windows]
    some = shuffled(windows)
    for method, n in (("encoder_hooks_batched", 4), ("encoder_output_windows", 12)):
        wanted = {"method": method, "site": "ln_final"}
        batches = [some[(i * n) % 24 : (i * n) % 24 + n] for i in range(rounds)]
        row = against(peer, ours, result.patched, wanted, batches, len(windows), "windows")
        rows.append({**common, "peer": method, **row})
    return rows


def utterances(shape: shapes.Shape, peer: Peer | None, rounds: int) -> list[Row]:
    """The decoder's `resid_pre` for several pairs of runs together."""
    plan = ji.plan_sweep(shape.model, tokens=shape.corrupted.tokens, site=RESIDUAL)
    ours = Ours(shape, plan)
    return [
        {**measured(ours, rounds, pairs), "peer": f"none; {pairs} pairs together"}
        for pairs in (1, 8)
    ]


def measured(ours: Ours, rounds: int, pairs: int = 1) -> Row:
    """The sweep itself beside its floor, in turns with the matrix product that the floor is at."""
    ready, flops = ours.prepared(pairs), pairs * ours.plan.flops
    run_prepared(ready)
    turns = [
        (harness.matmul_rate(ours.plan.dtype, 3), seconds(lambda: run_prepared(ready)))
        for _ in range(rounds)
    ]
    rate, itself = (statistics.median(side) for side in zip(*turns, strict=True))
    return {
        "patches": pairs * ours.plan.runs,
        "sweep_seconds": itself,
        "patches_per_second": pairs * ours.plan.runs / itself,
        "gflop": flops / 1e9,
        "matmul_gflops": rate / 1e9,
        "share_of_floor": statistics.median(flops / rate / itself for rate, itself in turns),
        "first_call_seconds": ours.first,
        "peak_bytes": harness.peak_bytes(),
    }


def against_vmap(ours: Ours, result: ji.SweepResult, rounds: int) -> Row:
    """Our own batched full recompute."""
    whole = ours.whole("vmap")
    pair = alternate(
        lambda: seconds(ours.whole), lambda: seconds(lambda: ours.whole("vmap")), min(rounds, 3)
    )
    difference = np.abs(whole.patched - result.patched).max()
    return summary(pair, result, float(difference))


def against(
    peer: Peer,
    ours: Ours,
    values: np.ndarray,
    wanted: Row,
    batches: Sequence[Sequence[Sequence[int]]],
    total: int,
    cells: str = "cells",
) -> Row:
    """Alternate our whole job with a peer's on some of the patches, scaled to all of them."""
    places = {where: i for i, where in enumerate(_grid(ours.plan))}
    flat, differences, alone = np.asarray(values).reshape(-1), [], []
    rounds = iter(batches)

    def theirs() -> float:
        some = next(rounds)
        answer = peer("run", **wanted, **{cells: [list(map(int, cell)) for cell in some]})
        mine = flat[[places[tuple(cell)] for cell in some]]
        differences.append(np.abs(mine - np.array(answer["values"])).max())
        fixed = answer.get("encode_seconds", 0) + answer.get("clean_seconds", 0)
        alone.append(answer["sweep_seconds"] * total / len(some))
        return fixed + alone[-1]

    pair = alternate(lambda: seconds(ours.whole), theirs, len(batches))
    timed = sum(len(some) for some in batches)
    row = summary(pair, ours.whole(), float(max(differences)))
    return {**row, "theirs_sweep_seconds": statistics.median(alone), "timed_patches": timed}


def _grid(plan: ji.SweepPlan) -> list[tuple[int, ...]]:
    windows = [
        (start,) if plan.stack == "decoder" else (start, stop) for start, stop in plan.windows
    ]
    return [(layer or 0, *window) for layer in plan.layers for window in windows]


def summary(pair: harness.Pair, result: ji.SweepResult, difference: float) -> Row:
    """Both sides' seconds, their ratio, and the difference as a share of the effect."""
    return {
        "ratio": pair.ratio,
        "ours_seconds": statistics.median(pair.ours),
        "theirs_seconds": statistics.median(pair.theirs),
        "difference": difference / float(abs(result.clean[0] - result.corrupted[0])),
    }


def shuffled(items: Sequence[Any]) -> list[Any]:
    """In an order of its own, the same every time."""
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))]


def line(row: Row) -> str:
    """One row as a line of the table in README.md."""
    compared = "– | – | – | – | –"
    if "ratio" in row:
        theirs = row.get("theirs_sweep_seconds")
        alone = "–" if theirs is None else f"{theirs / row['sweep_seconds']:.1f}×"
        compared = (
            f"{row['ratio']:.1f}× | {row['ours_seconds']:.2f} s | {row['theirs_seconds']:.2f} s | "
            f"{alone} | {row['difference']:.1e}"
        )
    return (
        f"| {row['case']} | {row['shape']} | {row['patches']} | {row['peer']} | {compared} | "
        f"{row['sweep_seconds']:.3f} s | {row['patches_per_second']:.0f}/s | "
        f"{row['share_of_floor']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s | "
        f"{row['first_call_seconds']:.1f} s | {row['peak_bytes'] / 1e9:.2f} GB |"
    )


CASES: dict[str, Callable[[shapes.Shape, Peer | None, int], Iterable[Row]]] = {
    "decoder": decoder,
    "components": components,
    "encoder": encoder,
    "states": states,
    "utterances": utterances,
}

if __name__ == "__main__":
    main()
