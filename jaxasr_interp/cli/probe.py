"""The command `probe`: what probes read about labels from every layer of an activation store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from jaxasr_interp.cli.options import CsvOption, JsonOption, OverwriteOption
from jaxasr_interp.cli.output import console, name_model, print_json, write_csv, write_picture
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.reading import open_activations
from jaxasr_interp.extraction.representations import row_axes
from jaxasr_interp.probes import FitOptions, ProbeReport, probe_store, save_probes
from jaxasr_interp.probes.labels import parse_target, relabel
from jaxasr_interp.probes.options import METHODS
from jaxasr_interp.probes.scores import CLASS_SCORES, VALUE_SCORES
from jaxasr_interp.report.plots.probes import plot_probes
from jaxasr_interp.report.tables import probe_table
from jaxasr_interp.runtime.store import reserve, together, write_dataset, write_json

if TYPE_CHECKING:
    import xarray


def probe(
    store: Annotated[Path, typer.Argument(help="The store that extract wrote.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of labels, or classes made of its values: "
            "speech=kind:yes=read_en|gender;no=nonspeech (with * and ?); repeatable."
        ),
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="A column of numbers, for a regression; repeatable.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Keep clips with the same value of this column on one side of splits."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Variables, such as encoder.resid_post.mean; all by default."),
    ] = None,
    method: Annotated[str, typer.Option(help=f"Solver: {', '.join(METHODS)}.")] = "lbfgs",
    hidden: Annotated[
        int | None, typer.Option(help="Also fit probes with a hidden layer of this size.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Number of folds of the cross-validation.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Number of different random splits.")] = 1,
    least: Annotated[
        int, typer.Option(help="Leave out classes with fewer examples; by default --folds.")
    ] = 0,
    balanced: Annotated[bool, typer.Option(help="Give all classes equal weight.")] = False,
    score: Annotated[
        str | None,
        typer.Option(
            help="Score in the picture: accuracy, balanced_accuracy, auc "
            "or macro_f1; r2 or mean_absolute_error."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for stores, pictures and probes.")] = Path(
        "runs/probes"
    ),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Fit linear probes to every layer, and as controls to shuffled labels, random weights, mel."""
    reserve(out / "probes.json", overwrite, is_file=True)
    dataset = open_activations(store)
    targets: dict[str, Any] = {}
    for text in target or ():
        name, column, patterns = parse_target(text)
        if name in targets:
            raise InputError(f"The target {name!r} is given twice: name one of them otherwise.")
        targets[name] = relabel(_column(dataset, column), patterns, least or folds)
    for column in value or ():
        targets[column] = np.array([_number(column, text) for text in _column(dataset, column)])
    if not targets:
        raise InputError("Nothing is asked: give a --target or a --value.")
    for name in targets:
        _check_score(score, name, name in (value or ()))
    variables = site or sorted(
        str(name)
        for name in dataset.data_vars
        if str(name).count(".") == 2 and set(row_axes(dataset, str(name))) == {"clip"}
    )
    if len(set(variables)) < len(variables):
        raise InputError(f"A --site is given twice: {', '.join(variables)}.")
    for path in (out / name / variable for name in targets for variable in variables):
        for result in ("scores.zarr", "probes"):
            reserve(path / result, overwrite)
    groups = None if group is None else _column(dataset, group)
    options = FitOptions(n_folds=folds, seeds=range(seeds), method=method, balanced=balanced)
    rows: list[dict[str, Any]] = []
    with together(out):
        for variable in variables:
            with progress() as on_progress:
                reports = probe_store(
                    dataset,
                    variable,
                    targets,
                    groups=groups,
                    options=options,
                    n_hidden=hidden,
                    on_progress=on_progress,
                )
            for name, report in reports.items():
                path = out / name / variable
                scores = report.to_dataset().assign_attrs(_origin(dataset))
                write_dataset(scores, path / "scores.zarr", overwrite=overwrite)
                if as_csv:
                    write_csv(report.to_dataframe(), path / "scores.zarr")
                save_probes(report.probes, path / "probes", overwrite=overwrite)
                figure = plot_probes(
                    report, f"{name} in {variable} of {name_model(dataset.attrs)}", score=score
                )
                write_picture(figure, path, "scores")
                rows.append(_row(name, report))
                if not as_json:
                    console.print(probe_table(name, report))
        write_json(out / "probes.json", rows)
    if as_json:
        print_json(rows)
    else:
        print(f"wrote {out}: for each target and variable scores.zarr, a picture and probes")


def _column(dataset: "xarray.Dataset", name: str) -> list[str]:
    if name not in dataset.variables or "." in name or dataset[name].dims != ("clip",):
        known = sorted(str(n) for n, v in dataset.variables.items() if v.dtype.kind in "OTU")
        raise InputError(f"The store has no column {name!r}: it has {', '.join(known)}.")
    return [str(value) for value in dataset[name].to_numpy().tolist()]


def _number(column: str, text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise InputError(f"{column!r} holds {text!r}, no number: probe it as a --target.") from None


def _check_score(score: str | None, name: str, is_value: bool) -> None:
    if score is not None and score not in (*CLASS_SCORES, *VALUE_SCORES):
        known = ", ".join((*CLASS_SCORES, *VALUE_SCORES))
        raise InputError(f"Unknown score {score!r}: choose one of {known}.")
    own = VALUE_SCORES if is_value else CLASS_SCORES
    if score is not None and score not in own:
        raise InputError(f"{name!r} has no score {score!r}: choose one of {', '.join(own)}.")


def _origin(dataset: "xarray.Dataset") -> dict[str, Any]:
    """Return the attributes that say where the activations came from."""
    return {name: dataset.attrs[name] for name in ("model", "dtype") if name in dataset.attrs}


def _row(name: str, report: ProbeReport) -> dict[str, Any]:
    return {
        "target": name,
        "variable": report.variable,
        "best_layer": report.best_layer,
        "curves": {
            curve: {score: scores.estimate[score].tolist() for score in report.scores}
            for curve, scores in report.curves.items()
        },
        "controls": {line: dict(scores) for line, scores in report.lines.items()},
    }
