"""Two clips and the token where their transcripts part: the question a sweep answers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.audio import CHUNK_SAMPLES, log_mel_spectrogram
from jaxasr_interp.decoding import require_tokenizer
from jaxasr_interp.errors import InputError
from jaxasr_interp.model import Whisper
from jaxasr_interp.patching import Utterance
from jaxasr_interp.transcription import transcribe_batch


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A clean and a corrupted clip that are heard alike up to one token.

    Attributes:
        clean_text: transcript of the clean clip.
        corrupted_text: transcript of the corrupted clip.
        tokens: prompt and the text before the difference, what both runs are given.
        target: the clean clip's next token.
        other: the corrupted clip's next token.
        clean_mel: spectrogram of the clean clip.
        corrupted_mel: spectrogram of the corrupted clip.
    """

    clean_text: str
    corrupted_text: str
    tokens: tuple[int, ...]
    target: int
    other: int
    clean_mel: Float[Array, "n_mels mel_frame"]
    corrupted_mel: Float[Array, "n_mels mel_frame"]

    @property
    def clean(self) -> Utterance:
        """The clean run."""
        return Utterance(self.clean_mel, jnp.asarray(self.tokens, jnp.int32))

    @property
    def corrupted(self) -> Utterance:
        """The corrupted run: other audio, the same tokens."""
        return Utterance(self.corrupted_mel, jnp.asarray(self.tokens, jnp.int32))


def find_contrast(
    model: Whisper,
    clean: Float[np.ndarray, " clean_samples"],
    corrupted: Float[np.ndarray, " corrupted_samples"],
    *,
    language: str | None = None,
) -> Contrast:
    """Transcribe both clips and find the first token in which they differ.

    Args:
        model: a model with a tokenizer.
        clean: 16 kHz samples, at most 30 s.
        corrupted: 16 kHz samples, at most 30 s.
        language: of both clips; by default detected in the clean one.

    Returns:
        The common beginning and the two tokens that follow it.

    Raises:
        InputError: a clip is too long, or both are transcribed alike.
    """
    tokenizer = require_tokenizer(model)
    for name, clip in (("clean", clean), ("corrupted", corrupted)):
        if len(clip) > CHUNK_SAMPLES:
            raise InputError(f"The {name} clip is longer than 30 s: cut it to the sentence.")
    if language is None:
        language = transcribe_batch(model, [clean])[0].language
    first, second = transcribe_batch(model, [clean, corrupted], language=language)
    a, b = (*first.tokens, tokenizer.end_of_text), (*second.tokens, tokenizer.end_of_text)
    if a == b:
        raise InputError(
            f"Both clips are transcribed as {first.text!r}: choose two that the model hears apart."
        )
    parts = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return Contrast(
        clean_text=first.text,
        corrupted_text=second.text,
        tokens=(*tokenizer.prompt(language), *a[:parts]),
        target=a[parts],
        other=b[parts],
        clean_mel=log_mel_spectrogram(clean, model.config.n_mels),
        corrupted_mel=log_mel_spectrogram(corrupted, model.config.n_mels),
    )
