"""Estimate a sweep's speed on TPUs that are not here, from their compiler's final schedules.

    python benchmarks/tpu_estimate.py [--chip v5e] [--model large-v3] [--json FILE]

Needs the extra `tpu` and no TPU. Nothing is measured: see `tpu_schedule`. Beside the static time
stands the roofline, in which the FLOPs that the sweep's plan counts run at the chip's peak.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tpu_schedule

SCHEDULES = tempfile.TemporaryDirectory(prefix="schedules-")
os.environ["LIBTPU_INIT_ARGS"] = tpu_schedule.DUMP.format(SCHEDULES.name)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import shapes  # noqa: E402

import jaxasr_interp as ji  # noqa: E402
from jaxasr_interp.checkpoint.convert import abstract_model  # noqa: E402
from jaxasr_interp.kernels.attention import mosaic_tpu  # noqa: E402  # pyright: ignore
from jaxasr_interp.patching import cost  # noqa: E402
from jaxasr_interp.patching.footprint import Program, sweep_programs  # noqa: E402
from jaxasr_interp.patching.planning import PlanOptions  # noqa: E402
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, not_cached  # noqa: E402
from jaxasr_interp.runtime.targets import TargetMachine  # noqa: E402

MACHINES = {"v5e": "v5e-1", "v6e": "v6e-1", "v5p": "v5p-2"}
SWEEPS: dict[str, dict[str, Any]] = {
    "residual": {"site": "resid_pre"},
    "all heads": {"site": "z", "heads": "each"},
}
TOKENS = 32

type Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="A sweep's speed on TPUs, estimated.")
    parser.add_argument("--chip", action="append", choices=MACHINES, help="default: all")
    parser.add_argument("--model", default="large-v3", choices=shapes.SIZES)
    parser.add_argument("--sweep", action="append", choices=SWEEPS, help="default: both")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    given = parser.parse_args()
    rows: list[Row] = []
    print("| chip | sweep | program | runs | static, ms | memory, GB | FLOPs at peak, ms |")
    print("|---|---|---|---|---|---|---|")
    for chip in given.chip or MACHINES:
        for sweep in given.sweep or SWEEPS:
            for row in estimate(chip, given.model, given.dtype, sweep):
                rows.append(row)
                print(line(row), flush=True)
                if given.json is not None:
                    content = {"jax": jax.__version__, "model": given.model, "dtype": given.dtype}
                    given.json.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


def estimate(chip: str, name: str, dtype: str, sweep: str) -> Iterator[Row]:
    """Estimate each program of a sweep of one pair of runs, and then the whole."""
    machine = TargetMachine.parse(MACHINES[chip])
    compiler, config = DeviceCompiler(machine), shapes.config(name)
    model = abstract_model(config, dtype)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    options = PlanOptions(memory=int(0.9 * machine.memory) - weights)
    backend, jax.default_backend = jax.default_backend, lambda: "tpu"
    try:
        plan = ji.plan_sweep(model, tokens=[0] * TOKENS, options=options, **SWEEPS[sweep])
        programs = sweep_programs(model, plan, [ji.metrics.log_prob(1)], 1, compiler.mesh)
    finally:
        jax.default_backend = backend
    chunks = plan.chunks()
    assert machine.flops is not None
    assert machine.bandwidth is not None
    encoding = cost.encoder_flops(config)
    flops = {
        "encode_each": 2 * encoding,
        "decode_each": 2 * (cost.cross_flops(config) + cost.decoder_flops(config, TOKENS)),
        "propagate_rows": plan.flops,
    }
    total = {"seconds": 0.0, "sweep": 0.0}
    for program in programs:
        runs = times(program, len(chunks))
        found = list(schedule(program, compiler, chunks[0].schedule.together))
        seconds = runs * sum(
            one.seconds(tpu_schedule.CLOCK[chip], machine.bandwidth) for one in found
        )
        least = flops.get(program.call.__name__, 0) / machine.flops
        total["seconds"] += seconds
        total["sweep"] += 0 if program.call.__name__.endswith("_each") else seconds
        yield {
            "chip": chip,
            "sweep": sweep,
            "program": program.name,
            "runs": runs,
            "seconds": seconds,
            "bytes": runs * sum(one.bytes for one in found),
            "roofline_seconds": least,
        }
    yield {
        "chip": chip,
        "sweep": sweep,
        "program": "whole job",
        "seconds": total["seconds"],
        "sweep_seconds": total["sweep"],
        "roofline_seconds": sum(flops.values()) / machine.flops,
        "patches": plan.runs,
    }


def times(program: Program, chunks: int) -> int:
    """How often a sweep runs a program."""
    name = program.call.__name__
    if name.endswith("_each"):
        return 2  # the clean run and the corrupted one
    return math.ceil(chunks / len(program.arguments[1])) if name == "unembed_and_read" else chunks


def schedule(program: Program, compiler: DeviceCompiler, together: int) -> list[tpu_schedule.Cost]:
    """Compile a program and read its schedule."""
    call: Any = program.call
    traced = call.trace(*compiler.placed(program.arguments), **program.static)
    grids = dict(_grids(traced.jaxpr.jaxpr))
    with not_cached():
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    layers = program.arguments[0].n_layers if hasattr(program.arguments[0], "n_layers") else 1
    groups = [math.ceil((layer + 1) / together) for layer in range(layers)]

    def trips(depth: int) -> float:
        """Groups of entry layers that have entered: of all layers on average, or at the last."""
        return statistics.mean(groups) if depth else groups[-1]

    folder = Path(SCHEDULES.name)
    found = list(tpu_schedule.costs(text, folder, trips, grids))
    for file in folder.iterdir():
        file.unlink()
    return found


def _grids(jaxpr: Any) -> Iterator[tuple[tuple[int, ...], int]]:
    """The steps of the attention kernel, by the shape of its result."""
    for equation in jaxpr.eqns:
        if equation.primitive is mosaic_tpu.attend_p:
            q, k = (variable.aval for variable in equation.invars[:2])
            steps = mosaic_tpu.grid(q.shape, k.shape[1], q.dtype.itemsize)
            yield q.shape, math.prod(steps)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _grids(inner)


def line(row: Row) -> str:
    """A row of the table."""
    cells = [row["chip"], row["sweep"], row["program"], str(row.get("runs", ""))]
    static = f"{1e3 * row['seconds']:.0f}"
    if "patches" in row:
        static += f" ({1e3 * row['sweep_seconds']:.0f} the sweep: "
        static += f"{row['patches'] / row['sweep_seconds']:.0f} patches/s)"
    moved = f"{row['bytes'] / 1e9:.2f}" if "bytes" in row else ""
    return f"| {' | '.join([*cells, static, moved, f'{1e3 * row["roofline_seconds"]:.0f}'])} |"


if __name__ == "__main__":
    main()
