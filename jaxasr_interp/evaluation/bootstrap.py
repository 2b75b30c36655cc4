"""Percentile bootstrap intervals of a statistic over clips (Efron 1979).

This uses numpy alone: the interval is the same on every device and with every version of JAX.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxasr_interp.errors import InputError, check_least


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic and its confidence interval.

    Attributes:
        estimate: the statistic of all clips.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    estimate: float
    low: float
    high: float


def check_resampling(level: float, n_resamples: int, seed: int) -> None:
    """Raise `InputError` unless there is an interval of this level from so many resamples."""
    if not 0 < level < 1:
        raise InputError(f"The level is {level}: expected a number between 0 and 1.")
    check_least(1, n_resamples=n_resamples)
    check_least(0, seed=seed)


def bootstrap_interval(
    values: Shaped[np.ndarray, "_ ..."] | tuple[Shaped[np.ndarray, "_ ..."], ...],
    statistic: Callable[..., Any] = np.mean,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Compute a statistic of clips and its percentile bootstrap interval.

    `low, high = quantiles (1 ∓ level) / 2 of statistic(values[i₁], …, values[iₙ])` over resamples
    of the n clips, `i ~ Uniform{1…n}` with replacement. Several arrays are resampled together, so
    that a ratio of sums is a statistic too: the word error rate of a corpus is
    `bootstrap_interval((errors, words), lambda errors, words: errors.sum() / words.sum())`.

    Args:
        values: one row for each clip; or a tuple of such arrays with the same number of rows.
        statistic: takes the arrays in order and returns one number.
        level: probability that the interval is to hold, between 0 and 1.
        n_resamples: number of resamples.
        seed: the same seed gives the same interval.

    Returns:
        The statistic of all clips, and the interval.

    Raises:
        InputError: no clips, arrays of different lengths, a level outside 0 to 1, no resamples, or
            a statistic that is not finite.
    """
    arrays = values if isinstance(values, tuple) else (values,)
    lengths = {len(array) for array in arrays}
    if not lengths or lengths == {0}:
        raise InputError("There are no clips to resample: give at least one.")
    if len(lengths) > 1:
        raise InputError(
            f"The arrays hold {', '.join(str(len(array)) for array in arrays)} clips: "
            "expected as many in each."
        )
    check_resampling(level, n_resamples, seed)
    clips = lengths.pop()
    generator = np.random.default_rng(seed)
    chosen = (generator.integers(clips, size=clips) for _ in range(n_resamples))
    estimate = float(statistic(*arrays))
    resampled = [float(statistic(*(array[rows] for array in arrays))) for rows in chosen]
    if not np.isfinite([estimate, *resampled]).all():
        raise InputError(
            "The statistic of the clips, or of a resample of them, is not finite: leave out clips "
            "without a value, such as the error rate of an empty reference."
        )
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))
