"""Targets of probes: the labels of examples, turned into numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from jaxasr_interp.errors import InputError
from jaxasr_interp.probes.losses import Kind

Labels = Sequence[Any] | Shaped[np.ndarray, " example"]


@dataclasses.dataclass(frozen=True)
class Target:
    """The labels of all examples.

    Attributes:
        name: of the target.
        kind: `"binary"`, `"classes"` or `"regression"`.
        classes: names of the classes in the order of their numbers; empty for a regression.
        labels: class numbers or values; NaN where the label is not known.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    labels: Float[np.ndarray, " example"]

    @property
    def known(self) -> Bool[np.ndarray, " example"]:
        """Which examples have a label."""
        return np.isfinite(self.labels)

    @property
    def n_outputs(self) -> int:
        """Number of outputs: one for each of three or more classes, otherwise a single one."""
        return len(self.classes) if self.kind == "classes" else 1


def read_target(labels: Labels, name: str = "target") -> Target:
    """Turn labels into numbers: floats are values of a regression, anything else names classes.

    Args:
        labels: of every example; `""`, `None` and NaN are not known.
        name: of the target.

    Raises:
        InputError: fewer than two different labels.
    """
    given = np.asarray(labels)
    if given.ndim != 1:
        raise InputError(f"The labels of {name!r} are {given.shape}: expected one an example.")
    known = [label for label in given.tolist() if not is_missing(label)]
    if all(isinstance(label, float) for label in known):
        values = np.array([np.nan if is_missing(x) else float(x) for x in given.tolist()])
        kind, classes = "regression", ()
    else:
        texts = ["" if is_missing(label) else str(label) for label in given.tolist()]
        classes = tuple(sorted({text for text in texts if text}, key=_order))
        number = {text: float(i) for i, text in enumerate(classes)}
        values = np.array([number.get(text, np.nan) for text in texts])
        kind = "binary" if len(classes) == 2 else "classes"
    if len(np.unique(values[np.isfinite(values)])) < 2:
        raise InputError(f"The labels of {name!r} are all alike: there is nothing to tell apart.")
    return Target(name, kind, classes, values)


def is_missing(label: Any) -> bool:
    """Tell whether a label is not known: `""`, `None` or NaN."""
    return label is None or label == "" or label != label


def _order(text: str) -> tuple[bool, float, str]:
    """Sort key of a class name: numbers come first, by size; then words, by letter."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
