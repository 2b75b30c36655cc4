"""A sweep of the command line: planned, run with a progress bar, and drawn."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.cli.output import progress
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.generation.word_times import Word, align_words
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching.attribution import AttributionOptions, attribution_patching
from jaxasr_interp.patching.comparison import verify_top
from jaxasr_interp.patching.contrast import Contrast
from jaxasr_interp.patching.metrics import Metric
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import SweepOptions, activation_patching
from jaxasr_interp.report.plots import Quantity, axis_labels, plot_sweep, plot_timeline
from jaxasr_interp.report.tables import window_labels

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run; see `plan`.

    Attributes:
        model: the model.
        contrast: the runs that are swept, and what is asked of them.
        words: when the words of the clean clip are said, for sweeps over time.
        cells: the plan.
        metrics: what is read.
    """

    model: Whisper
    contrast: Contrast
    words: tuple[Word, ...]
    cells: SweepPlan
    metrics: tuple[Metric, ...]

    @classmethod
    def plan(
        cls, model: Whisper, contrast: Contrast, selection: Selection, metrics: Sequence[str]
    ) -> "Sweep":
        """Find out what the sweep does, without doing any of it.

        Raises:
            InputError: see `plan_sweep`.
        """
        words = align_words(model, contrast.transcript) if selection.timed else ()
        cells = selection.plan(model, contrast, words)
        return cls(model, contrast, words, cells, tuple(map(contrast.metric, metrics)))

    @property
    def token_labels(self) -> list[str]:
        """The text of each token that the runs are given."""
        return axis_labels(require_tokenizer(self.model), self.contrast.tokens)

    @property
    def window_labels(self) -> list[str]:
        """What each window holds: its tokens, or the words said in its time."""
        return window_labels(self.cells, self.token_labels, self.words)

    def describe(self, *, estimate: bool) -> str:
        """What the sweep will do, and on demand how long it would take, which is measured."""
        plan = str(self.cells)
        return f"{plan}\n  {self.cells.estimate(self.metrics)}" if estimate else plan

    def run(self, options: SweepOptions, edit: Edit | None = None) -> SweepResult:
        """Run it exactly."""
        with progress() as on_progress:
            return activation_patching(
                self.model,
                self.cells,
                clean=self.contrast.clean,
                corrupted=self.contrast.corrupted,
                metric=self.metrics,
                edit=edit,
                options=options,
                on_progress=on_progress,
            )

    def approximate(self, options: AttributionOptions) -> SweepResult:
        """Run it to first order, by gradients."""
        with progress() as on_progress:
            return attribution_patching(
                self.model,
                self.cells,
                clean=self.contrast.clean,
                corrupted=self.contrast.corrupted,
                metric=self.metrics,
                options=options,
                on_progress=on_progress,
            )

    def verify(self, approximate: SweepResult, count: int) -> SweepResult:
        """Run the best cells of an approximation exactly."""
        return verify_top(
            self.model,
            approximate,
            count,
            clean=self.contrast.clean,
            corrupted=self.contrast.corrupted,
            metric=self.metrics,
        )

    def to_dataset(self, result: SweepResult) -> "xarray.Dataset":
        """A result with named axes; for sweeps over time with the words that are said."""
        dataset = result.to_dataset(self.token_labels)
        if self.cells.counts_frames:
            dataset = dataset.assign_coords(heard=("pos", self.window_labels))
        return dataset

    def draw(self, quantity: Quantity, title: str, path: Path) -> Path:
        """A heatmap over tokens, or over time under the spectrogram."""
        if self.cells.counts_frames:
            mel = np.asarray(self.contrast.clean.mel)
            return plot_timeline(quantity, mel, self.words, title, path)
        return plot_sweep(quantity, self.token_labels, title, path)


def partial_file(out: Path) -> Path:
    """Where an unfinished sweep is kept."""
    return out / "unfinished.npz"
