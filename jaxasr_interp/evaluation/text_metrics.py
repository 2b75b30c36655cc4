"""Errors of a transcript against a reference, and words written where nobody speaks.

Texts are compared after Whisper's own normalisation (Radford et al. 2022, appendix C), so that
case, punctuation and spelled-out numbers count as no error.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from jaxasr_interp.speech.languages import LANGUAGES, language_code, without_warnings

if TYPE_CHECKING:
    import jiwer

# Languages written without spaces: the normaliser makes every letter a word.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


@dataclasses.dataclass(frozen=True)
class Errors:
    """Counts of the cheapest edit from reference to hypothesis; `+` adds the counts of clips.

    `sum(clips, Errors()).rate` is the error rate of a corpus.

    Attributes:
        hits: number of words (or characters) that are right.
        substitutions: number that are written as another one.
        deletions: number that are left out.
        insertions: number that are written but not in the reference.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def reference_length(self) -> int:
        """Number of words (or characters) of the reference: `H + S + D`."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Error rate `(S + D + I) / (H + S + D)`.

        For an empty reference it is 0 if nothing was written, otherwise infinite.
        """
        wrong = self.substitutions + self.deletions + self.insertions
        if self.reference_length:
            return wrong / self.reference_length
        return float("inf") if wrong else 0.0


def normalize(text: str, language: str = "en", spelling: Mapping[str, str] | None = None) -> str:
    """Normalise a text as Whisper's authors do before they compare it.

    English loses case, punctuation, fillers (um, uh) and what stands in brackets; contractions are
    spelled out and numbers written in digits. Other languages lose case, symbols, combining marks
    and what stands in brackets; languages written without spaces are spaced letter by letter. As in
    the published error rates, three dots that end an English text leave the word `.` behind.

    Args:
        text: a transcript.
        language: code or English name.
        spelling: English spellings and what to write instead (a checkpoint's `normalizer.json`).

    Returns:
        Words with single spaces between them.

    Raises:
        InputError: a language that Whisper does not know.
    """
    code = language_code(language, LANGUAGES)
    if spelling and code == "en":
        return _english_type()(dict(spelling))(text).strip()
    return _normalizer(code)(text).strip()


def word_errors(
    reference: str,
    hypothesis: str,
    language: str = "en",
    spelling: Mapping[str, str] | None = None,
) -> Errors:
    """Count the word errors of a transcript, both texts normalised.

    Args:
        reference: what is said; may be empty: then every word of the hypothesis is an insertion.
        hypothesis: what the model wrote.
        language: code or English name. In one written without spaces, every letter is a word.
        spelling: as `normalize` takes it.

    Returns:
        The counts; their `rate` is the word error rate.

    Raises:
        InputError: a language that Whisper does not know.
    """
    import jiwer

    said, written = (normalize(text, language, spelling) for text in (reference, hypothesis))
    return _errors(jiwer.process_words(said, written))


def character_errors(reference: str, hypothesis: str, language: str = "en") -> Errors:
    """Count the character errors of a transcript, both texts normalised.

    The space between two words is a character, except in languages written without spaces.

    Args:
        reference: what is said; may be empty: then every character written is an insertion.
        hypothesis: what the model wrote.
        language: code or English name.

    Returns:
        The counts; their `rate` is the character error rate.

    Raises:
        InputError: a language that Whisper does not know.
    """
    import jiwer

    said, written = (normalize(text, language) for text in (reference, hypothesis))
    if language_code(language, LANGUAGES) in _UNSPACED:
        said, written = said.replace(" ", ""), written.replace(" ", "")
    return _errors(jiwer.process_characters(said, written))


def words_on_silence(text: str, language: str = "en") -> bool:
    """Tell whether the transcript of a clip without speech is a hallucination: it has any word.

    Fillers and what stands in brackets (`um`, `[Music]`) are no words, nor are signs (`♪`, `...`).

    Args:
        text: the transcript.
        language: code or English name.

    Returns:
        Whether a letter or digit is left after normalisation.

    Raises:
        InputError: a language that Whisper does not know.
    """
    return any(character.isalnum() for character in normalize(text, language))


def _errors(output: "jiwer.WordOutput | jiwer.CharacterOutput") -> Errors:
    return Errors(output.hits, output.substitutions, output.deletions, output.insertions)


@functools.cache
def _normalizer(code: str) -> Callable[[str], str]:
    if code == "en":
        return _english_type()({})
    with without_warnings():
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=code in _UNSPACED)


@functools.cache
def _english_type() -> Callable[[dict[str, str]], Callable[[str], str]]:
    with without_warnings():
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer
