"""What every benchmark shares: the peers' process, paired runs, the device's rate, provenance."""

import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]


class Peer:
    """A peers' worker: one JSON request a line in, one answer a line out.

    Args:
        python: interpreter of the peers' environment.
        script: the worker, in `peers`.
    """

    def __init__(self, python: str, script: str = "worker.py"):
        command = [python, str(ROOT / "benchmarks" / "peers" / script)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if not answer["ok"]:
            raise RuntimeError(f"{op} {arguments.get('method', '')}: {answer['message']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Seconds of two sides in alternating runs.

    Attributes:
        ours: seconds of each of our runs.
        theirs: seconds of each of theirs.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times longer theirs takes: the median of the pairs' ratios."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Pair:
    """Run both sides in turn, A B A B; each returns the seconds of its own clock."""
    return Pair(*in_turn([ours, theirs], rounds))


def in_turn(sides: Sequence[Callable[[], float]], rounds: int) -> list[tuple[float, ...]]:
    """Run several sides in turn, A B C A B C; return what each returned."""
    runs = [[side() for side in sides] for _ in range(rounds)]
    return [tuple(side) for side in zip(*runs, strict=True)]


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call, its arrays waited for."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def matmul_rate(dtype: str, repeats: int = 7) -> float:
    """FLOP/s of our own square matrix product: the median of several, after one to compile.

    Products of 2048 rows on a CPU; elsewhere 20 of 8192 in a row, which no dispatch holds up.
    """
    n, times = (2048, 1) if jax.devices()[0].platform == "cpu" else (8192, 20)
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)

    def run() -> list[jax.Array]:
        return [product(x, x) for _ in range(times)]

    seconds(run)
    return 2 * n**3 * times / statistics.median(seconds(run) for _ in range(repeats))


def peak_bytes() -> int:
    """Most memory this process has held: of the device where it counts, else resident."""
    stats = jax.devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats.get("peak_bytes_in_use", resident)


def provenance() -> dict[str, Any]:
    """Device, versions and commit of a measurement."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "processor": platform.processor() or platform.machine(),
        "cores": len(__import__("os").sched_getaffinity(0)),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }
