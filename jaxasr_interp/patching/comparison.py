"""Checks of an approximate sweep: its agreement with the exact one, and exact re-runs of cells."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.edits import EditLike
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.metrics import MetricLike
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import SweepOptions, activation_patching
from jaxasr_interp.runtime.transforms import DECODE_EDITED, host_only
from jaxasr_interp.speech.utterance import Utterance

_DEFAULT = SweepOptions()


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well two sweeps agree on which patches matter. Its text has a line for each metric.

    Attributes:
        metrics: names of the metrics.
        rank_correlation: Spearman's rank correlation of the effects; NaN where all effects of a
            sweep are equal.
        overlap: share of the exact sweep's `top` largest effects, by magnitude, that are among the
            `top` largest of the approximate sweep.
        top: number of the largest effects that are compared.
        cells: number of cells that are compared.
    """

    metrics: tuple[str, ...]
    rank_correlation: Float[np.ndarray, " metric"]
    overlap: Float[np.ndarray, " metric"]
    top: int
    cells: int

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: rank correlation {correlation:.3f} over {self.cells} cells, "
            f"{round(overlap * self.top)} of the {self.top} largest effects found"
            for name, correlation, overlap in zip(
                self.metrics, self.rank_correlation, self.overlap, strict=True
            )
        )


@host_only()
def agreement(exact: SweepResult, approximate: SweepResult, top: int = 10) -> Agreement:
    """Compare the effects (patched minus unpatched) of two sweeps, cell by cell.

    Effects no larger than rounding count as zero, and equal effects share a rank.

    Args:
        exact: from `activation_patching`.
        approximate: from `attribution_patching`, of the same plan.
        top: number of the largest effects to compare; all cells if there are fewer.

    Returns:
        Rank correlation and overlap for each metric, over the cells that both sweeps ran.

    Raises:
        InputError: the sweeps differ in cells, metrics or direction, share fewer than two cells, or
            `top` is less than one.
    """
    if _grid(exact.plan) != _grid(approximate.plan) or exact.direction != approximate.direction:
        raise InputError("The two sweeps have different cells: compare sweeps of the same plan.")
    if exact.metrics != approximate.metrics:
        raise InputError(
            f"The sweeps read {list(exact.metrics)} and {list(approximate.metrics)}: give both the "
            "same metrics."
        )
    if top < 1:
        raise InputError(f"The number of largest effects is {top}: expected 1 or more.")
    ours, theirs = _effects(exact), _effects(approximate)
    shared = ~np.isnan(ours).any(0) & ~np.isnan(theirs).any(0)
    if shared.sum() < 2:
        raise InputError(f"The sweeps share {shared.sum()} cells: ranks need at least 2.")
    pairs = list(zip(ours[:, shared], theirs[:, shared], strict=True))
    top = min(top, int(shared.sum()))
    overlap = [len(set(_largest(a, top)) & set(_largest(b, top))) / top for a, b in pairs]
    return Agreement(
        exact.metrics,
        np.array([_correlation(_ranks(a), _ranks(b)) for a, b in pairs]),
        np.array(overlap),
        top,
        int(shared.sum()),
    )


@host_only(DECODE_EDITED)
def verify_top(
    model: Whisper,
    approximate: SweepResult,
    k: int,
    *,
    clean: Utterance,
    corrupted: Utterance,
    metric: MetricLike | Sequence[MetricLike],
    edit: EditLike | None = None,
    options: SweepOptions = _DEFAULT,
) -> SweepResult:
    """Run the cells with the largest approximate effects on the first metric exactly.

    Args:
        model: the model.
        approximate: from `attribution_patching`; its plan and direction are kept.
        k: number of cells; all cells of `approximate` if there are fewer.
        clean: as given to `attribution_patching`.
        corrupted: as given to `attribution_patching`.
        metric: as given to `attribution_patching`.
        edit: as given to `attribution_patching`.
        options: how the cells run; the alignment must be that given to `attribution_patching`.

    Returns:
        The exact sweep of those cells, NaN in all others.

    Raises:
        InputError: see `activation_patching`; also if `k` is less than 1.
    """
    if k < 1:
        raise InputError(f"The number of cells to verify is {k}: expected 1 or more.")
    effects = _effects(approximate)[0]
    known = np.flatnonzero(~np.isnan(effects))
    return activation_patching(
        model,
        approximate.plan.select(np.sort(known[_largest(effects[known], k)])),
        clean=clean,
        corrupted=corrupted,
        metric=metric,
        edit=edit,
        options=dataclasses.replace(options, direction=approximate.direction),
    )


def _grid(plan: SweepPlan) -> tuple[object, ...]:
    """Return what defines the cells of a plan, independent of which of them are run."""
    return (plan.stack, plan.components, plan.layers, plan.windows, plan.alphas, plan.n_tokens)


def _effects(result: SweepResult) -> Float[np.ndarray, "metric cell"]:
    """Compute patched minus unpatched metrics; 0 where they are equal up to rounding."""
    into_corrupted = result.direction == "clean_to_corrupted"
    base = (result.corrupted if into_corrupted else result.clean)[:, None]
    patched = result.patched.reshape(len(base), -1)
    rounding = 16 * np.finfo(patched.dtype).eps
    alike = np.isclose(patched, base, rtol=rounding, atol=rounding)
    return np.where(alike, 0.0, patched.astype(np.float64) - base)


def _largest(effects: Float[np.ndarray, " cell"], count: int) -> list[int]:
    """Return the indices of the largest magnitudes, the largest first."""
    return np.argsort(-np.abs(effects), kind="stable")[:count].tolist()


def _ranks(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Rank values from 0 for the smallest; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[place]


def _correlation(a: Float[np.ndarray, " cell"], b: Float[np.ndarray, " cell"]) -> float:
    """Compute Pearson's correlation; NaN if either array is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")
