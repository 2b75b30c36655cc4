"""The sweeps of two checkouts in turn, A B A B: does a change cost a sweep anything?

    git worktree add FOLDER COMMIT
    python benchmarks/versions.py --before FOLDER [--rounds 9] [--case decoder]

Each side is a process of its own that runs its checkout's whole job (both encodes, both decoder
runs, every patch), warm. A line gives the median of the pairs' ratios, after over before, with its
95% bootstrap interval, and the largest difference of the metric as a share of the effect.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SUBLAYERS = ["resid_pre", "resid_mid", "resid_mid_cross", "attn_out", "cross_attn_out", "mlp_out"]
WINDOWS = [(100, 150), (450, 500)]
PLANS: dict[str, dict[str, Any]] = {
    "decoder": {"site": "resid_pre"},
    "components": {"site": [*SUBLAYERS, "z", "cross_z"], "heads": "each"},
    "encoder": {"stack": "encoder", "positions": WINDOWS},
    "states": {"stack": "encoder", "site": "ln_final"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sweeps of two checkouts, in turn.")
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--case", action="append", choices=PLANS)
    parser.add_argument("--model", default="base")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.model, options.tokens)
        return
    if options.before is None:
        parser.error("give the other checkout with --before")
    sides = [Side(folder, options.model, options.tokens) for folder in (options.before, ROOT)]
    for case in options.case or PLANS:
        first = [side.sweep(case) for side in sides]
        before, after = (np.load(one["values"]) for one in first)
        difference = float(np.nanmax(np.abs(after - before))) / first[0]["effect"]
        pairs = [[side.sweep(case)["seconds"] for side in sides] for _ in range(options.rounds)]
        ratios = np.array([b / a for a, b in pairs])
        low, high = interval(ratios)
        print(
            f"{case}: after/before {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), "
            f"{options.rounds} rounds, {statistics.median(a for a, _ in pairs):.2f} s before, "
            f"difference {difference:.1e} of the effect",
            flush=True,
        )


class Side:
    """A process that sweeps with one checkout's code."""

    def __init__(self, folder: Path, model: str, tokens: int):
        # Without -P both sides would take the modules beside this file.
        command = [sys.executable, "-P", __file__, "--worker"]
        command += ["--model", model, "--tokens", str(tokens)]
        where = [str(folder), str(folder / "benchmarks")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(where)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def sweep(self, case: str) -> dict[str, Any]:
        """Seconds, the effect, and the file that the values are in."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def work(model: str, tokens: int) -> None:
    """Run the sweeps whose names come in, one a line."""
    import shapes
    import sweeps

    import jaxasr_interp as ji

    shape = shapes.real(model, tokens)
    known: dict[str, sweeps.Ours] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in map(str.strip, sys.stdin):
            if case not in known:
                plan = ji.plan_sweep(shape.model, tokens=shape.corrupted.tokens, **PLANS[case])
                known[case] = sweeps.Ours(shape, plan)
            started = time.perf_counter()
            result = known[case].whole()
            taken = time.perf_counter() - started
            np.save(f"{folder}/{case}.npy", result.patched)
            answer = {
                "seconds": taken,
                "effect": float(abs(result.clean[0] - result.corrupted[0])),
                "values": f"{folder}/{case}.npy",
            }
            print(json.dumps(answer), flush=True)


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
