"""Labels from a column of a store: its own values, or classes made of them."""

import fnmatch
from collections import Counter
from collections.abc import Sequence

from jaxasr_interp.errors import InputError


def parse_target(text: str) -> tuple[str, str, dict[str, list[str]]]:
    """Read `gender`, or `speech=kind:yes=read_en|gender;no=nonspeech`.

    The second names a target, its column, and classes with the patterns (`*`, `?`) of the values
    that they take; other values are left out.

    Returns:
        The target's name, the column, and the patterns of each class; no patterns where the
        column's own values are the classes.

    Raises:
        InputError: the text is something else.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        return text, text, {}
    column, colon, classes = rest.partition(":")
    parts = [part.partition("=") for part in classes.split(";")]
    if not (name and column and colon) or any(not (a and b and c) for a, b, c in parts):
        raise InputError(
            f"The target {text!r} cannot be read: write a column, or "
            "NAME=COLUMN:CLASS=VALUE|VALUE;CLASS=VALUE."
        )
    return name, column, {label: patterns.split("|") for label, _, patterns in parts}


def relabel(values: Sequence[str], patterns: dict[str, list[str]], least: int = 0) -> list[str]:
    """Return each value's class; `""` if it has none, or one of fewer than `least` values."""
    labels = [str(value) for value in values]
    if patterns:
        labels = [
            next(
                (
                    label
                    for label, globs in patterns.items()
                    if any(fnmatch.fnmatchcase(value, glob) for glob in globs)
                ),
                "",
            )
            for value in labels
        ]
    counts = Counter(labels)
    return [label if counts[label] >= least else "" for label in labels]
