"""The command `verify`, which checks sweeps on the user's own checkpoint and clip."""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    DtypeOption,
    JsonOption,
    LanguageOption,
    MemoryOption,
    ModelOption,
    OverwriteOption,
    SeedOption,
    parse_memory,
)
from jaxasr_interp.cli.output import console, print_json
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.patching.contrast import ask_word
from jaxasr_interp.runtime.store import file_provenance, provenance, reserve, write_json
from jaxasr_interp.speech.audio import load_audio


def verify(
    file: Annotated[
        str | None, typer.Argument(help="An audio file of up to 30 s; by default the demo's.")
    ] = None,
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    cells: Annotated[int, typer.Option(help="Number of random patches to check at each site.")] = 4,
    seed: SeedOption = 0,
    memory: MemoryOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the checks to this JSON file.")
    ] = None,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Check on this model, clip and device that sweeps give the numbers of whole runs.

    The corrupted run has noise as loud as the clip. The exit code is 1 if a check fails.
    """
    from jaxasr_interp.speech.noise import reference_audio
    from jaxasr_interp.verification.verify import verify as measure
    from jaxasr_interp.verification.verify import verify_table

    budget = parse_memory(memory)
    if out is not None:
        reserve(out, overwrite, is_file=True)
    whisper = load_model(model, dtype)
    sound = _demo_audio() if file is None else load_audio(file)
    noise = reference_audio("noise", sound, seed)
    contrast = ask_word(whisper, sound, noise, language=language)
    with progress() as on_progress:
        checks = measure(
            whisper,
            contrast.clean,
            contrast.corrupted,
            cells=cells,
            seed=seed,
            memory=budget,
            on_progress=on_progress,
        )
    rows = [dataclasses.asdict(check) | {"passed": check.passed} for check in checks]
    report = (
        provenance(whisper)
        | file_provenance(clip=file or "demo")
        | contrast.provenance
        | {"seed": seed, "checks": rows}
    )
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
    else:
        console.print(verify_table(checks))
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def _demo_audio():
    with resources.as_file(resources.files("jaxasr_interp") / "data" / "grass.flac") as path:
        return load_audio(path)
