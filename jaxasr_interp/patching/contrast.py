"""The question that a sweep answers: two runs with the same tokens, and the token after them.

Either the transcripts of two clips agree up to one token (`find_contrast`), or both runs take the
transcript of one clip up to a word, which is the question (`ask_word`).
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.model.run import EncodedUtterance, decode, encode_utterance
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching import metrics
from jaxasr_interp.patching.metric_names import make_metric
from jaxasr_interp.pytree import replace
from jaxasr_interp.speech.positions import plain_word, words_of
from jaxasr_interp.speech.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A clean and a corrupted run that share their tokens, and the token in question.

    Attributes:
        clean: the clean run, with the prompt and the text before the token in question.
        corrupted: the corrupted run, with other audio and the same tokens.
        target: the clean run's next token.
        other: the corrupted run's next token, or its most probable one that is not the target.
        transcript: the clean run with the prompt and its whole text, and the number of frames of
            the longer clip.
        clean_text: transcript of the clean clip.
        corrupted_text: transcript of the corrupted clip; `None` where it is not needed.
    """

    clean: EncodedUtterance
    corrupted: EncodedUtterance
    target: int
    other: int
    transcript: EncodedUtterance
    clean_text: str
    corrupted_text: str | None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of both runs: the prompt and the text before the token in question."""
        return tuple(np.asarray(self.clean.tokens).tolist())

    @property
    def prompt(self) -> int:
        """Number of tokens of the prompt."""
        return self.clean.prompt

    @property
    def frames(self) -> int:
        """Number of encoder frames that the longer clip fills."""
        assert self.transcript.frames is not None
        return self.transcript.frames

    @property
    def provenance(self) -> dict[str, object]:
        """The inputs of both runs and the token in question, for the attributes of a result."""
        return {
            "text": self.clean_text,
            "tokens": list(self.tokens),
            "prompt": self.prompt,
            "target_token": self.target,
            "other_token": self.other,
        }

    def metric(self, name: str) -> metrics.Metric:
        """Make the metric `name` of the token in question, or of the text up to and with it.

        Raises:
            InputError: there is no such metric.
        """
        return make_metric(name, self.tokens, self.prompt, (self.target, self.other))


def find_contrast(
    model: Whisper,
    clean: Float[np.ndarray, " clean_samples"],
    corrupted: Float[np.ndarray, " corrupted_samples"],
    *,
    language: str | None = None,
    sites: Iterable[str] = (),
) -> Contrast:
    """Transcribe both clips and find the first token in which they differ.

    Args:
        model: a model with a tokenizer.
        clean: 16 kHz samples, at most 30 s.
        corrupted: 16 kHz samples, at most 30 s.
        language: language of both clips; by default detected in the clean one.
        sites: encoder activations to keep of both runs, for a sweep.

    Returns:
        The common beginning and the two tokens that follow it.

    Raises:
        InputError: a clip is too long, or both clips have the same transcript.
    """
    tokenizer, sites = require_tokenizer(model), tuple(sites)
    first = make_utterance(model, clean, language=language, sites=sites, name="The clean clip")
    second = make_utterance(
        model, corrupted, language=first.language, sites=sites, name="The corrupted clip"
    )
    a, b = ([*_text(one), tokenizer.end_of_text] for one in (first, second))
    texts = [tokenizer.decode(_text(one)).strip() for one in (first, second)]
    if a == b:
        raise InputError(
            f"Both clips are transcribed as {texts[0]!r}: choose two that the model hears apart."
        )
    parts = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    shared = first.tokens[: first.prompt + parts]
    return Contrast(
        clean=replace(first, tokens=shared),
        corrupted=replace(second, tokens=shared),
        target=a[parts],
        other=b[parts],
        transcript=_as_long_as(first, second),
        clean_text=texts[0],
        corrupted_text=texts[1],
    )


def ask_word(
    model: Whisper,
    clean: Float[np.ndarray, " clean_samples"],
    reference: Float[np.ndarray, " reference_samples"],
    *,
    text: str | None = None,
    word: str | None = None,
    language: str | None = None,
    sites: Iterable[str] = (),
) -> Contrast:
    """Give both runs one transcript up to a word, and ask for that word.

    Args:
        model: a model with a tokenizer.
        clean: 16 kHz samples, at most 30 s.
        reference: audio of the corrupted run: noise, silence or another clip, at most 30 s.
        text: the transcript; by default the model's own of the clean clip.
        word: the word whose first token is asked for, `word:2` for its second occurrence; by
            default the last word.
        language: spoken language; by default detected in the clean clip.
        sites: encoder activations to keep of both runs, for a sweep.

    Returns:
        The tokens before the word, and its first token. `other` is the token that the reference
        run finds most probable there, other than the target.

    Raises:
        InputError: a clip is too long, or the transcript lacks the word or has it several times.
    """
    both = _both(model, clean, reference, text, language, tuple(sites))
    tokens = np.asarray(both[0].tokens).tolist()
    return _ask(model, *both, position_of_word(require_tokenizer(model), tokens, word))


def ask_transcript(
    model: Whisper,
    clean: Float[np.ndarray, " clean_samples"],
    reference: Float[np.ndarray, " reference_samples"],
    *,
    text: str | None = None,
    language: str | None = None,
    sites: Iterable[str] = (),
) -> Contrast:
    """Give both runs one whole transcript; the token asked for last is the end of the text.

    Args:
        model: see `ask_word`.
        clean: see `ask_word`.
        reference: see `ask_word`.
        text: see `ask_word`.
        language: see `ask_word`.
        sites: see `ask_word`.

    Returns:
        All tokens, whose `cross_entropy` is that of the whole transcript.

    Raises:
        InputError: a clip is too long.
    """
    both = _both(model, clean, reference, text, language, tuple(sites))
    return _ask(model, *both, len(both[0].tokens))


def _both(
    model: Whisper,
    clean: np.ndarray,
    reference: np.ndarray,
    text: str | None,
    language: str | None,
    sites: tuple[str, ...],
) -> tuple[EncodedUtterance, EncodedUtterance]:
    """Make the run of the clean clip, and that of the reference with the same tokens."""
    first = make_utterance(
        model, clean, text=text, language=language, sites=sites, name="The clean clip"
    )
    if reference is clean:
        return first, first
    # The clean run's tokens replace this text; with an empty text nothing is generated.
    second = make_utterance(
        model, reference, text="", language=first.language, sites=sites, name="The corrupted clip"
    )
    return first, replace(second, tokens=first.tokens, prompt=first.prompt)


def _ask(
    model: Whisper, clean: EncodedUtterance, reference: EncodedUtterance, asked: int
) -> Contrast:
    """Ask both runs for the token at position `asked` of the transcript."""
    tokenizer = require_tokenizer(model)
    target = [*np.asarray(clean.tokens).tolist(), tokenizer.end_of_text][asked]
    given = clean.tokens[:asked]
    states = encode_utterance(model, reference).states
    logits = decode(model, given, states, sites=()).logits[-1]
    return Contrast(
        clean=replace(clean, tokens=given),
        corrupted=replace(reference, tokens=given),
        target=target,
        other=most_probable_other(np.asarray(logits), target),
        transcript=_as_long_as(clean, reference),
        clean_text=tokenizer.decode(_text(clean)).strip(),
        corrupted_text=None,
    )


def most_probable_other(logits: Float[np.ndarray, " d_vocab"], target: int) -> int:
    """Return the most probable token other than `target`."""
    best = np.argsort(-logits)[:2]
    return int(best[1] if best[0] == target else best[0])


def _as_long_as(clean: EncodedUtterance, other: EncodedUtterance) -> EncodedUtterance:
    return replace(clean, frames=max(clean.frames or 0, other.frames or 0))


def _text(utterance: EncodedUtterance) -> list[int]:
    """Return the tokens after the prompt."""
    return np.asarray(utterance.tokens).tolist()[utterance.prompt :]


def position_of_word(tokenizer: Tokenizer, tokens: Sequence[int], word: str | None) -> int:
    """Return the position of the first token of a word: `word:2`, or the last word by default.

    Raises:
        InputError: the tokens have no words, or lack the word, or have it several times.
    """
    words = [named for named in words_of(tokenizer, tokens) if named[0]]
    if not words:
        raise InputError("The transcript has no words to ask for: give one with --text.")
    if word is None:
        return words[-1][1][0]
    name, _, number = word.rpartition(":")
    text, which = (name, int(number)) if name and number.isdecimal() else (word, 0)
    wanted = plain_word(text)
    starts = [start for text, (start, _) in words if text == wanted]
    if not starts:
        known = ", ".join(dict.fromkeys(text for text, _ in words))
        raise InputError(f"There is no word {wanted!r} in the transcript; its words are: {known}.")
    if which > len(starts) or (which == 0 and len(starts) > 1):
        raise InputError(
            f"The word {wanted!r} occurs {len(starts)} times: write {wanted}:1 for the first."
        )
    return starts[which - 1]
