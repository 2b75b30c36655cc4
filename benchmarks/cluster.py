"""Two Dask workers against two unconnected processes, each on one core.

    python benchmarks/cluster.py CLIPS.tsv [--model base] [--clips 24] [--rounds 3] [--json FILE]

All sweep `resid_pre` of every layer and position for the last word of each clip's text, warm, in
turn (A B A B …). The unconnected processes take half of the units each (`Share`); what they do
together is the sum of their rates.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import harness
from distributed import Client, Status, Worker

import jaxasr_interp as ji

CORES = (0, 1)
PORT = 8799


def main() -> None:
    parser = argparse.ArgumentParser(description="Dask workers against unconnected processes.")
    parser.add_argument("table", type=Path, help="clips with columns path, text and lang")
    parser.add_argument("--model", default="base")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--part", help="answer requests for a part of the units, such as 1/2")
    given = parser.parse_args()
    manifest = given.table
    if given.part is not None:
        answer(manifest, given.model, ji.Share.parse(given.part))
        return
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "clips.jsonl"
        rows = datasets.spread(datasets.readable_rows(given.table), given.clips)
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = measure(manifest, given.model, given.rounds, Path(folder))
    print(
        f"{found['patches']} patches: one worker {found['one']:.1f}/s, two {found['two']:.1f}/s, "
        f"two processes {found['processes']:.1f}/s together; two workers do "
        f"{found['share']:.3f} x what the processes do"
    )
    if given.json is not None:
        content = {**harness.provenance(), "rounds": given.rounds, "rows": [found]}
        given.json.write_text(json.dumps(content, indent=2) + "\n")


def measure(manifest: Path, name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Rates of one worker, two workers and two processes."""
    model, address = ji.load_model(name), f"tcp://127.0.0.1:{PORT}"
    cluster = [started("dask", "scheduler", "--port", str(PORT), "--no-dashboard")]
    cluster += [worker(i, address) for i in range(len(CORES))]
    ours = ji.RunOptions(scheduler=address)
    # Each worker meets the programs of all lengths before two of them share the units by chance.
    for i in range(len(CORES)):
        use(address, [i])
        sweep(model, manifest, folder / f"warm {i}", ours)
    one = [sweep(model, manifest, folder / f"one {i}", ours) for i in range(rounds)]
    use(address, range(len(CORES)))
    parts = [Part(manifest, name, i) for i in range(len(CORES))]
    together(parts, folder / "warm parts")
    pairs = [
        (
            sweep(model, manifest, folder / f"two {i}", ours),
            together(parts, folder / f"parts {i}"),
        )
        for i in range(rounds)
    ]
    for process in (*(part.process for part in parts), *cluster[::-1]):
        process.kill()
        process.wait()
    return {
        "model": name,
        "patches": round(one[0][1]),
        "one": statistics.median(rate for rate, _ in one),
        "two": statistics.median(a for (a, _), _ in pairs),
        "processes": statistics.median(b for _, b in pairs),
        "share": statistics.median(a / b for (a, _), b in pairs),
        "rounds": [{"two": a, "processes": b} for (a, _), b in pairs],
    }


def sweep(model: ji.Whisper, manifest: Path, out: Path, run: ji.RunOptions) -> tuple[float, int]:
    """Patches a second from the end of the first unit to that of the last, and how many there are.

    Before the first unit is done, workers load the model; the processes have loaded it before.
    """
    seen: list[tuple[float, int]] = []

    def on_progress(done: int, total: int, phase: str) -> None:
        if phase == "patches":
            seen.append((time.perf_counter(), done))

    ji.sweep_dataset(
        model, manifest, out, options=datasets.OPTIONS, run=run, on_progress=on_progress
    )
    (start, first), (end, done) = seen[1], seen[-1]
    return (done - first) / (end - start), done


def started(*command: str, core: int | None = None) -> subprocess.Popen[bytes]:
    """Start a silent process, on one core if that is given."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    return subprocess.Popen(
        [*pinned, sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def worker(number: int, address: str) -> subprocess.Popen[bytes]:
    """Start a worker, and wait until the scheduler knows it."""
    options = ("--nthreads", "2", "--memory-limit", "0", "--no-nanny", "--no-dashboard")
    named = ("--name", str(number))
    process = started("dask", "worker", address, *options, *named, core=CORES[number])
    with Client(address, timeout=60) as client:
        client.wait_for_workers(number + 1, timeout=60)
    return process


def use(address: str, numbers: Sequence[int]) -> None:
    """Let some workers take units, and pause the others."""

    def work_or_pause(dask_worker: Worker) -> None:
        chosen = int(dask_worker.name) in numbers
        dask_worker.status = Status.running if chosen else Status.paused

    with Client(address) as client:
        client.run(work_or_pause)


class Part:
    """A process of its own that sweeps a part of the units."""

    def __init__(self, manifest: Path, name: str, number: int):
        part = f"{number + 1}/{len(CORES)}"
        command = [sys.executable, __file__, str(manifest), "--model", name, "--part", part]
        self.process = subprocess.Popen(
            ["taskset", "-c", str(CORES[number]), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, out: Path) -> None:
        """Begin a sweep."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()

    def rate(self) -> float:
        """Patches a second of the sweep that was begun."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


def together(parts: list[Part], out: Path) -> float:
    """The sum of the rates of processes that run at the same time, each to a store of its own."""
    for i, part in enumerate(parts):
        part.ask(out / str(i))
    return sum(part.rate() for part in parts)


def answer(manifest: Path, name: str, share: ji.Share) -> None:
    """Sweep a part of the units into every folder that is asked for."""
    model = ji.load_model(name)
    for line in sys.stdin:
        rate, _ = sweep(model, manifest, Path(line.strip()), ji.RunOptions(share=share))
        print(rate, flush=True)


if __name__ == "__main__":
    main()
