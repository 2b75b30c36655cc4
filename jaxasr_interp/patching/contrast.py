"""The question a sweep answers: two runs that are given the same tokens, and the token after them.

Either two clips are transcribed alike up to one token (`find_contrast`), or both runs are given the
transcript of one clip and a word of it is asked for (`ask_word`).
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.transcribe import transcribe_batch
from jaxasr_interp.model.run import decode, encode
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching import Utterance, metrics
from jaxasr_interp.speech.audio import CHUNK_SAMPLES, SAMPLE_RATE, log_mel_spectrogram
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND, words_of
from jaxasr_interp.speech.tokenizer import Tokenizer

METRICS = ("log_prob", "logit_diff", "rank", "entropy", "kl", "kl_all", "cross_entropy")
"""What can be read: see `ji.metrics`. `kl_all` and `cross_entropy` read every token."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A clean and a corrupted run that share their tokens, and the token that is asked for.

    Attributes:
        clean_text: transcript of the clean clip.
        corrupted_text: transcript of the corrupted clip; `None` where it is not looked at.
        tokens: prompt and the text before the token in question, what both runs are given.
        prompt: how many of them are the prompt.
        target: the clean run's next token.
        other: the corrupted run's next token, or its most probable one that is not the target.
        heard: prompt and the whole text of the clean run.
        frames: encoder frames that the longer clip fills.
        clean_mel: spectrogram of the clean clip.
        corrupted_mel: spectrogram of the corrupted clip.
    """

    clean_text: str
    corrupted_text: str | None
    tokens: tuple[int, ...]
    prompt: int
    target: int
    other: int
    heard: tuple[int, ...]
    frames: int
    clean_mel: Float[Array, "n_mels mel_frame"]
    corrupted_mel: Float[Array, "n_mels mel_frame"]

    @property
    def provenance(self) -> dict[str, object]:
        """What both runs were given, and what was asked."""
        return {
            "text": self.clean_text,
            "tokens": list(self.tokens),
            "prompt": self.prompt,
            "target_token": self.target,
            "other_token": self.other,
        }

    @property
    def clean(self) -> Utterance:
        """The clean run."""
        return Utterance(self.clean_mel, jnp.asarray(self.tokens, jnp.int32))

    @property
    def corrupted(self) -> Utterance:
        """The corrupted run: other audio, the same tokens."""
        return Utterance(self.corrupted_mel, jnp.asarray(self.tokens, jnp.int32))

    def metric(self, name: str) -> metrics.Metric:
        """The metric of that name, of the token in question or of the text up to and with it.

        Raises:
            InputError: there is no such metric.
        """
        match check_metric_name(name):
            case "log_prob":
                return metrics.log_prob(self.target)
            case "logit_diff":
                return metrics.logit_diff(self.target, self.other)
            case "rank":
                return metrics.rank(self.target)
            case "entropy":
                return metrics.entropy()
            case "kl":
                return metrics.kl()
            case "kl_all":
                return metrics.kl(None)
            case _:
                written = (*self.tokens[self.prompt :], self.target)
                return metrics.cross_entropy(written, self.prompt - 1)


def check_metric_name(name: str) -> str:
    """Return `name` if it is one of `METRICS`; raise `InputError` otherwise."""
    if name not in METRICS:
        raise InputError(f"Unknown metric {name!r}: choose one of {', '.join(METRICS)}.")
    return name


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
    _check_lengths(clean, corrupted)
    if language is None:
        language = transcribe_batch(model, [clean])[0].language
    first, second = transcribe_batch(model, [clean, corrupted], language=language)
    a, b = (*first.tokens, tokenizer.end_of_text), (*second.tokens, tokenizer.end_of_text)
    if a == b:
        raise InputError(
            f"Both clips are transcribed as {first.text!r}: choose two that the model hears apart."
        )
    parts = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    prompt = tokenizer.prompt(language)
    return Contrast(
        clean_text=first.text,
        corrupted_text=second.text,
        tokens=(*prompt, *a[:parts]),
        prompt=len(prompt),
        target=a[parts],
        other=b[parts],
        heard=(*prompt, *first.tokens),
        frames=count_frames(model, clean, corrupted),
        clean_mel=log_mel_spectrogram(clean, model.config.n_mels),
        corrupted_mel=log_mel_spectrogram(corrupted, model.config.n_mels),
    )


def ask_word(
    model: Whisper,
    clean: Float[np.ndarray, " clean_samples"],
    reference: Float[np.ndarray, " reference_samples"],
    *,
    text: str | None = None,
    word: str | None = None,
    language: str | None = None,
) -> Contrast:
    """Give both runs one transcript up to a word, and ask for that word.

    Args:
        model: a model with a tokenizer.
        clean: 16 kHz samples, at most 30 s.
        reference: what is heard instead: noise, silence, another clip; at most 30 s.
        text: the transcript; by default the clean clip's own.
        word: the word whose first token is asked for, `word:2` for the second time it occurs; by
            default the last one.
        language: spoken; by default detected in the clean clip.

    Returns:
        The tokens before the word, and its first token. `other` is what the reference run puts
        first in its place.

    Raises:
        InputError: a clip is too long, the transcript has no words, or not that one, or several of
            them.
    """
    prompt, written = _transcript(model, clean, reference, text, language)
    asked = _position_of(require_tokenizer(model), (*prompt, *written), word)
    return _ask(model, clean, reference, prompt, written, asked)


def ask_transcript(
    model: Whisper,
    clean: Float[np.ndarray, " clean_samples"],
    reference: Float[np.ndarray, " reference_samples"],
    *,
    text: str | None = None,
    language: str | None = None,
) -> Contrast:
    """Give both runs one whole transcript; the token asked for last is the end of the text.

    Args:
        model: see `ask_word`.
        clean: see `ask_word`.
        reference: see `ask_word`.
        text: see `ask_word`.
        language: see `ask_word`.

    Returns:
        All tokens, whose `cross_entropy` is that of the whole transcript.

    Raises:
        InputError: a clip is too long.
    """
    prompt, written = _transcript(model, clean, reference, text, language)
    return _ask(model, clean, reference, prompt, written, len(prompt) + len(written))


def count_frames(model: Whisper, *clips: Float[np.ndarray, " _"]) -> int:
    """How many encoder frames the longest clip fills."""
    samples = SAMPLE_RATE // FRAMES_PER_SECOND
    return min(-(-max(map(len, clips)) // samples), model.config.max_frames)


def _transcript(
    model: Whisper,
    clean: np.ndarray,
    reference: np.ndarray,
    text: str | None,
    language: str | None,
) -> tuple[list[int], list[int]]:
    """The prompt, and the tokens of the text or of what is heard in the clean clip."""
    tokenizer = require_tokenizer(model)
    _check_lengths(clean, reference)
    if text is None or language is None:
        own = transcribe_batch(model, [clean], language=language)[0]
        written = list(own.tokens) if text is None else tokenizer.encode(" " + text.strip())
        return tokenizer.prompt(own.language), written
    return tokenizer.prompt(language), tokenizer.encode(" " + text.strip())


def _ask(
    model: Whisper,
    clean: np.ndarray,
    reference: np.ndarray,
    prompt: Sequence[int],
    written: Sequence[int],
    asked: int,
) -> Contrast:
    """What both runs would say at position `asked` of the transcript."""
    tokenizer = require_tokenizer(model)
    heard = (*prompt, *written)
    target = (*heard, tokenizer.end_of_text)[asked]
    mel = log_mel_spectrogram(reference, model.config.n_mels)
    states = encode(model, mel, sites=()).states
    logits = decode(model, heard[:asked], states, sites=()).logits[-1]
    best = np.argsort(-np.asarray(logits))[:2]
    return Contrast(
        clean_text=tokenizer.decode(written).strip(),
        corrupted_text=None,
        tokens=heard[:asked],
        prompt=len(prompt),
        target=target,
        other=int(best[1] if best[0] == target else best[0]),
        heard=heard,
        frames=count_frames(model, clean, reference),
        clean_mel=log_mel_spectrogram(clean, model.config.n_mels),
        corrupted_mel=mel,
    )


def _check_lengths(clean: np.ndarray, corrupted: np.ndarray) -> None:
    for name, clip in (("clean", clean), ("corrupted", corrupted)):
        if len(clip) > CHUNK_SAMPLES:
            raise InputError(f"The {name} clip is longer than 30 s: cut it to the sentence.")


def _position_of(tokenizer: Tokenizer, tokens: Sequence[int], word: str | None) -> int:
    """Where the word that is asked for begins."""
    words = [named for named in words_of(tokenizer, tokens) if named[0]]
    if not words:
        raise InputError("The transcript has no words to ask for: give one with --text.")
    if word is None:
        return words[-1][1][0]
    name, _, number = word.casefold().rpartition(":")
    wanted, which = (name, int(number)) if name and number.isdecimal() else (word.casefold(), 0)
    starts = [start for text, (start, _) in words if text == wanted]
    if not starts:
        known = ", ".join(dict.fromkeys(text for text, _ in words))
        raise InputError(f"There is no word {wanted!r} in the transcript; its words are: {known}.")
    if which > len(starts) or (which == 0 and len(starts) > 1):
        raise InputError(
            f"The word {wanted!r} occurs {len(starts)} times: write {wanted}:1 for the first."
        )
    return starts[which - 1]
