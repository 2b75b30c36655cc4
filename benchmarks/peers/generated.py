"""Transcripts by `transformers`' `generate`, with one head of the decoder zeroed at a time."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from job import Stopwatch
from sites import zeroing
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

Head = tuple[str, int, int]


@dataclass(frozen=True)
class Generation:
    """What is transcribed: clips, in batches, once with each head (site, layer, head) zeroed.

    `share_states` runs the encoder once for each batch instead of once for each transcript.
    """

    clips: list[int]
    max_new_tokens: int
    heads: list[Head | None] = field(default_factory=lambda: [None])
    batch: int = 1
    share_states: bool = False

    def batches(self) -> Iterator[list[int]]:
        """The clips in order, `batch` at a time."""
        for start in range(0, len(self.clips), self.batch):
            yield self.clips[start : start + self.batch]


def read_mels(file: Path, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Spectrograms [clip, n_mels, mel_frame] of an `.npz`."""
    with np.load(file) as arrays:
        return torch.from_numpy(arrays["mels"]).to(device, dtype)


def generate(
    model: WhisperForConditionalGeneration, mels: Tensor, wanted: Generation, clock: Stopwatch
) -> list[list[list[int]]]:
    """Greedy tokens of each head and clip, without prompt and end-of-text."""
    tokens: list[list[list[int]]] = [[] for _ in wanted.heads]
    for clips in wanted.batches():
        heard: dict[str, Any] = {"input_features": mels[clips]}
        if wanted.share_states:
            with clock.part("encode"):
                states = model.model.encoder(mels[clips]).last_hidden_state
            heard = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        for head, written in zip(wanted.heads, tokens, strict=True):
            with clock.part("generate"), nullcontext() if head is None else zeroing(model, *head):
                rows = _generate(model, heard, wanted.max_new_tokens)
            written += rows
    return tokens


def _generate(
    model: WhisperForConditionalGeneration, heard: dict[str, Any], max_new_tokens: int
) -> list[list[int]]:
    settings = model.generation_config
    spoken = {"language": "en", "task": "transcribe"} if settings.is_multilingual else {}
    out = model.generate(
        **heard, **spoken, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    return [_before(row, settings.eos_token_id) for row in out.tolist()]


def _before(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row
