"""Reading the positions that a sweep patches: tokens, words, frames, milliseconds or seconds.

A window is `(start, stop)`, tokens of the decoder or frames of the encoder, `stop` excluded. As
text, comma-separated:

=========================  ====================================================================
`3`, `-1`                  one position, from the end if negative
`4:12`, `0:1500:50`        every position from `start` up to `stop`, or every `step`-th, each on
                           its own
`4..12`                    the positions from 4 up to 12 as one window
`1.2s`, `800ms:1600ms`     the same in time (encoder); 20 ms are one frame
`word:grass`               the tokens or frames of a word, as one window; each time it occurs
`all`                      every position at once
=========================  ====================================================================
"""

import operator
import re
from collections.abc import Sequence

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.tokenizer import Tokenizer

type Window = tuple[int, int]

FRAMES_PER_SECOND = 50
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")


def resolve_windows(
    positions: str | Sequence[int | Window | str] | None,
    size: int,
    *,
    width: int | str = 1,
    stride: int | str | None = None,
    words: Sequence[tuple[str, Window]] = (),
    timed: bool = False,
) -> tuple[Window, ...]:
    """Turn positions, named by index, range, window, time or word, into windows.

    Args:
        positions: text as above, or a sequence of positions, `(start, stop)` windows and texts;
            `None` for all of them, `stride` apart.
        size: how many positions there are.
        width: how many positions a patch starting at a single position covers, cut at the end; or
            a time, as in `200ms`.
        stride: distance between starts where `positions` is `None` or a range without a step, as
            `width`, which it is by default.
        words: the run's words and their windows, of tokens or of frames.
        timed: whether positions are frames, so that times name them.

    Returns:
        The windows, in the order given.

    Raises:
        InputError: the set is empty, a window is named twice, or it is outside the run.
    """
    width = _width("window", width, timed)
    stride = width if stride is None else _width("stride", stride, timed)
    if positions is None:
        positions = [f"0:{size}"]
    elif isinstance(positions, str):
        positions = [part.strip() for part in positions.split(",")]
    windows: list[Window] = []
    for item in positions:
        if isinstance(item, str):
            windows += _parse(item, size, width, stride, words, timed)
        elif isinstance(item, tuple | list):
            start, stop = (_whole(edge) for edge in item)
            windows.append(_window((start, stop), size))
        else:
            windows.append(_starting_at(_whole(item), size, width))
    if not windows:
        raise InputError("The set of positions is empty: choose at least one.")
    twice = [window for window in windows if windows.count(window) > 1]
    if twice:
        start, stop = twice[0]
        raise InputError(f"Position {start} (up to {stop}) is named twice.")
    return tuple(windows)


def _width(what: str, value: int | str, timed: bool) -> int:
    """A number of positions, or of frames from a time such as `0.2s` or `200ms`."""
    if not isinstance(value, str):
        width = _whole(value)
    else:
        time, number = _TIME.fullmatch(value.strip()), re.fullmatch(r"-?\d+", value.strip())
        if time is None and number is None:
            raise InputError(f"The {what} {value!r} cannot be read: write 10, 0.2s or 200ms.")
        if time is not None and not timed:
            raise InputError(f"The {what} {value!r} is a time: this site's positions are tokens.")
        width = int(value) if time is None else _frames(time)
    if width < 1:
        raise InputError(f"The {what} is {value}: expected at least 1.")
    return width


def _frames(time: re.Match[str]) -> int:
    seconds = float(time[1]) / (1000 if time[2] == "ms" else 1)
    return round(seconds * FRAMES_PER_SECOND)


def words_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[str, Window]]:
    """Return a transcript's words, lower case without punctuation, with their token windows."""
    words: list[tuple[str, Window]] = []
    for pos, token in enumerate(int(token) for token in tokens):
        if not tokenizer.is_text(token):
            continue
        text = tokenizer.label(token)
        if words and words[-1][1][1] == pos and not text.startswith(" "):
            before, (start, _) = words.pop()
            words.append((before + text, (start, pos + 1)))
        else:
            words.append((text, (pos, pos + 1)))
    return [(plain_word(text), window) for text, window in words]


def plain_word(text: str) -> str:
    """Return a word in lower case without the punctuation around it, as positions name it."""
    return re.sub(r"^\W+|\W+$", "", text.casefold())


def _whole(position: object) -> int:
    try:
        return operator.index(position)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise InputError(f"The position {position!r} is no whole number.") from None


def _parse(
    text: str,
    size: int,
    width: int,
    stride: int,
    words: Sequence[tuple[str, Window]],
    timed: bool,
) -> list[Window]:
    if text == "all":
        return [(0, size)]
    if text.startswith("word:"):
        return _find_word(text.removeprefix("word:"), words)
    if ".." in text:
        start, stop = _indices(text, text.split(".."), timed, 2)
        return [_window((start, stop), size)]
    if ":" in text:
        start, stop, *step = _indices(text, text.split(":"), timed, 3)
        start, stop = _window((start, stop), size)
        if step and step[0] < 1:
            raise InputError(f"The step in {text!r} is {step[0]}: expected at least 1.")
        starts = range(start, stop, step[0] if step else stride)
        return [_starting_at(position, size, width) for position in starts]
    (position,) = _indices(text, [text], timed, 1)
    return [_starting_at(position, size, width)]


def _indices(text: str, parts: Sequence[str], timed: bool, most: int) -> list[int]:
    if len(parts) > most:
        raise InputError(f"The positions {text!r} have too many parts: expected at most {most}.")
    return [_index(text, part, timed) for part in parts]


def _index(text: str, part: str, timed: bool) -> int:
    time = _TIME.fullmatch(part)
    if time is not None:
        if not timed:
            raise InputError(
                f"The position {part!r} is a time: decoder positions are tokens or words."
            )
        return _frames(time)
    try:
        return int(part)
    except ValueError:
        raise InputError(
            f"The positions {text!r} cannot be read: write 3, 4:12, 4..12, 1.2s, word:grass or all."
        ) from None


def _find_word(word: str, words: Sequence[tuple[str, Window]]) -> list[Window]:
    found = [window for text, window in words if text == plain_word(word)]
    if not found:
        known = ", ".join(text for text, _ in words) or "none"
        raise InputError(f"There is no word {word!r} in the run; its words are: {known}.")
    return found


def _starting_at(position: int, size: int, width: int) -> Window:
    if not -size <= position < size:
        raise InputError(f"There is no position {position}: the run has {size} positions.")
    start = int(position) % size
    return start, min(start + width, size)


def _window(window: Window, size: int) -> Window:
    start, stop = (int(edge) + size if edge < 0 else int(edge) for edge in window)
    if not 0 <= start < stop <= size:
        raise InputError(
            f"There is no window from {window[0]} up to {window[1]}: the run has {size} positions."
        )
    return start, stop
