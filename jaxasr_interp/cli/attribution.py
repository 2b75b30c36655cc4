"""The command `attribution`: sweeps of `patch`, approximated by gradients, with exact checks."""

from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.cli import options, pairs
from jaxasr_interp.cli.pair_sweeps import Output, PairRequest, Swept, sweep_pair
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.cli.sweeps import Sweep, partial_file
from jaxasr_interp.patching.attribution import AttributionOptions
from jaxasr_interp.patching.comparison import agreement
from jaxasr_interp.patching.sweep import SweepOptions


def attribution(
    clean: pairs.CleanArgument,
    corrupted: pairs.CorruptedArgument,
    model: options.ModelOption = "tiny.en",
    dtype: options.DtypeOption = None,
    language: options.LanguageOption = None,
    text: pairs.TextOption = None,
    word: pairs.WordOption = None,
    steps: Annotated[int, typer.Option(help="Steps of integrated gradients; 1 is none.")] = 1,
    exact: Annotated[bool, typer.Option("--exact", help="Also sweep exactly; compare.")] = False,
    verify: Annotated[
        int | None,
        typer.Option("--verify-top", help="Sweep this number of the best cells exactly."),
    ] = None,
    site: options.SweptSiteOption = None,
    positions: options.PositionsOption = None,
    window: options.WindowOption = None,
    alpha: options.AlphaOption = "1",
    direction: options.DirectionOption = "clean_to_corrupted",
    metric: options.MetricOption = None,
    memory: options.MemoryOption = None,
    plan_only: options.PlanOption = False,
    out: pairs.OutOption = Path("runs/attribution"),
    as_json: options.JsonOption = False,
    as_csv: options.CsvOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Approximate the sweep of `patch` by gradients: all of its cells in a few backward passes.

    The runs, the cells and the question are those of `patch`. The option --exact shows how far the
    approximation can be trusted; --verify-top does so for the cells with the largest effects.
    """
    pair = pairs.Pair.read(clean, corrupted, text, word, language)
    sites = site or pairs.DEFAULT_SITES
    cells = Selection.read(sites, positions=positions, window=window, alpha=alpha, memory=memory)
    output = Output(out, plan_only, as_json, as_csv, overwrite)
    names = metric or pair.default_metrics
    request = PairRequest(pair, cells, names, direction, (model, dtype), output)

    def run(sweep: Sweep) -> Swept:
        approximate = sweep.approximate(AttributionOptions(direction=direction, steps=steps))
        verified = None if verify is None else sweep.verify(approximate, verify)
        if not exact:
            return Swept(approximate, verified=verified)
        result = sweep.run(SweepOptions(direction=direction, resume=partial_file(out)))
        agreed = agreement(result, approximate) if sweep.cells.runs > 1 else None
        return Swept(result, approximate, verified, agreed)

    sweep_pair(request, run)
    if not plan_only:
        partial_file(out).unlink(missing_ok=True)
