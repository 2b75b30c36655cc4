"""How many transcripts are generated together: as many as fit the memory, in equal batches."""

import math

import jax

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper

_ROWS_ON_CPU = 128


def batch_sizes(
    model: Whisper,
    n_clips: int,
    n_rows: int,
    *,
    n_tokens: int,
    n_streams: int,
    beam_size: int,
    memory: int,
) -> tuple[int, int]:
    """Return how many clips, and how many rows of each, fit the memory at once.

    Args:
        model: the model.
        n_clips: number of clips.
        n_rows: number of rows of each clip.
        n_tokens: number of tokens of the longest row, with its prompt.
        n_streams: 2 if every row has a reference that is decoded beside it, else 1.
        beam_size: number of sequences of each row.
        memory: bytes that may be used in addition to the model.

    Raises:
        InputError: a single row does not fit.
    """
    config = model.config
    position = 2 * config.decoder_layers * config.d_model * model.dtype.itemsize
    scores = 4 * (8 * config.d_vocab + 4 * config.decoder_heads * config.max_frames)
    row = beam_size * (n_streams * 2 * position * n_tokens + scores)
    clip = 2 * n_streams * position * config.max_frames
    if clip + row > memory:
        raise InputError(
            f"A memory budget of {memory} bytes is too small: one transcript takes {clip + row}."
        )
    most = _ROWS_ON_CPU if jax.default_backend() == "cpu" else n_clips * n_rows
    rows = _evenly(n_rows, min(most, (memory - clip) // row))
    return _evenly(n_clips, min(max(1, most // rows), memory // (clip + rows * row))), rows


def _evenly(count: int, most: int) -> int:
    """Return the size of batches of about equal size, each of at most `most`."""
    return math.ceil(count / math.ceil(count / most))
