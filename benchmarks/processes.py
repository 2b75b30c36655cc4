"""A sweep from the start of a process: how long, and how much memory.

    python benchmarks/processes.py [--model base] [--json FILE]

Every figure is of a process of its own that imports the library, loads the model, plans and runs a
sweep: once with an empty compilation cache, once more with the programs of the first, and then
under budgets of 1 GB and 8 GB. Peak memory is what the process had resident at most, beyond what
it had once the model was loaded.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SITES = {"decoder": ["resid_pre", "z", "cross_z", "mlp_out"], "encoder": ["resid_pre"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="A sweep from the start of a process.")
    parser.add_argument("--model", default="base")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--child", choices=("start", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, default=1 << 30, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(child(options)))
        return
    results = {"cold_start": cold_start(options), "memory": memory(options)}
    print(json.dumps(results, indent=2))
    if options.json is not None:
        import harness

        content = harness.provenance() | {"model": options.model} | results
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def cold_start(options: argparse.Namespace) -> dict[str, float]:
    """Seconds from starting the process until it has printed its result."""
    with tempfile.TemporaryDirectory() as cache:
        first, _ = spawn(options, "start", cache)
        warm = [spawn(options, "start", cache)[0] for _ in range(3)]
    return {"first_process_seconds": first, "second_process_seconds": statistics.median(warm)}


def memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory under two budgets, and the largest difference between their numbers."""
    import numpy as np

    with tempfile.TemporaryDirectory() as cache:
        _, small = spawn(options, "memory", cache, 10**9)
        _, large = spawn(options, "memory", cache, 8 * 10**9)
    differences = [
        np.abs(np.array(a) - np.array(b)).max() / np.ptp(b)
        for a, b in zip(small["values"], large["values"], strict=True)
    ]
    return {
        "budget_bytes": 10**9,
        "model_bytes": small["model_bytes"],
        "peak_beyond_model_bytes": small["peak_bytes"],
        "peak_with_8_GB_bytes": large["peak_bytes"],
        "largest_difference": float(max(differences)),
    }


def spawn(
    options: argparse.Namespace, what: str, cache: str, budget: int = 1 << 30
) -> tuple[float, dict]:
    """Run a child; return its wall time and what it printed."""
    command = [sys.executable, __file__, "--child", what, "--model", options.model]
    command += ["--tokens", str(options.tokens), "--memory", str(budget)]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def child(options: argparse.Namespace) -> dict:
    """Load the model and run one residual sweep, or several kinds of sweep."""
    import shapes

    import jaxasr_interp as ji

    shape = shapes.real(options.model, options.tokens)
    loaded = resident()
    stacks = ("decoder",) if options.child == "start" else ("decoder", "encoder")
    values = []
    for stack in stacks:
        plan = ji.plan_sweep(
            shape.model,
            tokens=shape.corrupted.tokens,
            stack=stack,
            site=SITES[stack][: 1 if options.child == "start" else None],
            heads="each" if options.child == "memory" and stack == "decoder" else None,
            layers=None if stack == "decoder" else [0, -1],
            options=ji.PlanOptions(memory=options.memory),
        )
        result = ji.activation_patching(
            shape.model, plan, clean=shape.clean, corrupted=shape.corrupted, metric=shape.metric
        )
        values.append(result.patched.reshape(-1).tolist())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"values": values, "model_bytes": loaded, "peak_bytes": peak - loaded}


def resident() -> int:
    """Bytes this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
