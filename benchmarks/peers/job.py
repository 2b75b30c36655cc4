"""What every method is given, and how its time and memory are taken."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from serving import reset_resident_peak, resident_peak
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """One pair of runs [1, ...]; the metric is the last position's log-probability of `token`."""

    clean_mel: Tensor
    corrupted_mel: Tensor
    clean_tokens: Tensor
    corrupted_tokens: Tensor
    token: int


def read_inputs(file: Path, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Read the arrays of an `.npz` onto the device, with a batch axis in front."""
    with np.load(file) as arrays:
        mels = [torch.from_numpy(arrays[f"{run}_mel"])[None] for run in ("clean", "corrupted")]
        tokens = [
            torch.from_numpy(arrays[f"{run}_tokens"].astype(np.int64))[None]
            for run in ("clean", "corrupted")
        ]
        token = int(arrays["token"])
    if tokens[0].shape != tokens[1].shape:
        lengths = " and ".join(str(ids.shape[1]) for ids in tokens)
        raise ValueError(f"the runs have {lengths} tokens: they must have equally many")
    mels = [mel.to(device, dtype) for mel in mels]
    tokens = [ids.to(device) for ids in tokens]
    return Inputs(mels[0], mels[1], tokens[0], tokens[1], token)


def log_prob(logits: Tensor, token: int) -> list[float]:
    """Log-probability of `token` for each row of `logits` [row, d_vocab]."""
    accurate = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return accurate.log_softmax(-1)[:, token].tolist()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Stopwatch:
    """Seconds by named part of a job, as `encode`, `clean` (the clean decoder run) and `sweep`."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside the context."""
        synchronise(self.device)
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_resident_peak()


def peak_bytes(device: torch.device) -> int:
    """The most bytes in use since `reset_peak`, weights too: allocated on a GPU, else resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()


def matmul_rate(n: int, repeats: int, device: torch.device, dtype: torch.dtype) -> float:
    """Median FLOP/s of an `n` by `n` matrix product on random data."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = a @ b  # warm-up
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        torch.matmul(a, b, out=out)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / float(np.median(seconds))
