"""The command `extract`: activations of many clips in a store."""

import collections
import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    CLIPS,
    DevicesOption,
    DtypeOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    OverwriteOption,
    WhereOption,
    parse_where,
)
from jaxasr_interp.cli.output import print_json, say
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.extraction.extract import DEFAULT_SITES, ExtractOptions, extract
from jaxasr_interp.runtime.placement import replicate
from jaxasr_interp.runtime.store import open_dataset
from jaxasr_interp.speech.texts import OWN


def extract_command(
    manifest: Annotated[
        str,
        typer.Argument(help=f"The clips: {CLIPS}, with path, text and labels."),
    ],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="STACK.SITE:REDUCTION, by default "
            f"{' and '.join(DEFAULT_SITES)}; repeatable. Reductions: mean, max, end, at=3,-1, "
            "word=COLUMN, every=K, all."
        ),
    ] = None,
    where: WhereOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of clips to take.")] = None,
    snr: Annotated[
        list[float] | None,
        typer.Option(help="Add copies of all clips with white noise at this dB; repeatable."),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            help="Text that the decoder takes: own for the model's own transcript, or a column of "
            "texts."
        ),
    ] = "own",
    language: LanguageOption = None,
    control: Annotated[
        bool,
        typer.Option("--random/--no-random", help="Also extract from a model of random weights."),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    store_dtype: Annotated[
        str, typer.Option(help="dtype of the store: float32 or float16.")
    ] = "float32",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Number of clips in a batch.")
    ] = None,
    devices: DevicesOption = None,
    out: Annotated[Path, typer.Option(help="The Zarr store.")] = Path("runs/activations.zarr"),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Extract activations of many clips: chosen sites, reduced on the device, with labels.

    The same command resumes an interrupted extraction. A clip that cannot be read is left out and
    named at the end. `probe` reads the store, and so does
    xarray.open_zarr(path, consolidated=False).
    """
    options = ExtractOptions(
        where=parse_where(where or []),
        limit=limit,
        snr=snr or (),
        text=text,
        language=language,
        random_seed=seed if control else None,
        dtype=store_dtype,
        batch_size=batch_size,
    )
    whisper = replicate(load_model(model, dtype), devices)
    with progress() as on_progress:
        done = extract(
            whisper,
            manifest,
            out,
            sites=site or DEFAULT_SITES,
            options=options,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    for path, problem in done.problems:
        say(f"left out: {path}: {problem}")
    if as_json:
        print_json(dataclasses.asdict(done) | {"path": str(done.path)})
    if len(done.problems) == done.clips:
        say("no clip is left")
        raise typer.Exit(1)
    if as_json:
        return
    print(f"wrote {done.path}: {done.done - len(done.problems)} of {done.clips} clips")
    for source, count in _texts_given(done.path).items():
        what = "what the model itself writes" if source == OWN else f"the column {source}"
        print(f"the decoder was given {what}: {count} clips")


def _texts_given(path: str | Path) -> dict[str, int]:
    """Count clips by the source of their text; the result is empty if no text was needed."""
    dataset = open_dataset(path)
    if "decoder_text_source" not in dataset:
        return {}
    return collections.Counter(source for source in dataset.decoder_text_source.values if source)
