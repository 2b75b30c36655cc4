"""What a transcript is worth: errors against a reference, loops, and words where nobody speaks.

Texts are compared after Whisper's own normalisation (Radford et al. 2022, appendix C), so that
case, punctuation and spelled-out numbers count as no error.
"""

import dataclasses
import functools
import itertools
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jaxasr_interp.errors import InputError
from jaxasr_interp.tokens import _language_names, _without_warnings

if TYPE_CHECKING:
    import jiwer

# Written without spaces: the normaliser makes every letter a word.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
_LONGEST_PHRASE = 10
_LONGEST_STRING = 30
_LOOP_COMPRESSION = 2.4
_LOOP_TIMES = 3
_LOOP_WORDS = 5
_LOOP_CHARACTERS = 10


@dataclasses.dataclass(frozen=True)
class Errors:
    """Counts of the cheapest edit from reference to hypothesis; `+` adds clips up.

    `sum(clips, Errors()).rate` is the error rate of a corpus.

    Attributes:
        hits: words (or characters) that are right.
        substitutions: written as another.
        deletions: left out.
        insertions: written though not in the reference.
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
        """Words (or characters) of the reference: `H + S + D`."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Error rate `(S + D + I) / (H + S + D)`.

        Of an empty reference: 0 if nothing was written, otherwise infinite.
        """
        wrong = self.substitutions + self.deletions + self.insertions
        return _ratio(wrong, self.reference_length, empty=0.0)


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Words (or characters) that follow themselves immediately.

    Attributes:
        ngram: what is repeated.
        times: how often it stands there in a row; 1 is no repetition.
    """

    ngram: tuple[str, ...]
    times: int

    @property
    def excess(self) -> int:
        """Words (or characters) beyond the first copy: `n · (times - 1)`."""
        return len(self.ngram) * (self.times - 1)


def normalize(text: str, language: str = "en", spelling: Mapping[str, str] | None = None) -> str:
    """A text as Whisper's authors compare it.

    English loses case, punctuation, fillers (um, uh) and what stands in brackets; contractions are
    spelled out and numbers written in digits. Other languages lose case, symbols, combining marks
    and what stands in brackets; those written without spaces are spaced letter by letter. As in
    the published error rates, three dots that end an English text leave the word `.` behind.

    Args:
        text: a transcript.
        language: code or English name.
        spelling: English spellings and what to write instead (a checkpoint's `normalizer.json`).

    Returns:
        Words with single spaces between.

    Raises:
        InputError: a language that Whisper does not know.
    """
    code = _language_code(language)
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
        language: code or English name. Without spaces in writing, every letter is a word.
        spelling: as `normalize` takes it.

    Returns:
        The counts; their `rate` is the word error rate.

    Raises:
        InputError: a language that Whisper does not know.
    """
    import jiwer

    said, written = (normalize(text, language, spelling) for text in (reference, hypothesis))
    return _errors(jiwer.process_words(said, written))


def character_errors(
    reference: str,
    hypothesis: str,
    language: str = "en",
    spelling: Mapping[str, str] | None = None,
) -> Errors:
    """Count the character errors of a transcript, both texts normalised.

    The space between two words is a character, except in languages written without.

    Args:
        reference: what is said; may be empty: then all of the hypothesis is inserted.
        hypothesis: what the model wrote.
        language: code or English name.
        spelling: as `normalize` takes it.

    Returns:
        The counts; their `rate` is the character error rate.

    Raises:
        InputError: a language that Whisper does not know.
    """
    import jiwer

    said, written = (normalize(text, language, spelling) for text in (reference, hypothesis))
    if _language_code(language) in _UNSPACED:
        said, written = said.replace(" ", ""), written.replace(" ", "")
    return _errors(jiwer.process_characters(said, written))


def length_ratio(
    reference: str,
    hypothesis: str,
    language: str = "en",
    spelling: Mapping[str, str] | None = None,
) -> float:
    """Words of the hypothesis over words of the reference, both texts normalised.

    Args:
        reference: what is said.
        hypothesis: what the model wrote.
        language: code or English name.
        spelling: as `normalize` takes it.

    Returns:
        Above 1 where too much was written. Of an empty reference: 1 if nothing was written,
        otherwise infinite.

    Raises:
        InputError: a language that Whisper does not know.
    """
    said, written = (
        len(normalize(text, language, spelling).split()) for text in (reference, hypothesis)
    )
    return _ratio(written, said, empty=1.0)


def words_on_silence(text: str, language: str = "en") -> bool:
    """Whether the transcript of a clip without speech is a hallucination: it has any word at all.

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


def compression_ratio(text: str) -> float:
    """How well a text compresses, by which openai/whisper knows repetition.

    `bytes(UTF-8) / bytes(zlib(UTF-8))`; 0 for an empty text.

    Args:
        text: the transcript of one window of 30 s; longer texts compress better.

    Returns:
        The ratio: ordinary speech in Latin letters stays below 2.
    """
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded))


def repeats(items: Sequence[str], longest: int = _LONGEST_PHRASE) -> tuple[Repetition, ...]:
    """Everything in a sequence that follows itself immediately.

    Args:
        items: words, or the characters of one.
        longest: length of the longest n-gram to look for.

    Returns:
        Repetitions of two times and more, those of the shortest n-grams first.
    """
    found = []
    for n in range(1, min(longest, len(items) // 2) + 1):
        start = 0
        again = (item == later for item, later in zip(items, items[n:], strict=False))
        for same, group in itertools.groupby(again):
            length = sum(1 for _ in group)
            if same and length >= n:
                found.append(Repetition(tuple(items[start : start + n]), length // n + 1))
            start += length
    return tuple(found)


def longest_repeat(text: str) -> Repetition:
    """What a text repeats most often in a row.

    Words are compared without case and the punctuation around them, up to 10 at a time. Inside a
    word, strings of up to 30 characters count if they make a loop (`is_loop`): a double letter is
    no repetition, and a language written without spaces may put a whole text into one word.

    Args:
        text: a transcript.

    Returns:
        The n-gram of words, or of characters, that stands most times in a row; among equals the
        one that fills most. The first word, once, where nothing repeats; no word, 0 times, of an
        empty text.
    """
    words = _words(text)
    none = Repetition(tuple(words[:1]), len(words[:1]))
    found = [none, *repeats(words), *_strings(text)]
    return max(found, key=lambda repetition: (repetition.times, repetition.excess))


def is_loop(text: str) -> bool:
    """Whether the decoder was caught in a loop.

    Either the text compresses more than 2.4-fold, openai/whisper's threshold; or, since a short
    text never does, something stands at least 3 times in a row and its copies beyond the first
    hold at least 5 words, or 10 characters inside one word. The compression is counted with one
    byte a character: in the two or three bytes that UTF-8 spends on other scripts, 30 s of
    ordinary Hindi or Thai compress more than 2.4-fold too. For ASCII it is `compression_ratio`.

    People say things twice for emphasis, so two times are never a loop, and they repeat short
    things more often than long ones. Counting the excess needs one rule for all lengths: one word
    must come 6 times, two words 4 times, three or more 3 times. "No, no, no, no", "ha ha ha" and
    "thank you, thank you, thank you" are speech; "thank you" a fourth time is a loop. A character
    must come 11 times, a syllable of two 6 times, which leaves "hmmmm", "hahaha" and "1,000,000".

    Args:
        text: the transcript of one window of 30 s.

    Returns:
        Whether it is a loop.
    """
    words = _words(text)
    return (
        compression_ratio(_one_byte_each(text)) > _LOOP_COMPRESSION
        or any(_loops(repetition, _LOOP_WORDS) for repetition in repeats(words))
        or bool(_strings(text))
    )


def _loops(repetition: Repetition, excess: int) -> bool:
    return repetition.times >= _LOOP_TIMES and repetition.excess >= excess


def _one_byte_each(text: str) -> str:
    """The text, its distinct characters renamed to the first ones of ASCII if it is not ASCII."""
    if text.isascii():
        return text
    return text.translate({ord(old): new for new, old in enumerate(dict.fromkeys(text))})


def _strings(text: str) -> list[Repetition]:
    """Loops inside single words, their punctuation included."""
    long = [word for word in text.casefold().split() if len(word) > _LOOP_CHARACTERS]
    found = itertools.chain.from_iterable(repeats(word, _LONGEST_STRING) for word in long)
    return [repetition for repetition in found if _loops(repetition, _LOOP_CHARACTERS)]


def _words(text: str) -> list[str]:
    """Words in lower case without the punctuation around them; signs alone stay."""
    signs = "".join(c for c in set(text) if unicodedata.category(c)[0] in "PS")
    return [word.strip(signs) or word for word in text.casefold().split()]


def _ratio(part: int, whole: int, *, empty: float) -> float:
    """`part / whole`; of an empty whole infinite, or `empty` if the part is empty too."""
    if whole:
        return part / whole
    return float("inf") if part else empty


def _errors(output: "jiwer.WordOutput | jiwer.CharacterOutput") -> Errors:
    return Errors(output.hits, output.substitutions, output.deletions, output.insertions)


def _language_code(language: str) -> str:
    names = _language_names()
    by_name = {name: code for code, name in names.items()}
    code = by_name.get(language.lower(), language.lower())
    if code not in names:
        raise InputError(
            f"Unknown language {language!r}: Whisper knows {', '.join(sorted(names))}."
        )
    return code


@functools.cache
def _normalizer(code: str) -> Callable[[str], str]:
    if code == "en":
        return _english_type()({})
    with _without_warnings():
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=code in _UNSPACED)


@functools.cache
def _english_type() -> Callable[[dict[str, str]], Callable[[str], str]]:
    with _without_warnings():
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer
