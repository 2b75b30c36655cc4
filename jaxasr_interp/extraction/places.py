"""Finding the positions of requests in one clip."""

import re
from collections.abc import Sequence

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.request import Request
from jaxasr_interp.extraction.texts import GivenText
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.speech.positions import plain_word, resolve_windows
from jaxasr_interp.speech.tables import Row


def positions(request: Request, row: Row, frames: int, run: GivenText | None) -> list[int]:
    """Find the positions of a request in one clip, in the form that `reductions.reduce` takes.

    Args:
        request: the request.
        row: columns of the clip.
        frames: number of frames that hold sound.
        run: text of the decoder's run, if the request needs it.

    Raises:
        InputError: there is no such place in this clip.
    """
    finer = 2 if request.site_axes[request.axis] == "mel_frame" else 1
    size = len(run.tokens) if request.counts_tokens and run else frames * finer
    match request.reduction:
        case "all":
            return [0, size] if request.counts_tokens else [0, np.iinfo(np.int32).max]
        case "every":
            return [0, size]
        case "at":
            return [_place(place, size, finer, request) for place in request.places]
        case "end":
            return [size - 1]
        case "word":
            assert run is not None
            word = _find(request.argument, row, run.words)
            window = word.tokens if request.counts_tokens else word.frames
            return [edge * finer for edge in window]
        case _ if request.counts_tokens and run:
            if run.prompt + 1 == size:
                raise InputError(f"There is no text to take {request} of.")
            return [run.prompt, size - 1]
        case _:
            return [0, size]


def anywhere(request: Request) -> list[int]:
    """Return arbitrary valid positions, for a slot without a clip."""
    single = {"at": [0] * len(request.places), "end": [0]}
    return single.get(request.reduction, [0, 1])


def _place(place: str, size: int, finer: int, request: Request) -> int:
    timed = re.search(r"\d(?=m?s$)", place) is not None
    ((start, _),) = resolve_windows(place, size // finer if timed else size, timed=True)
    return start * finer if timed else start


def _find(column: str, row: Row, words: Sequence[Word]) -> Word:
    wanted = row.get(column, "")
    found = next((word for word in words if word.name == plain_word(wanted)), None)
    if found is None or not wanted:
        raise InputError(f"The word {wanted!r} (column {column}) is not in the text.")
    return found
