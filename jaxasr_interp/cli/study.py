"""The command `study`: whole experiments on many clips."""

import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from jaxasr_interp.ablation.sweep import component_edits
from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.clips import check_decoder_input, read_rows, some
from jaxasr_interp.cli.options import (
    CLIPS,
    DtypeOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    OverwriteOption,
    SeedOption,
)
from jaxasr_interp.cli.output import console, print_json
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.model.run import check_length
from jaxasr_interp.model.whisper import require_tokenizer
from jaxasr_interp.runtime.store import (
    file_provenance,
    reserve,
    save_dataset,
    together,
    write_json,
)
from jaxasr_interp.speech.utterance import Clip
from jaxasr_interp.studies.repetition import Remedy, cut_windows, find_loops
from jaxasr_interp.studies.repetition import repetition as run_repetition

study = typer.Typer(no_args_is_help=True, help="Whole experiments on many clips.")


@study.callback()
def _studies() -> None:
    """Whole experiments on many clips."""


@study.command()
def repetition(
    candidates: Annotated[
        str, typer.Argument(help=f"Clips that may make the model loop: {CLIPS}, with path.")
    ],
    speech: Annotated[
        str, typer.Argument(help=f"Speech of up to 30 s: {CLIPS}, with path and text.")
    ],
    model: ModelOption = "base",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    n_speech: Annotated[int, typer.Option(help="Speech clips to take, chosen by --seed.")] = 24,
    seed: SeedOption = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Largest number of tokens.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for stores and table.")] = Path(
        "runs/repetition"
    ),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the components that repetition loops depend on, and the errors without them."""
    choice = Choice(max_new_tokens=max_new_tokens)
    for name in ("loops", "speech"):
        reserve(out / f"{name}.zarr", overwrite)
    partials = [out / f"{name}.partial.zarr" for name in ("loops", "speech")]
    whisper = load_model(model, dtype)
    if language is not None:
        require_tokenizer(whisper).language_code(language)

    def check(clip: Clip) -> None:
        check_decoder_input(whisper, clip, reads_text=False)

    def check_speech(clip: Clip) -> None:
        check(clip)
        check_length(whisper.config, clip.audio, "The clip")
        if not clip.text:
            raise InputError("It has no text.")

    def chosen(n: int) -> list[int]:
        few = np.random.default_rng(seed).choice(n, min(n, n_speech), replace=False)
        return sorted(few.tolist())

    found = some([*read_rows(candidates, language, check)])
    maybe = [window for clip in found for window in cut_windows(clip, whisper.config)]
    talk = some([*read_rows(speech, language, check_speech, chosen)])
    with progress() as on_progress:
        looping = find_loops(whisper, maybe, choice=choice, on_progress=on_progress)
    if not as_json:
        print(f"{len(looping)} of {len(maybe)} candidates loop; {len(talk)} clips of speech")
    edits = component_edits(whisper)
    with progress() as on_progress:
        result = run_repetition(
            whisper,
            looping,
            talk,
            interventions=edits,
            choice=choice,
            resume=out,
            on_progress=on_progress,
        )
    origin = file_provenance(candidates=str(candidates), speech=str(speech))
    origin |= {"seed": seed, "max_new_tokens": max_new_tokens}
    rows = [_row(one) for one in result.remedies]
    with together(out):
        for name, swept in (("loops", result.loops), ("speech", result.speech)):
            dataset = swept.to_dataset().assign_attrs(origin)
            save_dataset(dataset, out / f"{name}.zarr", whisper, overwrite=overwrite)
        write_json(out / "remedies.json", rows)
    for path in partials:
        shutil.rmtree(path, ignore_errors=True)
    if as_json:
        print_json(rows)
        return
    console.print(_table(result.remedies))
    print(f"wrote {out / 'loops.zarr'}, {out / 'speech.zarr'} and {out / 'remedies.json'}")


def _row(one: Remedy) -> dict[str, object]:
    return {
        "edit": one.edit,
        "resolved": [one.resolved.estimate, one.resolved.low, one.resolved.high],
        "silent": one.silent,
        "wer": [one.wer.estimate, one.wer.low, one.wer.high],
        "begun": one.begun,
    }


def _table(remedies: tuple[Remedy, ...], most: int = 24) -> Table:
    table = Table(title="loops resolved, and what speech loses (95%)", title_justify="left")
    for name in ("edit", "resolved", "silent", "WER", "loops begun"):
        table.add_column(name, justify="left" if name == "edit" else "right")
    shown = [one for one in remedies if one.edit == "unedited"] + [
        one for one in remedies if one.edit != "unedited"
    ][:most]
    for one in shown:
        resolved, wer = one.resolved, one.wer
        table.add_row(
            one.edit,
            f"{resolved.estimate:.0%} ({resolved.low:.0%}-{resolved.high:.0%})",
            f"{one.silent:.0%}",
            f"{wer.estimate:.1%} ({wer.low:.1%}-{wer.high:.1%})",
            f"{one.begun:.0%}",
        )
    return table
