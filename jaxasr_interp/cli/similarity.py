"""The command `similarity`: CKA between layers of an activation store, and their effective rank."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from jaxasr_interp.cli.options import (
    CsvOption,
    JsonOption,
    MemoryOption,
    OverwriteOption,
    parse_memory,
)
from jaxasr_interp.cli.output import console, name_model, print_json, write_csv, write_picture
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.extraction.reading import open_activations
from jaxasr_interp.extraction.representations import row_axes
from jaxasr_interp.probes.report import RANDOM
from jaxasr_interp.report.plots.geometry import plot_similarity, plot_spectrum
from jaxasr_interp.runtime.store import reserve, together, write_dataset, write_json
from jaxasr_interp.similarity.cka import Similarity, cka
from jaxasr_interp.similarity.spectrum import Spectrum, spectrum

if TYPE_CHECKING:
    import xarray


def similarity(
    store: Annotated[Path, typer.Argument(help="The store that extract wrote.")],
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Variables, such as encoder.resid_post.mean; by default all but the controls."
        ),
    ] = None,
    unbiased: Annotated[
        bool,
        typer.Option(help="Remove CKA's bias with few clips and many features."),
    ] = True,
    memory: MemoryOption = None,
    out: Annotated[Path, typer.Option(help="Folder for stores and pictures.")] = Path(
        "runs/similarity"
    ),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compare layers by CKA, also encoder with decoder, and compute their effective rank."""
    budget = parse_memory(memory)
    reserve(out / "similarity.json", overwrite, is_file=True)
    dataset = open_activations(store)
    names = site or [
        str(name)
        for name, values in dataset.data_vars.items()
        if str(name).count(".") == 2 and values.dtype.kind == "f"
    ]
    origin = {key: dataset.attrs[key] for key in ("model", "dtype") if key in dataset.attrs}
    model = name_model(dataset.attrs)
    rows: list[dict[str, Any]] = []
    tables: list[Table] = []

    def write(result: Similarity | Spectrum, path: Path) -> None:
        made = result.to_dataset().assign_attrs(origin)
        write_dataset(made, path.with_name(f"{path.name}.zarr"), overwrite=overwrite)
        if as_csv:
            write_csv(result.to_dataframe(), path.with_name(f"{path.name}.zarr"))

    with together(out), progress() as on_progress:
        for first, second in _pairs(dataset, names):
            stem = out / "cka" / (first if first == second else f"{first}-{second}")
            alike = cka(
                dataset, first, second, unbiased=unbiased, memory=budget, on_progress=on_progress
            )
            write(alike, stem)
            write_picture(plot_similarity(alike, f"linear CKA, {model}"), stem.parent, stem.name)
            rows.append({"first": first, "second": second, "cka": alike.cka.tolist()})
        for name in names:
            stem = out / "spectrum" / name
            own, control = (
                spectrum(dataset, of, on_progress=on_progress) if of in dataset else None
                for of in (name, RANDOM + name)
            )
            assert own is not None
            write(own, stem)
            write_picture(plot_spectrum(own, control, f"{name}, {model}"), stem.parent, stem.name)
            rows.append({"variable": name, "effective_rank": own.effective_rank.tolist()})
            tables.append(_table(own, control))
        write_json(out / "similarity.json", rows)
    if as_json:
        print_json(rows)
        return
    for table in tables:
        console.print(table)
    print(f"wrote {out}: cka and spectrum, of each a store and a picture")


def _pairs(dataset: "xarray.Dataset", names: list[str]) -> list[tuple[str, str]]:
    """Pair every variable with itself, and encoder with decoder variables of the same rows."""
    across = itertools.product(
        (name for name in names if name.startswith("encoder.")),
        (name for name in names if name.startswith("decoder.")),
    )
    return [(name, name) for name in names] + [
        pair for pair in across if row_axes(dataset, pair[0]) == row_axes(dataset, pair[1])
    ]


def _table(own: Spectrum, control: Spectrum | None) -> Table:
    table = Table(title=f"{own.name}: {own.rows} rows", title_justify="left")
    for name in ("layer", "effective rank", "with random weights", "share of first direction"):
        table.add_column(name, justify="right")
    for layer, rank in enumerate(own.effective_rank):
        variances = own.variances[layer]
        table.add_row(
            str(layer),
            f"{rank:.1f}",
            "" if control is None else f"{control.effective_rank[layer]:.1f}",
            f"{variances[0] / variances.sum():.0%}",
        )
    return table
