"""Repetition in a transcript, and whether the decoder was caught in a loop."""

import dataclasses
import itertools
import unicodedata
import zlib
from collections.abc import Sequence

_LONGEST_PHRASE = 10
_LONGEST_STRING = 30
_LOOP_COMPRESSION = 2.4
_LOOP_TIMES = 3
_LOOP_WORDS = 5
_LOOP_CHARACTERS = 10


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Words (or characters) that are repeated immediately.

    Attributes:
        ngram: the words (or characters) that are repeated.
        times: how many times they occur in a row; 1 is no repetition.
    """

    ngram: tuple[str, ...]
    times: int

    @property
    def excess(self) -> int:
        """Number of words (or characters) beyond the first copy: `n · (times - 1)`."""
        return len(self.ngram) * (self.times - 1)


def compression_ratio(text: str) -> float:
    """Compute how well a text compresses; openai/whisper detects repetition by this ratio.

    `bytes(UTF-8) / bytes(zlib(UTF-8))`; 0 for an empty text.

    Args:
        text: the transcript of one window of 30 s; longer texts compress better.

    Returns:
        The ratio: ordinary speech in Latin letters stays below 2.
    """
    encoded = text.encode()
    return len(encoded) / len(zlib.compress(encoded))


def repeats(items: Sequence[str], longest: int = _LONGEST_PHRASE) -> tuple[Repetition, ...]:
    """Find every n-gram of a sequence that is repeated immediately.

    Args:
        items: words, or the characters of one word.
        longest: length of the longest n-gram to look for.

    Returns:
        What occurs at least twice in a row, the shortest n-grams first.
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
    """Find the n-gram that a text repeats most often in a row.

    Words are compared without case and the punctuation around them, up to 10 at a time. Inside a
    word, strings of up to 30 characters count if they make a loop (`is_loop`): a double letter is
    no repetition, and a language written without spaces may put a whole text into one word.

    Args:
        text: a transcript.

    Returns:
        The n-gram of words, or of characters, that occurs most times in a row; among equals the
        one that fills most. Where nothing is repeated, the first word, once; for an empty text no
        word, 0 times.
    """
    words = _words(text)
    none = Repetition(tuple(words[:1]), len(words[:1]))
    found = [none, *repeats(words), *_strings(text)]
    return max(found, key=lambda repetition: (repetition.times, repetition.excess))


def is_loop(text: str) -> bool:
    """Tell whether the decoder was caught in a loop.

    Either the text compresses more than 2.4-fold, openai/whisper's threshold; or, since a short
    text never does, an n-gram occurs at least 3 times in a row and its copies beyond the first
    hold at least 5 words, or 10 characters inside one word. Compression is measured with one byte
    for each character: UTF-8 spends two or three bytes on a character of other scripts, so that
    30 s of ordinary Hindi or Thai would compress more than 2.4-fold too. For ASCII text the
    measure is `compression_ratio`.

    People say things twice for emphasis, so two times are never a loop, and they repeat short
    things more often than long ones. Because the excess is counted, one rule serves all lengths:
    one word must come 6 times, two words 4 times, three or more 3 times. "No, no, no, no", "ha ha
    ha" and "thank you, thank you, thank you" are speech; "thank you" a fourth time is a loop. A
    character must come 11 times, a syllable of two characters 6 times, so that "hmmmm", "hahaha"
    and "1,000,000" are no loops.

    Args:
        text: the transcript of one window of 30 s.

    Returns:
        Whether the text is a loop.
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
    """Replace the distinct characters of a text by those of ASCII, unless it is ASCII."""
    if text.isascii():
        return text
    return text.translate({ord(old): new for new, old in enumerate(dict.fromkeys(text))})


def _strings(text: str) -> list[Repetition]:
    """Find loops inside single words, with their punctuation."""
    long = [word for word in text.casefold().split() if len(word) > _LOOP_CHARACTERS]
    found = itertools.chain.from_iterable(repeats(word, _LONGEST_STRING) for word in long)
    return [repetition for repetition in found if _loops(repetition, _LOOP_CHARACTERS)]


def _words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation; a word of signs alone is kept."""
    signs = "".join(c for c in set(text) if unicodedata.category(c)[0] in "PS")
    return [word.strip(signs) or word for word in text.casefold().split()]
