"""Summaries of a data-set sweep, computed from its store without the model.

`recovered` of every patch is averaged over the positions of a group, and then over questions; the
interval is a percentile bootstrap over clips, or over groups of clips such as speakers.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.evaluation.bootstrap import check_resampling
from jaxasr_interp.patching.dataset_layout import DATASET_SWEEP
from jaxasr_interp.patching.metrics import recovered
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.location import exists, locate, within
from jaxasr_interp.runtime.slot_store import read_identity
from jaxasr_interp.runtime.store import open_dataset
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND

if TYPE_CHECKING:
    import xarray

TOKEN_GROUPS = ("prompt", "text", "last")
"""Groups of tokens: the prompt, the text, and the token before the word that is asked for."""

TIME_GROUPS = ("before", "word", "after")
"""Groups of time windows: before, in and after the word that is asked for."""

OTHER = "other"
"""The class of values that have none."""

_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Resampling:
    """The bootstrap of a summary.

    Attributes:
        unit: what is resampled, with all its questions: `"clip"`, or the values of a column such
            as `speaker`.
        level: probability that the interval is to hold, between 0 and 1.
        n_resamples: number of resamples.
        seed: the same seed gives the same interval.
    """

    unit: str = "clip"
    level: float = 0.95
    n_resamples: int = 1000
    seed: int = 0

    __repr__ = summary

    def __post_init__(self):
        check_resampling(self.level, self.n_resamples, self.seed)


_DEFAULT = Resampling()


def aggregate(
    path: str | Path,
    *,
    metric: str | None = None,
    by: str | None = None,
    classes: Mapping[str, str] | None = None,
    resampling: Resampling = _DEFAULT,
) -> "xarray.Dataset":
    """Average `recovered` over questions for every component, layer and group of positions.

    `mean[c, l, g] = mean over questions i of (mean over positions p in g of recovered[i, c, l, p])`

    Groups of tokens are the prompt, the text, and the token before the word that is asked for;
    groups of time windows are those before, in and after that word (windows that touch it). A
    question without a position in a group, or whose runs agree, does not count for it.

    Args:
        path: folder or URL of `sweep_dataset`, or its store.
        metric: name of the metric; by default the first.
        by: column of the table, or `"asked_word"`: questions are averaged apart for each value.
        classes: the class of each value of `by`, such as that of each word; values that it lacks
            are of the class `"other"`. Questions are averaged apart for each class instead.
        resampling: the bootstrap.

    Returns:
        `mean`, `low`, `high` [value (if `by` is given), group, (alpha), component, (layer)] and
        `questions` [value, group], the number of questions that count.

    Raises:
        InputError: there is no such store, metric or column, or no clip is done; or there are
            classes and no column.
    """
    if classes is not None and by is None:
        raise InputError("The classes are those of a column's values: name the column with by.")
    path = locate(path)
    inside = within(path, "sweep.zarr")
    path = inside if exists(inside) else path
    read_identity(path, DATASET_SWEEP)
    dataset = open_dataset(path)
    names = [str(name) for name in dataset.metric.values]
    if metric is not None and metric not in names:
        raise InputError(f"The sweep has no metric {metric!r}: choose one of {', '.join(names)}.")
    done = np.flatnonzero(dataset.done.values)
    fine = done[dataset.problem.isel(clip=done).values == ""]
    if not len(fine):
        raise InputError(f"No clip of {path} is done yet: run the sweep first.")
    dataset = dataset.isel(clip=fine, metric=names.index(metric or names[0]))
    groups, of_clips = _group_means(dataset)
    axes = tuple(str(name) for name in dataset.patched.dims if name not in ("clip", "pos"))
    split = _column(dataset, by) if by else np.full(len(fine), "")
    if classes is not None:
        split = np.asarray([classes.get(value, OTHER) for value in split.tolist()])
    units = np.unique(_column(dataset, resampling.unit), return_inverse=True)[1]
    values = np.unique(split)
    found = [_averages(of_clips[split == v], units[split == v], resampling) for v in values]
    stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
    first = ("value", "group")
    return _labelled(
        dataset,
        {
            **{name: ((*first, *axes), stacked[name]) for name in ("mean", "low", "high")},
            "questions": (first, stacked["questions"]),
        },
        {"value": [str(v) for v in values], "group": list(groups)},
        by,
    ).assign_attrs(
        metric=metric or names[0],
        by=by or "",
        unit=resampling.unit,
        level=resampling.level,
        n_resamples=resampling.n_resamples,
        seed=resampling.seed,
        model=dataset.attrs.get("model", ""),
    )


def top_cells(summary: "xarray.Dataset", count: int) -> list[dict[str, Any]]:
    """List the cells of a summary with the largest means.

    Args:
        summary: from `aggregate`.
        count: number of cells.

    Returns:
        For each its coordinates, `mean`, `low`, `high` and `questions`.
    """
    mean = summary["mean"]
    order = np.argsort(-np.nan_to_num(mean.values, nan=-np.inf), axis=None, kind="stable")[:count]
    cells = []
    for flat in order:
        index = dict(zip(mean.dims, map(int, np.unravel_index(flat, mean.shape)), strict=True))
        cell = summary.isel(index)
        if not np.isfinite(cell["mean"]):
            break
        where = {str(axis): summary[axis].values.tolist()[i] for axis, i in index.items()}
        figures = {name: float(cell[name]) for name in ("mean", "low", "high")}
        cells.append({**where, **figures, "questions": int(cell["questions"])})
    return cells


def _column(dataset: "xarray.Dataset", name: str) -> np.ndarray:
    name = "path" if name == "clip" else name
    if name not in dataset or dataset[name].dims != ("clip",):
        known = sorted(str(n) for n in dataset.variables if dataset[n].dims == ("clip",))
        raise InputError(f"The clips have no column {name!r}: choose one of {', '.join(known)}.")
    return np.asarray(list(map(str, dataset[name].values.tolist())))


def _group_means(
    dataset: "xarray.Dataset",
) -> tuple[tuple[str, ...], Float[np.ndarray, "clip group *cell"]]:
    """Average each clip's `recovered` over the positions of each group; NaN if it has none."""
    timed = dataset.attrs["position"] == "frame"
    groups = TIME_GROUPS if timed else TOKEN_GROUPS
    inside = _time_groups(dataset) if timed else _token_groups(dataset)
    means = []
    for start in range(0, dataset.sizes["clip"], _AT_ONCE):
        some = dataset.isel(clip=slice(start, start + _AT_ONCE))
        shares = recovered(
            some.patched.values, some.clean_metric.values, some.corrupted_metric.values
        )
        for share, own in zip(shares, inside[start : start + _AT_ONCE], strict=True):
            counts = own & np.isfinite(share)[..., None, :]
            total = np.where(counts, share[..., None, :], 0).sum(-1)
            number = counts.sum(-1)
            mean = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
            means.append(np.moveaxis(mean, -1, 0))
    return groups, np.stack(means)


def _token_groups(dataset: "xarray.Dataset") -> Bool[np.ndarray, "clip group pos"]:
    start, stop = dataset.pos.values[None], dataset.pos_stop.values[None]
    prompt, length = dataset.prompt.values[:, None], dataset.length.values[:, None]
    last = (stop >= length) & (start < length)
    before = (start < prompt) & ~last
    return np.stack([before, (start >= prompt) & (start < length) & ~last, last], axis=1)


def _time_groups(dataset: "xarray.Dataset") -> Bool[np.ndarray, "clip group pos"]:
    start, stop = (dataset[n].values[None] / FRAMES_PER_SECOND for n in ("pos", "pos_stop"))
    word, end = (dataset[n].values[:, None] for n in ("word_start", "word_stop"))
    known = np.isfinite(word) & (np.arange(start.shape[1]) < dataset.length.values[:, None])
    before, after = known & (stop <= word), known & (start >= end)
    return np.stack([before, known & ~before & ~after, after], axis=1)


def _averages(
    of_clips: Float[np.ndarray, "clip group *cell"],
    units: Int[np.ndarray, " clip"],
    resampling: Resampling,
) -> dict[str, np.ndarray]:
    """Average over clips, with the interval over resampled units."""
    known = np.isfinite(of_clips)
    n_units = len(np.unique(units))
    index = np.unique(units, return_inverse=True)[1]
    total, number = (np.zeros((n_units, *of_clips.shape[1:])) for _ in range(2))
    np.add.at(total, index, np.where(known, of_clips, 0))
    np.add.at(number, index, known)
    generator = np.random.default_rng(resampling.seed)
    draws = generator.multinomial(
        n_units, np.full(n_units, 1 / n_units), size=resampling.n_resamples
    )
    resampled = _ratio(np.tensordot(draws, total, 1), np.tensordot(draws, number, 1))
    ends = [(1 - resampling.level) / 2, (1 + resampling.level) / 2]
    # A resample in which no question counts has no mean; it is left out.
    low, high = _quantiles(resampled, ends)
    questions = known.reshape(*known.shape[:2], -1).any(-1).sum(0)
    return {
        "mean": _ratio(total.sum(0), number.sum(0)),
        "low": low,
        "high": high,
        "questions": questions,
    }


def _ratio(total: Float[np.ndarray, "*cell"], number: Float[np.ndarray, "*cell"]) -> np.ndarray:
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _quantiles(
    resampled: Float[np.ndarray, "resample *cell"], ends: list[float]
) -> Float[np.ndarray, "2 *cell"]:
    found = np.full((2, *resampled.shape[1:]), np.nan)
    some = np.isfinite(resampled).any(0)
    found[:, some] = np.nanquantile(resampled[:, some], ends, axis=0)
    return found


def _labelled(
    dataset: "xarray.Dataset",
    variables: "dict[str, tuple[tuple[str, ...], np.ndarray]]",
    coordinates: "dict[str, list[str]]",
    by: str | None,
) -> "xarray.Dataset":
    import xarray

    kept = {n: dataset[n].values for n in ("alpha", "component", "layer") if n in dataset.dims}
    summary = xarray.Dataset(variables, {**coordinates, **kept})
    return summary if by else summary.isel(value=0, drop=True)
