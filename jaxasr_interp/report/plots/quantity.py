"""What a picture or table shows of a sweep: how much of a metric a patch recovers, or changes."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult

_BEYOND = 0.05
_SMALLEST = 1e-6
_SHARES = (0.1, 0.25, 0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number for each cell of a sweep.

    Attributes:
        plan: of the sweep.
        values: in all four axes of the plan, those of one entry included.
        label: what the numbers are.
        unit: `"share"` (1 is all) or `"number"`, in the metric's own unit.
    """

    plan: SweepPlan
    values: Float[np.ndarray, "alpha component layer pos"]
    label: str
    unit: Literal["share", "number"]

    def text(self, value: float) -> str:
        """How a number is written in a cell or table."""
        if not np.isfinite(value):
            return "–"
        if self.unit == "share":
            return f"{value:.0%}" if abs(value) < 10 else f"{value:.0f}×"
        if abs(value) < 0.095:
            return f"{value:.1g}"
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"

    @property
    def limit(self) -> float:
        """Where the colours end: the largest value, but for one cell in twenty that lies beyond.

        Shares end at 10%, 25%, 50%, 100% or 200%, so that pictures can be compared; where some are
        larger still, at 100% or beyond.
        """
        sizes = np.sort(np.abs(self.values[np.isfinite(self.values)]))[::-1]
        if not len(sizes):
            return 1.0
        if self.unit == "number":
            return float(max(sizes[0], _SMALLEST))
        steps = [step for step in _SHARES if step >= sizes[0]]
        return steps[0] if steps else max(1.0, float(sizes[int(_BEYOND * len(sizes))]))

    @property
    def beyond(self) -> str:
        """The ends that the colours do not reach, as written: `""`, or `"-30% to 199%"`."""
        values = self.values[np.isfinite(self.values)]
        ends = [values.min(initial=0), values.max(initial=0)]
        return " to ".join(self.text(float(end)) for end in ends if abs(end) > self.limit)

    @property
    def line_names(self) -> list[str]:
        """The strengths, as written."""
        return [f"α = {alpha:g}" for alpha in self.plan.alphas]

    @property
    def rows(self) -> list[str]:
        """What the rows are called."""
        return ["" if layer is None else str(layer) for layer in self.plan.layers]


def share(result: SweepResult, metric: str) -> Quantity:
    """How much of the difference between the two runs each patch makes up.

    Of patches into the corrupted run the share of the metric that they recover; of patches into
    the clean run the share that is lost.
    """
    values = _all_axes(result, result.recovered[result.metrics.index(metric)])
    if result.direction == "clean_to_corrupted":
        return Quantity(result.plan, values, f"share of {metric} recovered{_how(result)}", "share")
    return Quantity(result.plan, 1 - values, f"share of {metric} lost{_how(result)}", "share")


def change(result: SweepResult, metric: str) -> Quantity:
    """How much each patch moves the metric: patched minus the run that is patched."""
    i = result.metrics.index(metric)
    before = result.corrupted if result.direction == "clean_to_corrupted" else result.clean
    values = _all_axes(result, result.patched[i] - before[i])
    return Quantity(result.plan, values, f"change of {metric}{_how(result)}", "number")


def recovery(result: SweepResult, metric: str) -> Quantity:
    """`share`; `change` where the two runs have the same metric, so that there is none to share."""
    found = share(result, metric)
    return found if np.isfinite(found.values).any() else change(result, metric)


def _how(result: SweepResult) -> str:
    """What is to be known of numbers that are no effects of patches."""
    return "" if result.method == "exact" else f", first-order approximation ({result.method})"


def _all_axes(
    result: SweepResult, values: Float[np.ndarray, "*cells"]
) -> Float[np.ndarray, "alpha component layer pos"]:
    plan = result.plan
    lengths = (plan.alphas, plan.components, plan.layers, plan.windows)
    return values.reshape([len(axis) for axis in lengths])
