"""How well probes do, with bootstrap confidence intervals.

Examples are resampled by group, so that a speaker's clips do not count as so many independent ones.
A resample is a weight for every example, which makes all of them one matrix product.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jaxasr_interp.probes.result import HeldOut, Probes
from jaxasr_interp.probes.targets import Target

Weights = Float[np.ndarray, "resample example"]
CLASS_SCORES = ("accuracy", "balanced_accuracy", "auc", "macro_f1")
VALUE_SCORES = ("r2", "mean_absolute_error")


def score_names(target: Target) -> tuple[str, ...]:
    """The scores of a target's kind."""
    return CLASS_SCORES if target.classes else VALUE_SCORES


def score(
    target: Target,
    labels: Float[np.ndarray, " example"],
    outputs: Float[np.ndarray, "output example"],
    weights: Weights,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Scores of outputs on weighted examples.

    Accuracy; balanced accuracy, the mean recall of the classes; AUC, the chance that an example of
    a class is given a higher probability than one of the others, ties counting half, as the mean
    over classes one against the rest; macro-F1. Of values, `R²` and the mean absolute error.

    Args:
        target: whose kind and classes.
        labels: class numbers or values, all known.
        outputs: of probes.
        weights: of the examples, a row for each resample.

    Returns:
        One number a resample, NaN where a class that a score needs is missing.
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
        # Several outputs are known up to a number that they share, their softmax is not.
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
    outputs: Float[np.ndarray, " example"], positive: np.ndarray, weights: Weights
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
    labels: Float[np.ndarray, " example"], outputs: Float[np.ndarray, " example"], weights: Weights
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
        estimate: of each score, the mean over seeds.
        low: lower end of its interval.
        high: upper end.
    """

    estimate: Mapping[str, Float[np.ndarray, " layer"]]
    low: Mapping[str, Float[np.ndarray, " layer"]]
    high: Mapping[str, Float[np.ndarray, " layer"]]


def score_probes(
    probes: Probes, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> tuple[Scores, Scores | None]:
    """Scores of the held-out examples, and those of the probes for shuffled labels.

    Args:
        probes: from `fit_probes`.
        level: of the percentile intervals, which resample groups of examples.
        n_resamples: how many resamples.
        seed: of the resamples.
    """
    known = probes.target.known
    groups = np.arange(len(known)) if probes.groups is None else probes.groups
    counts = _resample(groups[known], n_resamples, seed)
    labels = np.broadcast_to(probes.target.labels, (len(probes.seeds), len(known)))
    real = _score_layers(probes.target, labels, probes.held_out, counts, level)
    if probes.shuffled is None or probes.shuffled_labels is None:
        return real, None
    shuffled = _score_layers(probes.target, probes.shuffled_labels, probes.shuffled, counts, level)
    return real, shuffled


def _resample(groups: Int[np.ndarray, " example"], n: int, seed: int) -> Weights:
    """How often each example is drawn: first once, then in `n` resamples of the groups."""
    units, unit_of = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), n)
    return np.concatenate([np.ones((1, len(groups))), drawn[:, unit_of].astype(float)])


def _score_layers(
    target: Target,
    labels: Float[np.ndarray, "seed example"],
    held_out: HeldOut,
    counts: Weights,
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
    """Scores of always saying the commonest class, or the mean value, of the training examples."""
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
    """Accuracy, or R², beyond that on shuffled labels (Hewitt and Liang 2019)."""
    first = next(iter(real.estimate))
    return real.estimate[first] - shuffled.estimate[first]
