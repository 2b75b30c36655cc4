"""The command `aggregate`: the mean of a data-set sweep over its clips, with intervals."""

from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.cli.options import CsvOption, JsonOption, OverwriteOption, SeedOption
from jaxasr_interp.cli.output import console, name_model, print_json, write_csv, write_picture
from jaxasr_interp.patching.aggregate import Resampling, aggregate, top_cells
from jaxasr_interp.report.plots import plot_aggregate
from jaxasr_interp.report.tables import aggregate_table
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.location import locate
from jaxasr_interp.runtime.store import reserve, together, write_dataset
from jaxasr_interp.speech.tables import read_table


def aggregate_command(
    folder: Annotated[str, typer.Argument(help="Folder or URL of `sweep`.")],
    metric: Annotated[
        str | None, typer.Option(help="Metric of the sweep; by default the first.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Column of the table, or asked_word: average the questions of each value apart."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Table with columns value and class, for --by: average each class apart instead."
        ),
    ] = None,
    unit: Annotated[
        str,
        typer.Option(help="What is resampled: clip, or a column such as speaker."),
    ] = "clip",
    level: Annotated[float, typer.Option(help="Probability of the intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(min=1, help="Number of resamples.")] = 1000,
    seed: SeedOption = 0,
    top: Annotated[int, typer.Option(min=1, help="Number of components to list.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the summary; by default FOLDER, or runs/aggregate for a URL."),
    ] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Average what patches recover over all clips, for every component, layer and position group.

    Positions are grouped around the word that is asked for: the prompt, the text, and the token
    before the word; or the time before, in and after the word. Needs no model.
    """
    place = locate(folder)
    target = out or (place if isinstance(place, Path) else Path("runs/aggregate"))
    named = (metric, by, None if classes is None else classes.stem)
    name = "aggregate" + "".join(f"_{part}" for part in named if part)
    store = target / f"{name}.zarr"
    reserve(store, overwrite)
    resampling = Resampling(unit, level, resamples, seed)
    of_values = None
    if classes is not None:
        rows = read_table(classes, ("value", "class"), "give columns value and class")
        of_values = {row["value"]: row["class"] for row in rows}
    summary = aggregate(folder, metric=metric, by=by, classes=of_values, resampling=resampling)
    title = f"{name_model(summary.attrs)}: {Path(folder).name}"
    with together(target):
        pictures = write_picture(plot_aggregate(summary, title), target, name)
        if as_csv:
            write_csv(to_dataframe(summary, summary["mean"].dims), store)
        write_dataset(summary, store, overwrite=overwrite)
    if as_json:
        print_json({"top": top_cells(summary, top), "path": str(store)})
        return
    console.print(aggregate_table(summary, top))
    print(f"wrote {store} and {', '.join(map(str, pictures))}")
