"""The probes of one run: one for every labelling of the examples, fold and penalty."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.probes.linear import Task
from jaxasr_interp.probes.options import FitOptions
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
class SplitWeights:
    """The labels and weights of the examples in every split, on the device.

    Attributes:
        labels: class numbers, or values less `offset` and divided by `unit`.
        offset: mean of the training values; 0 for classes.
        unit: standard deviation of the training values; 1 for classes.
        members: which examples train.
        train: weights of the examples that train, which sum to 1.
        validation: weights of the examples that validate, which sum to 1.
    """

    labels: Float[Array, "split example"]
    offset: Float[Array, " split"]
    unit: Float[Array, " split"]
    members: Bool[Array, "split example"]
    train: Float[Array, "split example"]
    validation: Float[Array, "split example"]


@pytree_dataclass
class Features:
    """The activations of a layer, standardised over all examples to keep rounding errors small.

    Attributes:
        x: the standardised activations.
        centre: what was subtracted from the activations.
        spread: what they were then divided by.
        mean: of each feature over the examples that train, in every split.
        scale: standard deviation over the same examples; 1 where the feature is constant there.
    """

    x: Float[Array, "example feature"]
    centre: Float[Array, " feature"]
    spread: Float[Array, " feature"]
    mean: Float[Array, "split feature"]
    scale: Float[Array, "split feature"]


def make_splits(
    target: Target, options: FitOptions, groups: Int[np.ndarray, " example"] | None
) -> list[Split]:
    """Make every fold of every seed, of the labels and of their shuffles.

    One more split, of the labels and the first seed, trains on all examples.
    """
    splits = []
    for seed in options.seeds:
        folds = make_folds(target, options.n_folds, seed, groups)
        labels = [(False, target.labels)]
        if options.shuffled:
            labels.append((True, shuffle_labels(target.labels, folds, seed, groups)))
        for is_shuffled, own in labels:
            labelling = Labelling(target, seed, is_shuffled, own, folds)
            splits += [Split(labelling, fold) for fold in range(options.n_folds)]
            if seed == options.seeds[0] and not is_shuffled:
                splits.append(Split(labelling, None))
    return splits


def weigh(
    splits: Sequence[Split],
    rows: Int[np.ndarray, " row"],
    n_known: int,
    options: FitOptions,
    dtype: np.dtype,
) -> SplitWeights:
    """Weigh the examples in every split.

    Args:
        splits: splits of targets of one kind.
        rows: the examples whose labels are known, and then some of them again to fill up.
        n_known: how many of the rows count; those after them get no weight.
        options: `n_folds` and `balanced` are used.
        dtype: of the weights.
    """
    every = [_weigh(split, options) for split in splits]
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
    return SplitWeights(*(jnp.asarray(x, x.dtype if x.dtype == bool else dtype) for x in arrays))


def _weigh(split: Split, options: FitOptions) -> tuple[np.ndarray, ...]:
    labelling = split.labelling
    fold = options.n_folds if split.fold is None else split.fold
    trains, validates = parts(labelling.folds, fold, options.n_folds)
    weight = np.ones(len(trains))
    if options.balanced and labelling.target.classes:
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


@jax.jit
def standardise(x: Float[Array, "example feature"], weights: SplitWeights) -> Features:
    """Standardise the activations, and find the mean and scale of each split.

    A deviation no larger than rounding errors counts as 0: such a feature is constant.
    """
    rounding = 100 * float(jnp.finfo(x.dtype).eps)
    centre, deviation = x.mean(0), x.std(0)
    constant = deviation <= rounding * jnp.abs(x).max(0)
    spread = jnp.where(constant, 1, deviation)
    x = jnp.where(constant[None, :], 0, (x - centre[None, :]) / spread[None, :])
    members = weights.members.astype(x.dtype)
    shares = members / members.sum(1, keepdims=True)
    mean, square = shares @ x, shares @ jnp.square(x)
    variance = square - jnp.square(mean)
    scale = jnp.where(variance <= rounding * square, 1, jnp.sqrt(jnp.maximum(variance, 0)))
    return Features(x, centre, spread, mean, scale)


def make_tasks(
    features: Features, weights: SplitWeights, splits: Int[Array, " probe"] | slice = slice(None)
) -> Task:
    """The tasks of some splits, with a leading `probe` axis and no penalty yet."""
    train = weights.train[splits]
    return jax.vmap(Task)(
        weights.labels[splits],
        train,
        weights.validation[splits],
        features.mean[splits],
        features.scale[splits],
        jnp.zeros(len(train), train.dtype),
    )
