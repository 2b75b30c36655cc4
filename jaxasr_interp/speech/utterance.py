"""What one run of the model hears and is given, and the clips that runs are made from."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.pytree import pytree_dataclass, static


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of a data set.

    Attributes:
        name: of the clip, in results.
        audio: 16 kHz samples, at most 30 s.
        text: what is said, `""` where nothing is, or `None` where that is not known.
        language: its code; by default detected.
    """

    name: str
    audio: Float[np.ndarray, " samples"]
    text: str | None = None
    language: str | None = None


@pytree_dataclass
class Utterance:
    """What one run hears and is given; see `generation.utterances.make_utterance`.

    Attributes:
        mel: log-mel spectrogram.
        tokens: prompt and text so far.
        prompt: how many of the tokens are the prompt.
        frames: how many encoder frames hold sound; `None` if that is not known.
        language: code of the language that the prompt names; `None` if that is not known.
    """

    mel: Float[Array, "n_mels mel_frame"]
    tokens: Int[Array, " pos"]
    prompt: int = static(default=0)
    frames: int | None = static(default=None)
    language: str | None = static(default=None)
