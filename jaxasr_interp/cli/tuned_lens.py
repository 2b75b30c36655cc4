"""The command `tuned-lens`, which trains a tuned lens for `lens --tuned`."""

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.clips import read_clips
from jaxasr_interp.cli.options import (
    CLIPS,
    CsvOption,
    DtypeOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    OverwriteOption,
)
from jaxasr_interp.cli.output import console, print_json, write_csv, write_picture
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.lens.tuned_checkpoints import CHECKPOINTS
from jaxasr_interp.lens.tuned_training import LensTraining, TunedLens, train_tuned_lens
from jaxasr_interp.report.plots import plot_tuned_lens
from jaxasr_interp.runtime.store import reserve, save_dataset, together

_DEFAULT = LensTraining()


def tuned_lens(
    files: Annotated[
        list[str], typer.Argument(help=f"The clips: {CLIPS}, with path, and perhaps text and lang.")
    ],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    given_text: Annotated[
        bool,
        typer.Option(help="Use the texts of the table, not the model's own transcripts."),
    ] = True,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = _DEFAULT.steps,
    batch_size: Annotated[int, typer.Option(help="Positions in a step.")] = _DEFAULT.batch_size,
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate at the first step.")
    ] = _DEFAULT.learning_rate,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay of AdamW.")
    ] = _DEFAULT.weight_decay,
    held_out: Annotated[
        float, typer.Option(help="Share of the clips that measure the lens and do not train it.")
    ] = _DEFAULT.held_out,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split and order.")] = _DEFAULT.seed,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, store and picture.")] = Path(
        "runs/tuned-lens"
    ),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a tuned lens on clips; the same command resumes an interrupted training."""
    training = LensTraining(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        held_out=held_out,
        seed=seed,
    )
    reserve(out / "tuned_lens.zarr", overwrite)
    whisper = load_model(model, dtype)
    clips = read_clips(whisper, files, language, reads_text=given_text)
    if not given_text:
        clips = [dataclasses.replace(clip, text=None) for clip in clips]
    if overwrite:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    with progress() as on_progress:
        lens = train_tuned_lens(whisper, clips, out, training, on_progress=on_progress)
    dataset = lens.to_dataset().assign_attrs(dataclasses.asdict(training))
    with together(out):
        figure = plot_tuned_lens(dataset, f"lenses of {Path(model).name}")
        pictures = write_picture(figure, out, "tuned_lens")
        if as_csv:
            write_csv(lens.to_dataframe(), out / "tuned_lens.zarr")
        save_dataset(dataset, out / "tuned_lens.zarr", whisper, overwrite=overwrite)
    if as_json:
        print_json(dataset[["kl"]].to_dict())
        return
    console.print(_table(lens))
    print(
        f"wrote {out}: checkpoints, tuned_lens.zarr and {', '.join(path.name for path in pictures)}"
    )


def _table(lens: TunedLens) -> Group:
    trained, held_out = lens.rows
    table = Table()
    for name in ("layer", "logit lens", "tuned lens"):
        table.add_column(name, justify="right")
    for layer, (logit, tuned) in enumerate(zip(lens.logit_kl, lens.tuned_kl, strict=True)):
        table.add_row(str(layer), f"{logit:.3f}", f"{tuned:.3f}")
    # The title stands outside the table, which would wrap it to its width.
    title = (
        f"mean KL(final ‖ layer) in nats on {held_out} held-out positions ({trained} trained on)"
    )
    return Group(title, table)
