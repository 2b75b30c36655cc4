"""The command `transcribe`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    DtypeOption,
    EditsOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    OverwriteOption,
    refuse_options,
)
from jaxasr_interp.cli.output import print_json, say
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.files import transcribe_files
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.generation.segments import Segment
from jaxasr_interp.generation.transcribe import Times, Transcript
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.interventions.intervention import UNEDITED
from jaxasr_interp.report.subtitles import FORMATS
from jaxasr_interp.runtime.store import new_file, reserve, write_json


def transcribe(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="Audio files of any length.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    task: Annotated[
        str, typer.Option(help="transcribe, or translate into English.")
    ] = "transcribe",
    suppress: Annotated[
        bool, typer.Option(help="Leave out the tokens that the checkpoint's settings forbid.")
    ] = True,
    edit: EditsOption = None,
    beam_size: Annotated[int, typer.Option(help="Number of sequences in beam search.")] = 1,
    temperature: Annotated[float, typer.Option(help="Above 0, draw tokens.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    times: Annotated[
        bool, typer.Option(help="Generate timestamps, and find when each word is said.")
    ] = False,
    fallback: Annotated[
        bool,
        typer.Option(
            help="Generate timestamps, and decode again at higher temperatures what repeats itself "
            "or is improbable."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the results to this .json file, or the segments of one clip and their "
            "times to an .srt, .vtt or .tsv file."
        ),
    ] = None,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Transcribe audio files, with the model unchanged or under an --edit."""
    choice = Choice(
        suppress, temperature=temperature, seed=seed, beam_size=beam_size, fallback=fallback
    )
    if temperature == 0 and not fallback:
        refuse_options(context, ("seed",), "goes with a --temperature above 0, or --fallback")
    write = None
    if out is not None:
        write = _subtitle_writer(out, files)
        reserve(out, overwrite, is_file=True)
    whisper = load_model(model, dtype)
    intervention = parse_edit(edit, whisper) if edit else UNEDITED
    results: list[dict[str, Any]] = []
    segments: list[Segment] = []
    failed: list[InputError] = []
    # Subtitles, and the text alone, have no words with times.
    has_words = times and (as_json or (out is not None and write is None))
    wanted: Times = has_words or ("segments" if times or write is not None else False)
    transcripts = transcribe_files(
        whisper,
        files,
        language=language,
        task=task,
        choice=choice,
        edit=intervention,
        times=wanted,
    )
    with progress() as on_progress:
        for done, (path, transcript) in enumerate(transcripts, 1):
            if isinstance(transcript, InputError):
                failed.append(transcript)
                say(f"error: {transcript}")
            else:
                results.append(_as_json(path, transcript, timed=times or fallback))
                segments += transcript.segments
                if not as_json:
                    label = f"{path}\t" if len(files) > 1 else ""
                    print(f"{label}{transcript.text}", flush=True)
            on_progress(done, len(files), "clips")
    if as_json:
        print_json(results)
    if out is not None and write is None:
        write_json(out, results)
    elif out is not None and write is not None and not failed:
        with new_file(out) as partial:
            partial.write_text(write(segments), encoding="utf-8", newline="")
    if failed:
        raise typer.Exit(2)


def _subtitle_writer(out: Path, files: list[str]) -> Callable[[Sequence[Segment]], str] | None:
    """Return what writes the segments of one clip by the ending of a path; `None` for JSON."""
    ending = out.suffix.lower()
    if ending not in (".json", *FORMATS):
        raise InputError(
            f"No format is known for {out}: name a .json file, or {', '.join(FORMATS)} with the "
            "segments of one clip."
        )
    if ending in FORMATS and len(files) > 1:
        raise InputError(
            f"{out} takes the segments of one clip, not of {len(files)}: give one, or a .json file."
        )
    return FORMATS.get(ending)


def _as_json(path: str, transcript: Transcript, *, timed: bool) -> dict[str, Any]:
    fields = dataclasses.asdict(transcript)
    if not (timed or transcript.segments):
        del fields["segments"]
    return {"file": path, **fields}
