"""Batches of clips as spectrograms."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.audio import HOP, SAMPLE_RATE, log_mel_spectrogram
from jaxasr_interp.speech.clips import Clips, VanishedError


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of clips before the model runs; slots without a clip hold zeros.

    Attributes:
        mels: spectrograms.
        features: mean and standard deviation of each mel band over the columns that hold sound.
        frames: encoder frames that hold sound.
        problems: why a clip is left out, `""` where it is not.
    """

    mels: Float[np.ndarray, "clip n_mels mel_frame"]
    features: Float[np.ndarray, "clip mel_feature"]
    frames: tuple[int, ...]
    problems: tuple[str, ...]


def read_batch(
    clips: Clips, rows: Sequence[int], *, batch_size: int, n_mels: int, mel_frames: int
) -> Batch:
    """Read some clips and make their spectrograms.

    Args:
        clips: all clips.
        rows: numbers of the clips to read.
        batch_size: number of slots of the batch.
        n_mels: number of mel bands.
        mel_frames: number of columns of a spectrogram, 10 ms each.

    Raises:
        VanishedError: the file of a clip was there when the work began, and is gone.
    """
    mels = np.zeros((batch_size, n_mels, mel_frames), np.float32)
    features = np.full((batch_size, 2 * n_mels), np.nan, np.float32)
    lengths, problems = np.zeros(batch_size, int), [""] * batch_size
    for i, number in enumerate(rows):
        try:
            audio = read_short(clips, number, mel_frames)
        except VanishedError:
            raise
        except InputError as error:
            problems[i] = str(error)
            continue
        mels[i] = log_mel_spectrogram(audio, n_mels, mel_frames)
        sound = mels[i, :, : -(-len(audio) // HOP)]
        features[i] = np.concatenate([sound.mean(1), sound.std(1)])
        lengths[i] = len(audio)
    frames = tuple((-(-lengths // (2 * HOP))).tolist())
    return Batch(mels, features, frames, tuple(problems))


def read_short(clips: Clips, number: int, mel_frames: int) -> Float[np.ndarray, " samples"]:
    """Read the samples of a clip that fits the model's window.

    Raises:
        InputError: the clip cannot be read or is too long.
    """
    audio, most = clips.read(number), mel_frames * HOP
    if len(audio) > most:
        raise InputError(
            f"{clips.rows[number]['path']} is {len(audio) / SAMPLE_RATE:.1f} s long: the model "
            f"hears {most / SAMPLE_RATE:g} s."
        )
    return audio
