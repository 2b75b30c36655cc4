"""Scores of probes, with bootstrap confidence intervals.

Examples are resampled by group, because the clips of one speaker are not independent. A resample is
a weight for every example, so that all resamples are one matrix product.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jaxasr_interp.evaluation.bootstrap import check_resampling
from jaxasr_interp.probes.result import HeldOut, Probes
from jaxasr_interp.probes.targets import Target
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.transforms import host_only

Resamples = Float[np.ndarray, "resample example"]
CLASS_SCORES = ("accuracy", "balanced_accuracy", "auc", "macro_f1")
VALUE_SCORES = ("r2", "mean_absolute_error")


def score_names(target: Target) -> tuple[str, ...]:
    """Return the names of the scores for a target: those of classes, or those of values."""
    return CLASS_SCORES if target.classes else VALUE_SCORES


def score(
    target: Target,
    labels: Float[np.ndarray, " example"],
    outputs: Float[np.ndarray, "output example"],
    weights: Resamples,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Score outputs on weighted examples.

    Accuracy; balanced accuracy, the mean recall of the classes; AUC, the chance that an example of
    a class is given a higher probability than one of the others, ties counting half, as the mean
    over classes one against the rest; macro-F1. Of values, `R²` and the mean absolute error.

    Args:
        target: says which kind the labels are of, and names the classes.
        labels: class numbers or values, all known.
        outputs: outputs of probes.
        weights: weight of each example, a row for each resample.

    Returns:
        One number for each resample, NaN where a class that a score needs is missing.
    """
    if not target.classes:
        return _score_values(labels, outputs[0], weights)
    number = len(target.classes)
    predicted = (outputs[0] > 0).astype(int) if len(outputs) == 1 else outputs.argmax(0)
    is_class = labels[None, :] == np.arange(number)[:, None]
    said = predicted[None, :] == np.arange(number)[:, None]
    right = weights @ (is_class & said).T
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / (weights @ is_class.T)
        f1 = 2 * right / (weights @ is_class.T + weights @ said.T)
        # Several outputs may share any added number; their softmax does not depend on it.
        each = outputs
        if len(outputs) > 1:
            each = np.exp(outputs - np.logaddexp.reduce(outputs, axis=0, keepdims=True))
        positive = is_class[-len(each) :]
        auc = [_auc(one, own, weights) for one, own in zip(each, positive, strict=True)]
        return {
            "accuracy": right.sum(1) / weights.sum(1),
            "balanced_accuracy": recall.mean(1),
            "auc": np.mean(auc, axis=0),
            "macro_f1": f1.mean(1),
        }


def _auc(
    outputs: Float[np.ndarray, " example"], positive: np.ndarray, weights: Resamples
) -> Float[np.ndarray, " resample"]:
    """`P(z₊ > z₋) + P(z₊ = z₋) / 2`."""
    order = np.argsort(outputs, kind="stable")
    starts = np.flatnonzero(np.diff(outputs[order], prepend=np.nan) != 0)
    ups, downs = (
        np.add.reduceat((weights * mask)[:, order], starts, axis=1)
        for mask in (positive, ~positive)
    )
    below = np.cumsum(downs, axis=1) - downs / 2
    return (ups * below).sum(1) / (ups.sum(1) * downs.sum(1))


def _score_values(
    labels: Float[np.ndarray, " example"],
    outputs: Float[np.ndarray, " example"],
    weights: Resamples,
) -> dict[str, Float[np.ndarray, " resample"]]:
    shares = weights / weights.sum(1, keepdims=True)
    centred = labels[None, :] - (shares @ labels)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - shares @ np.square(outputs - labels) / (shares * np.square(centred)).sum(1)
    return {"r2": r2, "mean_absolute_error": shares @ np.abs(outputs - labels)}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of every layer.

    Attributes:
        estimate: each score, as the mean over seeds.
        low: lower end of each score's interval.
        high: upper end of each score's interval.
    """

    estimate: Mapping[str, Float[np.ndarray, " layer"]]
    low: Mapping[str, Float[np.ndarray, " layer"]]
    high: Mapping[str, Float[np.ndarray, " layer"]]

    __repr__ = summary


@host_only()
def score_probes(
    probes: Probes, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[Scores, Scores | None]:
    """Score probes on the held-out examples, and the probes for shuffled labels too.

    Args:
        probes: from `fit_probes`.
        level: probability that an interval is to hold; groups of examples are resampled.
        n_resamples: number of resamples.
        seed: the same resamples for the same seed.

    Returns:
        The scores, and those for shuffled labels; `None` where there are none.

    Raises:
        InputError: the level is not between 0 and 1, there are no resamples, or the seed is
            negative.
    """
    check_resampling(level, n_resamples, seed)
    known = probes.target.known
    groups = np.arange(len(known)) if probes.groups is None else probes.groups
    counts = _resample(groups[known], n_resamples, seed)
    labels = np.broadcast_to(probes.target.labels, (len(probes.options.seeds), len(known)))
    real = _score_layers(probes.target, labels, probes.held_out, counts, level)
    if probes.shuffled is None or probes.shuffled_labels is None:
        return real, None
    shuffled = _score_layers(probes.target, probes.shuffled_labels, probes.shuffled, counts, level)
    return real, shuffled


def _resample(groups: Int[np.ndarray, " example"], n: int, seed: int) -> Resamples:
    """Count how often each example is drawn: first once, then in `n` resamples of the groups."""
    units, unit_of = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), n)
    return np.concatenate([np.ones((1, len(groups))), drawn[:, unit_of].astype(float)])


def _score_layers(
    target: Target,
    labels: Float[np.ndarray, "seed example"],
    held_out: HeldOut,
    counts: Resamples,
    level: float,
) -> Scores:
    known = target.known
    by_layer = []
    for layer in held_out.outputs:
        seeds = [
            score(target, own[known], outputs[:, known], counts)
            for own, outputs in zip(labels, layer, strict=True)
        ]
        by_layer.append({name: np.mean([one[name] for one in seeds], 0) for name in seeds[0]})
    names = score_names(target)
    every = {name: np.stack([layer[name] for layer in by_layer]) for name in names}
    ends = [(1 - level) / 2, (1 + level) / 2]
    intervals = {name: np.nanquantile(every[name][:, 1:], ends, axis=1) for name in names}
    return Scores(
        {name: every[name][:, 0] for name in names},
        {name: intervals[name][0] for name in names},
        {name: intervals[name][1] for name in names},
    )


def majority(probes: Probes) -> Mapping[str, float]:
    """Score a constant prediction: the commonest class, or the mean value, in training."""
    target, known = probes.target, probes.target.known
    found = []
    for folds in probes.folds:
        outputs = np.zeros((target.n_outputs, len(known)))
        for fold in range(folds.max() + 1):
            trains = known & (folds != fold) & (folds != (fold + 1) % (folds.max() + 1))
            if not target.classes:
                outputs[:, folds == fold] = target.labels[trains].mean()
                continue
            commonest = np.bincount(target.labels[trains].astype(int)).argmax()
            if target.kind == "binary":
                outputs[:, folds == fold] = 2.0 * commonest - 1
            else:
                outputs[commonest, folds == fold] = 1
        found.append(
            score(target, target.labels[known], outputs[:, known], np.ones((1, known.sum())))
        )
    return {name: float(np.mean([one[name][0] for one in found])) for name in found[0]}


def selectivity(real: Scores, shuffled: Scores) -> Float[np.ndarray, " layer"]:
    """Return accuracy, or R², less that on shuffled labels (Hewitt and Liang 2019)."""
    first = next(iter(real.estimate))
    return real.estimate[first] - shuffled.estimate[first]
