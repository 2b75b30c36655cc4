"""`encoder-lens`: what is heard at every depth of the encoder."""

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
    parse_memory,
)
from jaxasr_interp.cli.output import console, print_json
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.language import detect_language
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.lens.encoder import encoder_lens as read_depths
from jaxasr_interp.model.run import encode
from jaxasr_interp.model.whisper import require_tokenizer
from jaxasr_interp.report.plots import plot_encoder_lens
from jaxasr_interp.report.tables import encoder_lens_table
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset
from jaxasr_interp.speech.audio import CHUNK_SAMPLES, load_audio, log_mel_spectrogram


def encoder_lens(
    file: Annotated[str, typer.Argument(help="An audio file of up to 30 s.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    text: Annotated[
        str | None,
        typer.Option(help="What is said, asked for at every depth; by default what is heard."),
    ] = None,
    norm: Annotated[bool, typer.Option(help="Apply the encoder's final LayerNorm.")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Longest text of a depth.")] = 100,
    memory: MemoryOption = None,
    out: Annotated[Path, typer.Option(help="Folder for encoder_lens.zarr and .png.")] = Path(
        "runs/encoder-lens"
    ),
    as_json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Transcribe from every depth of the encoder: what would be heard if it stopped there."""
    budget = parse_memory(memory)
    choice = Choice(max_new_tokens=max_new_tokens)
    reserve(out / "encoder_lens.zarr", overwrite)
    whisper = load_model(model, dtype)
    tokenizer = require_tokenizer(whisper)
    audio = load_audio(file)
    if len(audio) > CHUNK_SAMPLES:
        raise InputError(f"{file} is longer than 30 s: cut it to the sentence.")
    mel = log_mel_spectrogram(audio, whisper.config.n_mels)
    if language is None and tokenizer.multilingual:
        language = next(iter(detect_language(whisper, encode(whisper, mel, sites=()).states)))
    language = tokenizer.language_code(language or "en")
    lens = read_depths(
        whisper,
        mel,
        prompt=tokenizer.prompt(language),
        reference=None if text is None else tokenizer.encode(" " + text.strip()),
        norm=norm,
        choice=choice,
        memory=budget,
    )
    dataset = lens.to_dataset(text, language).assign_attrs(
        file_provenance(clip=file) | {"language": language, "norm": int(norm)}
    )
    save_dataset(dataset, out / "encoder_lens.zarr", whisper, overwrite=overwrite)
    picture = plot_encoder_lens(
        lens, f"encoder lens of {Path(model).name}: {Path(file).name}", out / "encoder_lens.png"
    )
    if as_json:
        print_json(dataset.to_dict())
        return
    console.print(encoder_lens_table(dataset))
    print(f"wrote {out / 'encoder_lens.zarr'} and {picture}")
