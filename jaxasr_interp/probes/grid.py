"""The probes of one run: a labelling of the examples, a fold, a strength each."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.probes.splits import make_folds, parts, shuffle_labels
from jaxasr_interp.probes.targets import Target
from jaxasr_interp.pytree import pytree_dataclass


@dataclasses.dataclass(frozen=True)
class Labelling:
    """The labels of one target, or a shuffle of them, dealt into folds with one seed."""

    target: Target
    seed: int
    shuffled: bool
    labels: Float[np.ndarray, " example"]
    folds: Int[np.ndarray, " example"]


@dataclasses.dataclass(frozen=True)
class Split:
    """A fold of a labelling, or all its examples where the fold is `None`."""

    labelling: Labelling
    fold: int | None


@pytree_dataclass
class Weights:
    """What splits are to a solver, on the device.

    Attributes:
        labels: class numbers, or values in units of those that train.
        offset: what was subtracted from the values: their mean; 0 for classes.
        unit: what they were then divided by: their deviation; 1 for classes.
        members: which examples train.
        train: their weights, which sum to 1.
        validation: the weights of those that validate.
    """

    labels: Float[Array, "split example"]
    offset: Float[Array, " split"]
    unit: Float[Array, " split"]
    members: Bool[Array, "split example"]
    train: Float[Array, "split example"]
    validation: Float[Array, "split example"]


def make_splits(
    target: Target,
    *,
    seeds: Sequence[int],
    n_folds: int,
    groups: Int[np.ndarray, " example"] | None,
    shuffled: bool,
) -> list[Split]:
    """Every fold of every seed, of the labels and of their shuffles; and all examples, once."""
    splits = []
    for seed in seeds:
        folds = make_folds(target, n_folds, seed, groups)
        labels = [(False, target.labels)]
        if shuffled:
            labels.append((True, shuffle_labels(target.labels, folds, seed, groups)))
        for is_shuffled, own in labels:
            labelling = Labelling(target, seed, is_shuffled, own, folds)
            splits += [Split(labelling, fold) for fold in range(n_folds)]
            if seed == seeds[0] and not is_shuffled:
                splits.append(Split(labelling, None))
    return splits


def weigh(
    splits: Sequence[Split],
    rows: Int[np.ndarray, " row"],
    n_known: int,
    n_folds: int,
    balanced: bool,
    dtype: np.dtype,
) -> Weights:
    """Arrays of the splits.

    Args:
        splits: the splits.
        rows: the examples, those whose labels are known and then some again.
        n_known: how many of them count.
        n_folds: of the cross-validation.
        balanced: weigh classes alike, however many examples they have.
        dtype: of the weights.
    """
    every = [_weigh(split, n_folds, balanced) for split in splits]
    labels, members, train, validation = (
        np.stack(each)[:, rows] for each in zip(*every, strict=True)
    )
    for each in (members, train, validation):
        each[:, n_known:] = 0
    offset, unit = np.zeros(len(splits)), np.ones(len(splits))
    if splits[0].labelling.target.kind == "regression":
        shares = members / members.sum(1, keepdims=True)
        offset = (shares * labels).sum(1)
        deviation = np.sqrt((shares * np.square(labels - offset[:, None])).sum(1))
        unit = np.where(deviation > 0, deviation, 1)
        labels = (labels - offset[:, None]) / unit[:, None]
    arrays = (labels, offset, unit, members, train, validation)
    return Weights(*(jnp.asarray(x, x.dtype if x.dtype == bool else dtype) for x in arrays))


def _weigh(split: Split, n_folds: int, balanced: bool) -> tuple[np.ndarray, ...]:
    labelling = split.labelling
    fold = n_folds if split.fold is None else split.fold
    trains, validates = parts(labelling.folds, fold, n_folds)
    weight = np.ones(len(trains))
    if balanced and labelling.target.classes:
        for number in range(len(labelling.target.classes)):
            members = labelling.labels == number
            weight[members] = 1 / max((members & trains).sum(), 1)
    return (
        labelling.labels,
        trains,
        _normalised(weight * trains),
        _normalised(weight * validates),
    )


def _normalised(weights: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
    total = weights.sum()
    return weights / total if total else weights
