"""`transcribe` and `lens`: what is heard, and what each layer would say."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxasr_interp.alignment import align_words, following_heads, mean_pattern
from jaxasr_interp.audio import CHUNK_SAMPLES, load_audio, log_mel_spectrogram
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
from jaxasr_interp.cli.output import console, errors, print_json, progress
from jaxasr_interp.contrast import count_frames
from jaxasr_interp.decoding import Choice
from jaxasr_interp.edit_grammar import parse_edit
from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import decode, encode
from jaxasr_interp.interventions import UNEDITED
from jaxasr_interp.lens import logit_lens
from jaxasr_interp.plots import axis_labels, plot_attention, plot_lens
from jaxasr_interp.store import reserve, save_dataset, write_json
from jaxasr_interp.tables import lens_table
from jaxasr_interp.tokens import require_tokenizer
from jaxasr_interp.transcription import Transcript, transcribe_batch, transcribe_files


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
    beam_size: Annotated[int, typer.Option(help="Sequences of a beam search.")] = 1,
    temperature: Annotated[float, typer.Option(help="Above 0, tokens are drawn.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also write the results to this JSON file.")
    ] = None,
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write down what is said, by the model as it is or under an --edit."""
    choice = Choice(suppress, temperature=temperature, seed=seed, beam_size=beam_size)
    if temperature == 0:
        refuse_options(context, ("seed",), "goes with a --temperature above 0")
    if out is not None:
        reserve(out, overwrite)
    whisper = load_model(model, dtype)
    intervention = parse_edit(edit, whisper) if edit else UNEDITED
    results: list[dict[str, Any]] = []
    failed: list[InputError] = []
    transcripts = transcribe_files(
        whisper, files, language=language, task=task, choice=choice, edit=intervention
    )
    with progress(len(files), "clip") as advance:
        for path, transcript in transcripts:
            if isinstance(transcript, InputError):
                failed.append(transcript)
                errors.print(f"error: {transcript}", markup=False, soft_wrap=True)
            else:
                results.append(_as_json(path, transcript))
                if not as_json:
                    label = f"{path}\t" if len(files) > 1 else ""
                    print(f"{label}{transcript.text}", flush=True)
            advance(1)
    if as_json:
        print_json(results)
    if out is not None:
        write_json(out, results)
    if failed:
        raise typer.Exit(2)


def lens(
    file: Annotated[str, typer.Argument(help="An audio file of up to 30 s.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    text: Annotated[
        str | None, typer.Option(help="Read this transcript instead of the model's own.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Most probable tokens to keep.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for lens.zarr and lens.png.")] = Path(
        "runs/lens"
    ),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Show the next token that every decoder layer would say: the logit lens."""
    reserve(out / "lens.zarr", overwrite)
    whisper = load_model(model, dtype)
    tokenizer = require_tokenizer(whisper)
    audio = load_audio(file)
    if len(audio) > CHUNK_SAMPLES:
        raise InputError(f"{file} is longer than 30 s: cut it to the sentence.")
    if text is None or language is None:
        heard = transcribe_batch(whisper, [audio], language=language)[0]
        language = language or heard.language
        written = heard.tokens if text is None else tokenizer.encode(" " + text.strip())
    else:
        written = tokenizer.encode(" " + text.strip())
    tokens = [*tokenizer.prompt(language), *written]
    mel = log_mel_spectrogram(audio, whisper.config.n_mels)
    run = decode(
        whisper,
        tokens,
        encode(whisper, mel, sites=()).states,
        sites=("resid_post", "cross_pattern"),
    )
    result = logit_lens(whisper, run, top_k=top_k)
    labels = axis_labels(tokenizer, tokens)
    dataset = result.to_dataset().assign_coords(token=("pos", labels))
    save_dataset(dataset, out / "lens.zarr", whisper, overwrite=overwrite)
    title = f"logit lens of {model}"
    plot_lens(result, tokenizer, labels, title, out / "lens.png")
    frames = count_frames(whisper, audio)
    heads = following_heads(whisper)
    words = align_words(whisper, mel, tokens, len(tokens) - len(written), frames)
    plot_attention(
        mean_pattern(run, heads)[:, :frames],
        labels,
        words,
        f"where {Path(model).name} listens: mean of the {len(heads)} heads that follow the audio",
        out / "attention.png",
    )
    if as_json:
        print_json(dataset.to_dict()["data_vars"] | {"tokens": tokens})
    else:
        console.print(lens_table(result, tokenizer, tokens))
        print(f"wrote {out / 'lens.zarr'}, {out / 'lens.png'} and {out / 'attention.png'}")


def _as_json(path: str, transcript: Transcript) -> dict[str, Any]:
    fields = dataclasses.asdict(transcript)
    if not transcript.segments:
        del fields["segments"]
    return {"file": path, **fields}
