"""Answers benchmark requests for the PyTorch peers: one JSON object a line in, one out.

    python benchmarks/peers/worker.py

Runs in the peers' environment (`environment.sh`) and imports nothing of ours. Requests:

    {"op": "load", "folder": DIR, "device": "cpu", "dtype": "float32", "tf32": false}
    {"op": "inputs", "file": NPZ}
    {"op": "matmul", "n": 2048, "repeats": 5}
    {"op": "run", "method": "batched", "site": "resid_pre", "cells": [[layer, pos], ...]}
    {"op": "run", "method": "encoder_hooks_batched", "site": "resid_pre",
     "windows": [[layer, start, stop], ...]}
    {"op": "speech", "file": NPZ}
    {"op": "generate", "clips": [0, 1], "batch": 1, "max_new_tokens": 60, "share_states": false,
     "heads": [["cross_z", layer, head], ...]}
    {"op": "extract", "paths": [FLAC, ...], "tokens": [[...], ...], "batch": 4, "file": NPZ}
    {"op": "states", "file": NPZ}
    {"op": "lens", "top_k": 5}

`run` also takes `head` (sites `z` and `cross_z`), `batch`, and `warm_up: false`. Cells patch the
decoder, windows the encoder, whose sites are `resid_pre` and `ln_final` (its output: layer 0). Its
answer holds the metric's `values` and `seconds`, the sum of `encode_seconds`, `clean_seconds` (the
clean run that the patches are taken from) and `sweep_seconds` (all that grows with the patches).
`generate` transcribes the clips of `speech`, once with each head zeroed (`null` zeroes none), and
answers with the `tokens` of every head and clip. `extract` reads, runs and pools clips, and writes
the activations to `file`. `lens` reads the residual streams of `states` through the unembedding;
its `extra_bytes` are the most that it held beside model and states.
Every answer holds `"ok"`; a failed request is answered by `{"ok": false, "error": ...,
"message": ...}` and the worker lives on. Whatever libraries print goes to stderr.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from batched import batched, batched_onednn
from encoder import encoder_hooks_batched, encoder_output_windows
from generated import Generation, generate, read_mels
from hooked import hooks_decoder, hooks_model
from job import Inputs, Stopwatch, matmul_rate, peak_bytes, read_inputs, reset_peak
from lens import States, logit_lens, read_states
from serving import Answer, serve
from sites import Patch, Sweep
from torch import Tensor
from transformers import WhisperForConditionalGeneration, logging

Method = Callable[[WhisperForConditionalGeneration, Inputs, Sweep, Stopwatch], list[float]]
PACKAGES = ("torch", "transformers", "nnsight")


def nnsight(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """nnsight's invokes; only this method needs nnsight installed."""
    from nnsight_invokes import nnsight_invokes

    return nnsight_invokes(model, inputs, sweep, clock)


METHODS: dict[str, Method] = {
    "hooks_model": hooks_model,
    "hooks_decoder": hooks_decoder,
    "batched": batched,
    "batched_onednn": batched_onednn,
    "nnsight": nnsight,
    "encoder_hooks_batched": encoder_hooks_batched,
    "encoder_output_windows": encoder_output_windows,
}
# The fastest for Whisper's shapes where it was measured (CPU), or a size that fills the device.
DEFAULT_BATCH = {
    "batched": {"cpu": 48, "cuda": 256},
    "batched_onednn": {"cpu": 48},
    "nnsight": {"cpu": 32, "cuda": 64},
    "encoder_hooks_batched": {"cuda": 16},
    "encoder_output_windows": {"cpu": 4, "cuda": 32},
}


class Worker:
    """A loaded model, its inputs, and what has been warmed up."""

    model: WhisperForConditionalGeneration
    inputs: Inputs
    mels: Tensor
    states: States

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.warm: set[tuple] = set()

    def load(
        self, folder: str, device: str = "cpu", dtype: str = "float32", tf32: bool = False
    ) -> Answer:
        """Load a Hugging Face folder; `tf32` lets NVIDIA GPUs round float32 products."""
        started = time.perf_counter()
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        torch.backends.fp32_precision = "tf32" if tf32 else "ieee"
        model = WhisperForConditionalGeneration.from_pretrained(
            folder, attn_implementation="sdpa", dtype=self.dtype
        )
        self.model = model.to(self.device).eval()
        self.warm.clear()
        on_gpu = self.device.type == "cuda"
        return {
            "seconds": time.perf_counter() - started,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {d.name: d.version for d in distributions() if d.name in PACKAGES},
        }

    def read(self, file: str) -> Answer:
        """Take the pair of runs that is patched from now on."""
        self.inputs = read_inputs(Path(file), self.device, self.dtype)
        self.warm.clear()
        return {"tokens": self.inputs.clean_tokens.shape[1]}

    def matmul(self, n: int = 2048, repeats: int = 5) -> Answer:
        """The rate of a square matrix product in the loaded dtype."""
        return {"flops_per_second": matmul_rate(n, repeats, self.device, self.dtype)}

    def run(self, method: str, warm_up: bool = True, **wanted: Any) -> Answer:
        """Run one method over one sweep, after one untimed batch if it has not run so before."""
        if method not in METHODS:
            raise ValueError(f"no method {method!r}: choose one of {', '.join(METHODS)}")
        if not hasattr(self, "model") or not hasattr(self, "inputs"):
            raise ValueError("load a model and inputs first")
        batch = DEFAULT_BATCH.get(method, {}).get(self.device.type, 1)
        sweep = make_sweep(**{"batch": batch, **wanted})
        first = replace(sweep, patches=sweep.patches[: sweep.batch])
        shape = (method, sweep.stack, sweep.site, len(first.patches))
        started = time.perf_counter()
        if warm_up and shape not in self.warm:
            METHODS[method](self.model, self.inputs, first, Stopwatch(self.device))
            self.warm.add(shape)
        warm_up_seconds = time.perf_counter() - started
        reset_peak(self.device)
        clock = Stopwatch(self.device)
        values = METHODS[method](self.model, self.inputs, sweep, clock)
        return {
            "seconds": sum(clock.seconds.values()),
            **{f"{part}_seconds": seconds for part, seconds in clock.seconds.items()},
            "warm_up_seconds": warm_up_seconds,
            "values": values,
            "batch": sweep.batch,
            "peak_bytes": peak_bytes(self.device),
        }

    def hear(self, file: str) -> Answer:
        """Take the clips that are transcribed from now on."""
        self.mels = read_mels(Path(file), self.device, self.dtype)
        return {"clips": len(self.mels)}

    def generate(self, **wanted: Any) -> Answer:
        """Transcribe clips."""
        if not hasattr(self, "model") or not hasattr(self, "mels"):
            raise ValueError("load a model and speech first")
        reset_peak(self.device)
        clock = Stopwatch(self.device)
        tokens = generate(self.model, self.mels, Generation(**wanted), clock)
        return {
            "seconds": sum(clock.seconds.values()),
            **{f"{part}_seconds": seconds for part, seconds in clock.seconds.items()},
            "tokens": tokens,
            "peak_bytes": peak_bytes(self.device),
        }

    def extract(self, file: str, **wanted: Any) -> Answer:
        """Pool activations of clips; `file` gets them."""
        if not hasattr(self, "model"):
            raise ValueError("load a model first")
        reset_peak(self.device)
        clock = Stopwatch(self.device)
        from extracted import Extraction, extract, save  # Only this request needs soundfile.

        arrays = extract(self.model, Extraction(**wanted), clock)
        save(arrays, Path(file))
        return {"seconds": clock.seconds["extract"], "peak_bytes": peak_bytes(self.device)}

    def take(self, file: str) -> Answer:
        """Take the residual streams that the lens reads from now on."""
        self.states = read_states(Path(file), self.device, self.dtype)
        return {"positions": self.states.hidden.shape[1]}

    def lens(self, top_k: int = 5) -> Answer:
        """Read every layer's residual stream."""
        if not hasattr(self, "model") or not hasattr(self, "states"):
            raise ValueError("load a model and states first")
        reset_peak(self.device)
        before = peak_bytes(self.device)
        clock = Stopwatch(self.device)
        read = logit_lens(self.model, self.states, top_k, clock)
        return {
            "seconds": clock.seconds["lens"],
            "extra_bytes": peak_bytes(self.device) - before,
            **read,
        }


def make_sweep(
    site: str,
    batch: int,
    cells: list[tuple[int, int]] | None = None,
    windows: list[tuple[int, int, int]] | None = None,
    head: int | None = None,
) -> Sweep:
    """The sweep that a `run` request describes."""
    if (cells is None) == (windows is None):
        raise ValueError("give either cells (decoder) or windows (encoder)")
    if cells is not None:
        patches = [Patch(layer, position, position + 1) for layer, position in cells]
        return Sweep("decoder", site, patches, head, batch)
    return Sweep("encoder", site, [Patch(*window) for window in windows or []], head, batch)


@torch.inference_mode()
def main() -> None:
    """Answer until stdin ends."""
    # `generate` warns of settings that it makes itself, at every call.
    logging.set_verbosity_error()
    worker = Worker()
    serve(
        {
            "load": worker.load,
            "inputs": worker.read,
            "matmul": worker.matmul,
            "run": worker.run,
            "speech": worker.hear,
            "generate": worker.generate,
            "extract": worker.extract,
            "states": worker.take,
            "lens": worker.lens,
        }
    )


if __name__ == "__main__":
    main()
