"""Activations of many clips by forward hooks that pool them, as one would write it by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from job import Stopwatch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

RATE, SAMPLES_PER_FRAME = 16_000, 320


@dataclass(frozen=True)
class Extraction:
    """16 kHz files with the tokens that the decoder is given, `batch` at a time.

    Without tokens only the encoder runs.
    """

    paths: list[str]
    batch: int
    tokens: list[list[int]] | None = None


def extract(
    model: WhisperForConditionalGeneration, wanted: Extraction, clock: Stopwatch
) -> dict[str, np.ndarray]:
    """`resid_post` of every layer: `encoder` its mean over the sound, `decoder` at the last token.

    Both are [clip, layer, d_model].
    """
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    kept: dict[str, list[np.ndarray]] = {"encoder": [], "decoder": []}
    with clock.part("extract"):
        for start in range(0, len(wanted.paths), wanted.batch):
            some = slice(start, start + wanted.batch)
            tokens = None if wanted.tokens is None else wanted.tokens[some]
            for stack, values in _batch(model, extractor, wanted.paths[some], tokens).items():
                kept[stack].append(values)
    return {stack: np.concatenate(batches) for stack, batches in kept.items() if batches}


def _batch(
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    paths: list[str],
    tokens: list[list[int]] | None,
) -> dict[str, np.ndarray]:
    clips = [soundfile.read(path, dtype="float32")[0] for path in paths]
    mels = extractor(clips, sampling_rate=RATE, return_tensors="pt").input_features
    mels = mels.to(model.device, model.dtype)
    frames = torch.tensor([-(-len(clip) // SAMPLES_PER_FRAME) for clip in clips])
    inside = torch.arange(model.config.max_source_positions)[None] < frames[:, None]
    weights = (inside / frames[:, None]).to(mels)

    def pooled(hidden: Tensor) -> Tensor:
        return torch.einsum("bfd,bf->bd", hidden, weights)

    with reading(model.model.encoder.layers, pooled) as found:
        states = model.model.encoder(mels).last_hidden_state
    arrays = {"encoder": _by_clip(found)}
    if tokens is None:
        return arrays
    longest = max(map(len, tokens))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in tokens])
    rows = torch.arange(len(tokens), device=model.device)
    last = torch.tensor([len(ids) - 1 for ids in tokens], device=model.device)
    with reading(model.model.decoder.layers, lambda hidden: hidden[rows, last]) as found:
        model.model.decoder(padded.to(model.device), encoder_hidden_states=states, use_cache=False)
    return arrays | {"decoder": _by_clip(found)}


@contextmanager
def reading(layers: nn.ModuleList, reduce: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Collect the reduced output of every layer while the context lasts."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(reduce(output[0] if isinstance(output, tuple) else output))

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _by_clip(found: list[Tensor]) -> np.ndarray:
    return torch.stack(found, 1).float().cpu().numpy()


def save(arrays: dict[str, np.ndarray], file: Path) -> None:
    """Write them for the other side to compare."""
    np.savez(file, **arrays)
