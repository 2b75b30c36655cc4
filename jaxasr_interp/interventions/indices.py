"""Layers and heads as text: `0,3-5,-1`."""

import re

from jaxasr_interp.errors import InputError


def parse_indices(what: str, text: str | None) -> list[int] | None:
    """Read `0,3-5,-1` as `[0, 3, 4, 5, -1]`.

    Raises:
        InputError: the text is something else.
    """
    if text is None:
        return None
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(-?\d+)|(\d+)-(\d+))\s*", part)
        if match is None or (match[2] and int(match[2]) > int(match[3])):
            raise InputError(f"The {what} {text!r} cannot be read: write them as 0,3-5,-1.")
        indices += [int(match[1])] if match[1] else range(int(match[2]), int(match[3]) + 1)
    return indices
