"""Planning, running and drawing a sweep of the command line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.cli.progress import progress
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
    import matplotlib.figure
    import xarray


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run; see `plan`.

    Attributes:
        model: the model.
        contrast: the runs that are swept, and the token in question.
        words: words of the clean clip with their frames, for sweeps over time.
        cells: plan of the sweep.
        metrics: metrics of the sweep.
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
        """Plan the sweep without running it.

        Raises:
            InputError: see `plan_sweep`.
        """
        words = align_words(model, contrast.transcript) if selection.timed else ()
        cells = selection.plan(model, contrast, words)
        return cls(model, contrast, words, cells, tuple(map(contrast.metric, metrics)))

    @property
    def token_labels(self) -> list[str]:
        """The text of each token of the runs."""
        return axis_labels(require_tokenizer(self.model), self.contrast.tokens)

    @property
    def window_labels(self) -> list[str]:
        """A label for each window: its tokens, or the words that are said in it."""
        return window_labels(self.cells, self.token_labels, self.words)

    def describe(self, *, estimate: bool) -> str:
        """Describe the plan; `estimate` adds the time, which takes a short measurement."""
        plan = str(self.cells)
        return f"{plan}\n  {self.cells.estimate(self.metrics)}" if estimate else plan

    def run(self, options: SweepOptions, edit: Edit | None = None) -> SweepResult:
        """Run the exact sweep."""
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
        """Approximate the sweep to first order, by gradients."""
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
        """Return a result with named axes; a sweep over time also has the words in its windows."""
        dataset = result.to_dataset(self.token_labels)
        if self.cells.counts_frames:
            dataset = dataset.assign_coords(heard=("pos", self.window_labels))
        return dataset

    def draw(self, quantity: Quantity, title: str) -> "matplotlib.figure.Figure":
        """Draw a heatmap over tokens, or over time under the spectrogram."""
        if self.cells.counts_frames:
            mel = np.asarray(self.contrast.clean.mel)
            return plot_timeline(quantity, mel, self.words, title)
        return plot_sweep(quantity, self.token_labels, title)


def partial_file(out: Path) -> Path:
    """Return the path of the file that keeps an unfinished sweep."""
    return out / "unfinished.npz"
