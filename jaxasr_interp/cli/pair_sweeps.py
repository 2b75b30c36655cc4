"""The parts that `patch` and `attribution` share: the sweep of a pair of runs and its output."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.output import console, print_json, say, write_csv, write_picture
from jaxasr_interp.cli.pairs import Pair
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.cli.sweeps import Sweep
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import require_tokenizer
from jaxasr_interp.patching.comparison import Agreement
from jaxasr_interp.patching.inputs import DIRECTIONS
from jaxasr_interp.patching.metric_names import check_metric_name
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.report.plots import axis_labels, recovery
from jaxasr_interp.report.tables import sweep_table
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset, together

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a command's results go, and in which form.

    Attributes:
        folder: folder for the results.
        plan_only: whether to stop at the plan.
        as_json: whether to print JSON.
        as_csv: whether to write a table too.
        overwrite: whether to replace results.
    """

    folder: Path
    plan_only: bool
    as_json: bool
    as_csv: bool
    overwrite: bool


@dataclasses.dataclass(frozen=True)
class PairRequest:
    """The request of either command; see their options.

    Attributes:
        pair: the two runs.
        selection: the cells.
        metrics: names of the metrics.
        direction: which run is patched.
        model: name of the model, and dtype of its weights.
        output: where the results go.

    Raises:
        InputError: there is no such metric or direction.
    """

    pair: Pair
    selection: Selection
    metrics: Sequence[str]
    direction: str
    model: tuple[str, str | None]
    output: Output

    def __post_init__(self):
        for name in self.metrics:
            check_metric_name(name)
        if self.direction not in DIRECTIONS:
            raise InputError(
                f"Unknown direction {self.direction!r}: choose one of {', '.join(DIRECTIONS)}."
            )


@dataclasses.dataclass(frozen=True)
class Swept:
    """A sweep, with its approximation and the cells verified if there are any.

    Attributes:
        result: the exact sweep, or the approximate one if there is no exact one.
        approximate: the approximation of an exact sweep.
        verified: the best cells of an approximation, swept exactly.
        agreement: how well both sweeps agree.
    """

    result: SweepResult
    approximate: SweepResult | None = None
    verified: SweepResult | None = None
    agreement: Agreement | None = None

    def to_dataset(self, sweep: Sweep) -> "xarray.Dataset":
        """Return all values as arrays with named axes."""
        dataset = sweep.to_dataset(self.result)
        axes = dataset.patched.dims
        for name, other in (("approximate", self.approximate), ("verified", self.verified)):
            if other is not None:
                dataset[name] = (axes, other.patched)
        if self.agreement is not None:
            dataset["rank_correlation"] = ("metric", self.agreement.rank_correlation)
            dataset["overlap"] = ("metric", self.agreement.overlap)
        return dataset

    def show(self, window_labels: Sequence[str]) -> None:
        """Print the best cells, and how far an approximation can be trusted."""
        _show(self.result, window_labels)
        if self.agreement is not None:
            print(f"attribution against the exact sweep\n{self.agreement}")
        if self.verified is not None:
            _show(self.verified, window_labels, most=self.verified.plan.runs)


def sweep_pair(request: PairRequest, run: Callable[[Sweep], Swept]) -> None:
    """Plan the sweep of a pair and run it; write its store and pictures, print its best cells.

    Args:
        request: the request.
        run: function that runs the planned sweep.

    Raises:
        InputError: a clip cannot be read, the pair gives no question, or the sweep does not fit the
            model.
    """
    pair, output = request.pair, request.output
    name, dtype = request.model
    store = output.folder / "sweep.zarr"
    if not output.plan_only:
        reserve(store, output.overwrite)
    model = load_model(name, dtype)
    tokenizer = require_tokenizer(model)
    contrast = pair.ask(model, request.selection.encoder_sites)
    sweep = Sweep.plan(model, contrast, request.selection, request.metrics)
    target, other = axis_labels(tokenizer, [contrast.target, contrast.other])
    if output.plan_only or not output.as_json:
        corrupted = contrast.corrupted_text or pair.corrupted
        print(f"clean:     {contrast.clean_text}\ncorrupted: {corrupted}")
        print(f"question:  {target!r} or {other!r}?")
        print(sweep.describe(estimate=output.plan_only))
    if output.plan_only:
        return

    swept = run(sweep)
    dataset = swept.to_dataset(sweep).assign_attrs(
        file_provenance(clean=pair.clean, corrupted=pair.corrupted)
        | contrast.provenance
        | {"target": target, "other": other, "seed": pair.seed}
    )
    _say_what_agrees(swept.result)
    title = (
        f"{Path(pair.clean).name} says {target!r}, {Path(pair.corrupted).name} {other!r} "
        f"({Path(name).name})"
    )
    with together(output.folder):
        pictures = [
            path
            for metric in request.metrics
            for path in write_picture(
                sweep.draw(recovery(swept.result, metric), title), output.folder, metric
            )
        ]
        if output.as_csv:
            write_csv(to_dataframe(dataset, dataset.patched.dims), store)
        save_dataset(dataset, store, model, overwrite=output.overwrite)
    if output.as_json:
        print_json(dataset.to_dict())
        return
    swept.show(sweep.window_labels)
    print(f"wrote {store} and {', '.join(map(str, pictures))}")


def _say_what_agrees(result: SweepResult) -> None:
    """Print a line on standard error for each metric that is equal in both runs."""
    for name, clean, recovered in zip(result.metrics, result.clean, result.recovered, strict=True):
        if not np.isfinite(recovered).any():
            say(
                f"note: {name} is {clean:.4g} in both runs, so that there is nothing to recover: "
                "what patches change of it is shown instead."
            )


def _show(result: SweepResult, window_labels: Sequence[str], most: int = 5) -> None:
    baselines = f" (clean {result.clean[0]:.2f}, corrupted {result.corrupted[0]:.2f})"
    quantity = recovery(result, result.metrics[0])
    console.print(sweep_table(quantity, window_labels, baselines, most))
