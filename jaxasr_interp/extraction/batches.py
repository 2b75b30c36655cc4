"""Batches of clips as spectrograms, which are read while the model runs."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.speech.audio import HOP, SAMPLE_RATE, log_mel_spectrogram
from jaxasr_interp.speech.clips import Clips

_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of clips before the model runs; slots without a clip hold zeros.

    Attributes:
        start: number of the first clip.
        mels: spectrograms.
        features: mean and standard deviation of each mel band over the columns that hold sound.
        frames: encoder frames that hold sound.
        problems: why a clip is left out, `""` where it is not.
    """

    start: int
    mels: Float[np.ndarray, "clip n_mels mel_frame"]
    features: Float[np.ndarray, "clip mel_feature"]
    frames: tuple[int, ...]
    problems: tuple[str, ...]


def read_batch(clips: Clips, start: int, batch_size: int, config: WhisperConfig) -> Batch:
    """Read the clips from number `start` on, at most `batch_size` of them."""
    mels = np.zeros((batch_size, config.n_mels, config.mel_frames), np.float32)
    features = np.full((batch_size, 2 * config.n_mels), np.nan, np.float32)
    lengths, problems = np.zeros(batch_size, int), [""] * batch_size
    for i, number in enumerate(range(start, min(start + batch_size, len(clips.rows)))):
        try:
            audio = _read(clips, number, config)
        except InputError as error:
            problems[i] = str(error)
            continue
        mels[i] = log_mel_spectrogram(audio, config.n_mels, config.mel_frames)
        sound = mels[i, :, : -(-len(audio) // HOP)]
        features[i] = np.concatenate([sound.mean(1), sound.std(1)])
        lengths[i] = len(audio)
    frames = tuple((-(-lengths // (2 * HOP))).tolist())
    return Batch(start, mels, features, frames, tuple(problems))


def read_ahead(
    clips: Clips, starts: Sequence[int], batch_size: int, config: WhisperConfig
) -> Iterator[Batch]:
    """Yield batches in order; a thread reads the next ones while the model runs."""
    with ThreadPoolExecutor(1) as pool:
        waiting: collections.deque[Future[Batch]] = collections.deque()
        for start in starts:
            waiting.append(pool.submit(read_batch, clips, start, batch_size, config))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(clips: Clips, number: int, config: WhisperConfig) -> Float[np.ndarray, " samples"]:
    audio, most = clips.read(number), config.mel_frames * HOP
    if len(audio) > most:
        raise InputError(
            f"{clips.rows[number]['path']} is {len(audio) / SAMPLE_RATE:.1f} s long: the model "
            f"hears {most / SAMPLE_RATE:g} s."
        )
    return audio
