"""The command `encoder-lens`: transcripts from every depth of the encoder."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli.options import (
    CsvOption,
    DtypeOption,
    JsonOption,
    LanguageOption,
    MemoryOption,
    ModelOption,
    OverwriteOption,
    parse_memory,
)
from jaxasr_interp.cli.output import console, print_json, write_csv, write_picture
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.lens import encoder
from jaxasr_interp.lens.encoder import DEPTH_SITES
from jaxasr_interp.model.run import encode_utterance
from jaxasr_interp.report.plots import plot_encoder_lens
from jaxasr_interp.report.tables import encoder_lens_table
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.store import file_provenance, reserve, save_dataset, together
from jaxasr_interp.speech.audio import load_audio


def encoder_lens(
    file: Annotated[str, typer.Argument(help="An audio file of up to 30 s.")],
    model: ModelOption = "tiny.en",
    dtype: DtypeOption = None,
    language: LanguageOption = None,
    text: Annotated[
        str | None,
        typer.Option(help="Read the probability of this transcript, not of the model's own."),
    ] = None,
    norm: Annotated[bool, typer.Option(help="Apply the encoder's final LayerNorm.")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Largest number of tokens.")] = 100,
    memory: MemoryOption = None,
    out: Annotated[Path, typer.Option(help="Folder for store and picture.")] = Path(
        "runs/encoder-lens"
    ),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Transcribe from every depth of the encoder, as if it stopped after that layer."""
    budget = parse_memory(memory)
    choice = Choice(max_new_tokens=max_new_tokens)
    reserve(out / "encoder_lens.zarr", overwrite)
    whisper = load_model(model, dtype)
    # The lens generates the transcript from full depth, so that none is generated here.
    given = make_utterance(
        whisper, load_audio(file), text=text or "", language=language, sites=DEPTH_SITES, name=file
    )
    tokens, spoken = np.asarray(given.tokens).tolist(), given.language or "en"
    lens = encoder.encoder_lens(
        whisper,
        encode_utterance(whisper, given, DEPTH_SITES),
        prompt=tokens[: given.prompt],
        reference=None if text is None else tokens[given.prompt :],
        norm=norm,
        choice=choice,
        memory=budget,
    )
    dataset = lens.to_dataset(text, spoken).assign_attrs(
        file_provenance(clip=file) | {"language": spoken, "norm": int(norm)}
    )
    title = f"encoder lens of {Path(model).name}: {Path(file).name}"
    with together(out):
        pictures = write_picture(plot_encoder_lens(lens, title), out, "encoder_lens")
        if as_csv:
            write_csv(to_dataframe(dataset, ("depth",)), out / "encoder_lens.zarr")
        save_dataset(dataset, out / "encoder_lens.zarr", whisper, overwrite=overwrite)
    if as_json:
        print_json(dataset.to_dict())
        return
    console.print(encoder_lens_table(dataset))
    print(f"wrote {out / 'encoder_lens.zarr'} and {', '.join(map(str, pictures))}")
