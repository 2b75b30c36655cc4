"""The folds of a cross-validation: which examples train, validate and test.

While fold k tests, fold k + 1 validates and the other folds train.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxasr_interp.errors import InputError
from jaxasr_interp.probes.targets import Target


def make_folds(
    target: Target,
    n_folds: int,
    seed: int,
    groups: Shaped[np.ndarray, " example"] | None = None,
) -> Int[np.ndarray, " example"]:
    """Deal the examples into folds.

    Every class is spread evenly over the folds. Examples of one group (a speaker, a word) stay
    together: groups go one by one, the largest first, to the fold that has least of their classes.

    Args:
        target: its labels are spread; examples without a label belong to no fold.
        n_folds: number of folds.
        seed: decides the order in which equal examples and groups are dealt.
        groups: the group of each example; by default each example is its own group.

    Returns:
        The fold of each example, -1 where its label is not known.

    Raises:
        InputError: a class has fewer members, or groups, than there are folds.
    """
    known = np.flatnonzero(target.known)
    names = np.arange(len(target.labels)) if groups is None else np.asarray(groups)
    units, unit_of = np.unique(names[known], return_inverse=True)
    if target.kind == "regression":
        classes = np.zeros(len(known), int)
    else:
        classes = target.labels[known].astype(int)
    counts = np.zeros((len(units), classes.max() + 1))
    np.add.at(counts, (unit_of, classes), 1)
    _check_enough(target, counts, n_folds, "examples" if groups is None else "groups")
    folds = np.full(len(target.labels), -1)
    folds[known] = _deal(counts, n_folds, np.random.default_rng(seed))[unit_of]
    return folds


def parts(
    folds: Int[np.ndarray, " example"], fold: int, n_folds: int
) -> tuple[Bool[np.ndarray, " example"], Bool[np.ndarray, " example"]]:
    """Tell which examples train and which validate while `fold` tests.

    If `fold` is `n_folds`, no fold tests and all known examples train.
    """
    if fold == n_folds:
        return folds >= 0, np.zeros(len(folds), bool)
    validates = folds == (fold + 1) % n_folds
    return (folds >= 0) & (folds != fold) & ~validates, validates


def _check_enough(
    target: Target, counts: Float[np.ndarray, "unit class"], n_folds: int, what: str
) -> None:
    each = (counts > 0).sum(0)
    if each.min() < n_folds:
        fewest = int(each.argmin())
        of = f"Class {target.classes[fewest]!r} of {target.name!r}" if target.classes else "It"
        raise InputError(
            f"{of} has {each[fewest]} {what}: expected one for each of {n_folds} folds. Leave the "
            "class out, or ask for fewer folds."
        )


def _deal(
    counts: Float[np.ndarray, "unit class"], n_folds: int, generator: np.random.Generator
) -> Int[np.ndarray, " unit"]:
    shuffled = generator.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]
    share = counts / counts.sum(0)
    held = np.zeros((n_folds, counts.shape[1]))
    folds = np.zeros(len(counts), int)
    for unit in order:
        # How full each fold is of this unit's classes; between equals, how full it is altogether.
        full = held @ share[unit] + 1e-6 * held.sum(1)
        folds[unit] = full.argmin()
        held[folds[unit]] += share[unit]
    return folds


def shuffle_labels(
    labels: Float[np.ndarray, " example"],
    folds: Int[np.ndarray, " example"],
    seed: int,
    groups: Shaped[np.ndarray, " example"] | None = None,
) -> Float[np.ndarray, " example"]:
    """Shuffle the labels within every fold: a control task (Hewitt and Liang 2019).

    Each fold keeps its share of every class. Otherwise a class that is rare in training would be
    common in the test, and the scores of chance would be too low. Where all examples of a group
    share their label, whole groups exchange labels, so that what a probe learns about one example
    of a group still holds for the others. Where they do not, single examples exchange labels.
    """
    generator = np.random.default_rng([seed, 1])
    units = np.arange(len(labels)) if groups is None else np.asarray(groups)
    known = np.flatnonzero(folds >= 0)
    _, first, unit_of = np.unique(units[known], return_index=True, return_inverse=True)
    if (labels[known][first][unit_of] != labels[known]).any():
        units = np.arange(len(labels))
    dealt = np.full(len(labels), np.nan)
    for fold in range(folds.max() + 1):
        members = np.flatnonzero(folds == fold)
        _, first, unit_of = np.unique(units[members], return_index=True, return_inverse=True)
        dealt[members] = generator.permutation(labels[members][first])[unit_of]
    return dealt
