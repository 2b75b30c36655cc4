"""The numbers that pictures and tables of a sweep show: recovered shares, or changes."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult

_BEYOND = 0.05
_SMALLEST = 1e-6
_IN_NATS = ("log_prob", "entropy", "kl", "kl_all", "cross_entropy")
_SHARES = (0.1, 0.25, 0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number for each cell of a sweep.

    Attributes:
        plan: plan of the sweep.
        values: numbers over all four axes of the plan, even axes with one entry.
        label: what the numbers mean.
        unit: `"share"` (1 is all) or `"number"`, in the metric's own unit.
    """

    plan: SweepPlan
    values: Float[np.ndarray, "alpha component layer pos"]
    label: str
    unit: Literal["share", "number"]

    def text(self, value: float) -> str:
        """Return a number as it is written in a cell or table."""
        if not np.isfinite(value):
            return "–"
        if self.unit == "share":
            # Adding 0 makes a -0 a 0.
            return f"{round(value, 2) + 0:.0%}" if abs(value) < 10 else f"{value:.0f}×"
        if abs(value) < 0.095:
            return f"{value:.1g}"
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"

    @property
    def limit(self) -> float:
        """The value at which colours end.

        Numbers end at the largest one. Shares end at 10%, 25%, 50%, 100% or 200%, so that pictures
        can be compared; where some are larger than 200%, at 100% or more, such that one cell in
        twenty lies beyond.
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
        """The ends of the values that the colours do not reach: `""`, or `"-30% to 199%"`."""
        values = self.values[np.isfinite(self.values)]
        ends = [values.min(initial=0), values.max(initial=0)]
        return " to ".join(self.text(float(end)) for end in ends if abs(end) > self.limit)

    @property
    def span(self) -> str:
        """The colours' range as text, such as `±25%`."""
        return f"±{self.text(self.limit)}"

    @property
    def line_names(self) -> list[str]:
        """The labels of the strengths α."""
        return [f"α = {alpha:g}" for alpha in self.plan.alphas]

    @property
    def rows(self) -> list[str]:
        """The labels of the rows."""
        return ["" if layer is None else str(layer) for layer in self.plan.layers]


def share(result: SweepResult, metric: str) -> Quantity:
    """Return how much of the difference between the two runs each patch makes up.

    For patches into the corrupted run it is the share of the metric that they recover; for patches
    into the clean run it is the share that they lose.
    """
    values = _all_axes(result, result.recovered[result.metrics.index(metric)])
    if result.direction == "clean_to_corrupted":
        return Quantity(result.plan, values, f"share of {metric} recovered{_how(result)}", "share")
    return Quantity(result.plan, 1 - values, f"share of {metric} lost{_how(result)}", "share")


def change(result: SweepResult, metric: str) -> Quantity:
    """Return how much each patch changes the metric, from that of the run that is patched."""
    i = result.metrics.index(metric)
    before = result.corrupted if result.direction == "clean_to_corrupted" else result.clean
    values = _all_axes(result, result.patched[i] - before[i])
    unit = " in nats" if metric in _IN_NATS else ""
    return Quantity(result.plan, values, f"change of {metric}{unit}{_how(result)}", "number")


def recovery(result: SweepResult, metric: str) -> Quantity:
    """Return `share`, or `change` where both runs have the same metric and no share exists."""
    found = share(result, metric)
    return found if np.isfinite(found.values).any() else change(result, metric)


def scales(quantity: Quantity) -> list[tuple[list[int], Quantity]]:
    """Split the components by the size of their effects: whole sites, and single heads.

    Returns:
        For each the numbers of its components, and their quantity with colours of its own; one
        scale with all components where they are of one kind.
    """
    kinds = {"sites": [], "heads": []}
    for number, (_, head) in enumerate(quantity.plan.components):
        kinds["sites" if head is None else "heads"].append(number)
    found = [(name, numbers) for name, numbers in kinds.items() if numbers]
    if len(found) == 1:
        return [(found[0][1], quantity)]
    return [
        (
            numbers,
            dataclasses.replace(
                quantity, values=quantity.values[:, numbers], label=f"{name}: {quantity.label}"
            ),
        )
        for name, numbers in found
    ]


def _how(result: SweepResult) -> str:
    """Return a note for numbers that are approximations, and `""` for exact ones."""
    return "" if result.method == "exact" else f", first-order approximation ({result.method})"


def _all_axes(
    result: SweepResult, values: Float[np.ndarray, "*cells"]
) -> Float[np.ndarray, "alpha component layer pos"]:
    plan = result.plan
    lengths = (plan.alphas, plan.components, plan.layers, plan.windows)
    return values.reshape([len(axis) for axis in lengths])
