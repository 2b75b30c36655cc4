"""Reading the clips of a command from audio files, and from tables and data sets that name them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import typer

from jaxasr_interp.cli.output import say
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.utterances import decoder_inputs
from jaxasr_interp.model.run import check_length
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.clips import find_clips, read_clip
from jaxasr_interp.speech.hub import is_dataset
from jaxasr_interp.speech.tables import TABLES
from jaxasr_interp.speech.utterance import Clip


def read_clips(
    model: Whisper, files: Sequence[str], language: str | None, *, reads_text: bool = False
) -> list[Clip]:
    """Read clips that the encoder takes whole; of tables, those that cannot be used are left out.

    Args:
        model: the model that is to hear them.
        files: audio files, tables (see `read_manifest`) and data sets.
        language: language of all clips; by default that of their column `lang`.
        reads_text: whether the decoder is given their texts.

    Raises:
        InputError: a file or table cannot be read, or the model lacks the language.
        typer.Exit: all clips were left out.
    """
    if language is not None:
        require_tokenizer(model).language_code(language)

    def check(clip: Clip) -> None:
        check_length(model.config, clip.audio, "The clip")
        check_decoder_input(model, clip, reads_text=reads_text)

    clips: list[Clip] = []
    for file in files:
        if file.endswith(TABLES) or is_dataset(file):
            clips += read_rows(file, language, check)
        else:
            clip = Clip(file, load_audio(file), None, language)
            clips += [clip] if _passes(clip, check) else []
    return some(clips)


def read_rows(
    source: str,
    language: str | None,
    check: Callable[[Clip], None],
    chosen: Callable[[int], Iterable[int]] = range,
) -> Iterator[Clip]:
    """Yield clips of a table or data set; one that cannot be read or used is left out, and named.

    Args:
        source: the table or data set.
        language: language of all clips; by default that of their column `lang`.
        check: raises `InputError` if a clip cannot be used.
        chosen: gives the numbers of the rows to read by the number of rows; by default all.

    Raises:
        InputError: the table or data set cannot be read.
    """
    table = find_clips(source)
    folder = Path() if is_dataset(source) else Path(source).parent
    for number in chosen(len(table.rows)):
        name = str(folder / table.rows[number]["path"])
        try:
            clip = read_clip(table, number)
        except InputError as error:
            _say_left_out(name, error)
            continue
        clip = dataclasses.replace(clip, name=name, language=language or clip.language)
        if _passes(clip, check):
            yield clip


def _passes(clip: Clip, check: Callable[[Clip], None]) -> bool:
    """Tell whether a clip can be used; one that cannot is named."""
    try:
        check(clip)
    except InputError as error:
        _say_left_out(clip.name, error)
        return False
    return True


def _say_left_out(name: str, error: InputError) -> None:
    say(f"left out: {name}: {error}")


def check_decoder_input(model: Whisper, clip: Clip, *, reads_text: bool) -> None:
    """Raise `InputError` if the model lacks a clip's language, or cannot read all of its text."""
    text = clip.text if reads_text else None
    nothing = jnp.zeros((1, 0, 0))
    (given,) = decoder_inputs(model, nothing, [text or ""], [clip.language or "en"])
    if isinstance(given, InputError):
        raise given


def some(clips: list[Clip]) -> list[Clip]:
    """Return the clips; end the command with exit code 1 if all were left out."""
    if not clips:
        say("no clip is left")
        raise typer.Exit(1)
    return clips
