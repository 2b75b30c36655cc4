"""The command `ablate-text`: transcripts of many clips without each component."""

import math
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.ablation.sweep import ablation_sweep, component_edits
from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.ablations import default_sites, read_kind
from jaxasr_interp.cli.clips import read_clips
from jaxasr_interp.cli.options import (
    CLIPS,
    AlphaOption,
    CsvOption,
    DevicesOption,
    DtypeOption,
    EditsOption,
    JsonOption,
    LanguageOption,
    MemoryOption,
    ModelOption,
    OverwriteOption,
    SweptSiteOption,
    parse_alphas,
    parse_memory,
    refuse_options,
)
from jaxasr_interp.cli.output import console, print_json, write_csv, write_picture
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.cli.selection import SweptSites
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.kind_text import KindText
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.report.plots import plot_text_sweep
from jaxasr_interp.report.tables import text_sweep_table
from jaxasr_interp.runtime.placement import replicate
from jaxasr_interp.runtime.store import reserve, save_dataset, together


def ablate_text(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(help=f"Audio files of up to 30 s, or {CLIPS} with path, text and lang."),
    ],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    kind: Annotated[
        str,
        typer.Option(
            help="Edit of each component: zero, scale:factor=0.5, noise:std=0.5, "
            "add:vector=v.npy, mix:ref=FILE (by default noise; or silence), "
            "mean:ref=a.flac,b.flac or knockout:keys=START..STOP; noise and mix also take :seed=1."
        ),
    ] = "zero",
    site: SweptSiteOption = None,
    alpha: AlphaOption = "1",
    edit: EditsOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Largest number of tokens.")] = 100,
    memory: MemoryOption = None,
    devices: DevicesOption = None,
    out: Annotated[Path, typer.Option(help="Folder for texts.zarr and pictures.")] = Path(
        "runs/ablate-text"
    ),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Transcribe clips without each component, or under each --edit, and compare the texts.

    By default every layer's sublayers and every head of the decoder are set to zero, one at a
    time. The comparison covers word errors, repetition loops, and words where nobody speaks.
    """
    if edit:
        refuse_options(context, ("kind", "site", "alpha"), "does nothing beside --edit")
    what = read_kind(kind)
    sites, alphas = SweptSites.read(site or default_sites(what)), parse_alphas(alpha)
    choice, budget = Choice(max_new_tokens=max_new_tokens), parse_memory(memory)
    reserve(out / "texts.zarr", overwrite)
    partial = out / "texts.partial.zarr"
    whisper = replicate(load_model(model, dtype), devices)
    clips = read_clips(whisper, files, language)
    interventions = (
        [parse_edit(one, whisper) for one in edit]
        if edit
        else _components(whisper, what, sites, alphas)
    )
    if not as_json:
        total = len(clips) * (len(interventions) + 1)
        print(f"{len(clips)} clips × {len(interventions)} edits (and none): {total} transcripts")
    with progress() as on_progress:
        swept = ablation_sweep(
            whisper,
            clips,
            interventions,
            choice=choice,
            memory=budget,
            resume=partial,
            on_progress=on_progress,
        )
    dataset = swept.to_dataset().assign_attrs(max_new_tokens=max_new_tokens)
    with together(out):
        pictures = _draw(swept, Path(model).name, out)
        if as_csv:
            write_csv(swept.to_dataframe(), out / "texts.zarr")
        save_dataset(dataset, out / "texts.zarr", whisper, overwrite=overwrite)
    shutil.rmtree(partial, ignore_errors=True)
    if as_json:
        print_json(dataset.to_dict())
        return
    console.print(text_sweep_table(swept))
    if not pictures:
        print("no picture: it takes edits of single components, each of another one")
    print(f"wrote {', '.join(map(str, [out / 'texts.zarr', *pictures]))}")


def _components(
    model: Whisper, kind: KindText, sites: SweptSites, alphas: list[float]
) -> list[Intervention]:
    """Make one intervention for each cell of the sites."""
    # In `component_edits`, `None` means each head; in a place it means the whole site.
    heads = "all" if sites.heads is None else None if sites.heads == "each" else sites.heads
    return component_edits(
        model,
        kind.text,
        stack=sites.stack,
        sites=sites.names,
        layers=sites.layers,
        heads=heads,
        alphas=alphas,
    )


def _draw(swept: TextSweep, name: str, out: Path) -> list[Path]:
    """Plot changed words, loops begun, loops ended and word errors, as far as they are known."""
    some = swept.interventions[1:]
    n, title = len(swept.clips), f"{name}, {len(swept.clips)} clips: each component "
    looped = swept.loops[0]
    shown = {
        "changed": (
            "and the text that it changes",
            "word error rate against the unedited text",
            [swept.rate(i + 1, "unedited") for i in range(len(some))],
        ),
        "loops": (
            "and the loops that it keeps away",
            "begin to loop, of clips that do not",
            swept.loops[1:][:, ~looped].mean(1) if n > looped.sum() else None,
        ),
        "resolved": (
            "and the loops that depend on it",
            "stop looping, of clips that do",
            1 - swept.loops[1:][:, looped].mean(1) if looped.any() else None,
        ),
        "wer": (
            "and the errors without it",
            f"word error rate (unedited {100 * swept.rate(0):.1f}%)",
            None if math.isnan(swept.rate(0)) else [swept.rate(i + 1) for i in range(len(some))],
        ),
    }
    figures = {
        key: plot_text_sweep(np.asarray(values), some, label, title + what)
        for key, (what, label, values) in shown.items()
        if values is not None
    }
    return [
        path
        for key, figure in figures.items()
        if figure is not None
        for path in write_picture(figure, out, key)
    ]
