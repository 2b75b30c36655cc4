"""Running a sweep from the command line, and what is made of it: a store, tables, pictures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.cli.output import console, errors, progress_of_total
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.attribution import attribution_patching
from jaxasr_interp.patching.comparison import Agreement, agreement, verify_top
from jaxasr_interp.patching.contrast import Contrast
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import activation_patching
from jaxasr_interp.report.plots import Quantity, plot_sweep, plot_timeline, recovery
from jaxasr_interp.report.tables import sweep_table

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True)
class Attribution:
    """How a sweep is approximated.

    Attributes:
        steps: 1 for the gradient, more for integrated gradients.
        exact: also sweep exactly.
        verify: how many of the best cells to sweep exactly.
    """

    steps: int
    exact: bool
    verify: int | None


@dataclasses.dataclass(frozen=True)
class Swept:
    """A sweep, with its approximation and the cells verified if there are any.

    Attributes:
        result: the exact sweep, or the approximate one where that is all there is.
        approximate: the approximation of an exact sweep.
        verified: the best cells of an approximation, swept exactly.
        agreement: how well the two go together.
    """

    result: SweepResult
    approximate: SweepResult | None = None
    verified: SweepResult | None = None
    agreement: Agreement | None = None

    def to_dataset(self, token_labels: Sequence[str], heard: Sequence[str]) -> "xarray.Dataset":
        """All of it with named axes; for sweeps over time with the words that are said."""
        dataset = self.result.to_dataset(token_labels)
        axes = dataset.patched.dims
        if self.result.plan.counts_frames:
            dataset = dataset.assign_coords(heard=("pos", list(heard)))
        for name, other in (("approximate", self.approximate), ("verified", self.verified)):
            if other is not None:
                dataset[name] = (axes, other.patched)
        if self.agreement is not None:
            dataset["rank_correlation"] = ("metric", self.agreement.rank_correlation)
            dataset["overlap"] = ("metric", self.agreement.overlap)
        return dataset

    def show(self, heard: Sequence[str]) -> None:
        """Print the best cells, and how far an approximation can be trusted."""
        _show(self.result, heard)
        if self.agreement is not None:
            print(f"attribution against the exact sweep\n{self.agreement}")
        if self.verified is not None:
            _show(self.verified, heard, most=self.verified.plan.runs)


def run_sweep(
    model: Whisper,
    plan: SweepPlan,
    contrast: Contrast,
    metrics: Sequence[str],
    *,
    direction: str,
    method: str = "minimal",
    edit: Edit | None = None,
    attribution: Attribution | None = None,
    resume: Path | None = None,
) -> Swept:
    """Run a plan with a progress bar, exactly (going on where it was cut off) or by gradients."""
    runs = {
        "clean": contrast.clean,
        "corrupted": contrast.corrupted,
        "metric": [contrast.metric(name) for name in metrics],
        "edit": edit,
    }

    def exactly() -> SweepResult:
        with progress_of_total(plan.runs, "patch") as advance:
            return activation_patching(
                model,
                plan,
                direction=direction,
                method=method,
                resume=resume,
                on_progress=advance,
                **runs,
            )

    if attribution is None:
        return Swept(exactly())
    with progress_of_total(plan.runs, "patch") as advance:
        approximate = attribution_patching(
            model, plan, direction=direction, steps=attribution.steps, on_progress=advance, **runs
        )
    verified = None
    if attribution.verify is not None:
        verified = verify_top(model, plan, approximate, attribution.verify, **runs)
    if not attribution.exact:
        return Swept(approximate, verified=verified)
    exact = exactly()
    agreed = agreement(exact, approximate) if plan.runs > 1 else None
    return Swept(exact, approximate, verified, agreed)


def partial_file(out: Path) -> Path:
    """Where an unfinished sweep is kept."""
    return out / "unfinished.npz"


def draw(
    quantity: Quantity,
    contrast: Contrast,
    token_labels: Sequence[str],
    words: Sequence[Word],
    title: str,
    path: Path,
) -> Path:
    """A heatmap over tokens, or over time under the spectrogram."""
    if quantity.plan.counts_frames:
        return plot_timeline(quantity, np.asarray(contrast.clean_mel), words, title, path)
    return plot_sweep(quantity, token_labels, title, path)


def say_what_agrees(result: SweepResult) -> None:
    """A line on standard error for each metric that the two runs agree in."""
    for name, clean, recovered in zip(result.metrics, result.clean, result.recovered, strict=True):
        if not np.isfinite(recovered).any():
            errors.print(
                f"note: {name} is {clean:.4g} in both runs, so that there is nothing to recover: "
                "what patches change of it is shown instead.",
                markup=False,
                soft_wrap=True,
            )


def baselines(result: SweepResult, metric: str) -> str:
    """The unpatched values of a metric, for a table's title."""
    i = result.metrics.index(metric)
    return f" (clean {result.clean[i]:.2f}, corrupted {result.corrupted[i]:.2f})"


def _show(result: SweepResult, heard: Sequence[str], most: int = 5) -> None:
    metric = result.metrics[0]
    note = baselines(result, metric)
    console.print(sweep_table(recovery(result, metric), heard, note, most))
