"""The pieces of a transcript with their times: segments, and the words in them."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

from jaxasr_interp.generation.word_times import Stretch, align_within
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import summary
from jaxasr_interp.speech.utterance import Utterance

# A timestamp may be early or late by as much, so that those of repeated sentences still differ.
_FRAMES_AROUND = 25


@dataclasses.dataclass(frozen=True)
class TimedWord:
    """A word of a segment, with case and punctuation; `start` and `end` are in seconds."""

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of speech between two timestamps.

    `start` and `end` are in seconds; `mean_log_prob` and `no_speech_prob` are those of its window.
    `words` are its words, where their times were asked for.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    mean_log_prob: float
    no_speech_prob: float
    words: tuple[TimedWord, ...] = ()

    __repr__ = summary


def time_words(
    model: Whisper,
    window: Utterance,
    pieces: Sequence[tuple[int, int, int]],
    start: float,
) -> list[tuple[TimedWord, ...]]:
    """Find when the words of a window's segments are said.

    Args:
        model: a model with a tokenizer.
        window: the window with its prompt and the text of its segments, without timestamps.
        pieces: of each segment, in order, the number of text tokens, and its first encoder frame
            and the one after its last by its timestamps.
        start: where the window starts, in seconds.

    Returns:
        The words of each segment, which are looked for within 0.5 s of its timestamps. In a script
        without spaces a segment is one word.
    """
    ends = [window.prompt + end for end in itertools.accumulate(n for n, *_ in pieces)]
    stretches = [
        Stretch((end - n, end), (max(0, first - _FRAMES_AROUND), last + _FRAMES_AROUND))
        for end, (n, first, last) in zip(ends, pieces, strict=True)
    ]
    words: list[list[TimedWord]] = [[] for _ in pieces]
    for word in align_within(model, window, stretches):
        first, last = (round(start + edge, 2) for edge in word.seconds)
        piece = bisect.bisect_right(ends, word.tokens[0])
        words[piece].append(TimedWord(word.text, first, last))
    return [tuple(some) for some in words]
