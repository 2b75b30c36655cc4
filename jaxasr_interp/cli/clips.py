"""Reading the clips of a command from audio files, and from tables that name them."""

from collections.abc import Sequence
from pathlib import Path

from jaxasr_interp.cli.output import say
from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.audio import CHUNK_SAMPLES, load_audio
from jaxasr_interp.speech.clips import read_manifest
from jaxasr_interp.speech.utterance import Clip


def read_clips(files: Sequence[str], language: str | None) -> list[Clip]:
    """Read clips from audio files, and from tables with columns `path`, `text` and `lang`."""
    rows: list[tuple[Path, str | None, str | None]] = []
    for file in files:
        if file.endswith(".tsv"):
            rows += read_table(Path(file))
        else:
            rows.append((Path(file), None, None))
    clips = []
    for path, text, own in rows:
        audio = load_audio(path)
        if len(audio) > CHUNK_SAMPLES:
            say(f"left out: {path} is longer than 30 s")
            continue
        clips.append(Clip(str(path), audio, text, language or own))
    if not clips:
        raise InputError("There are no clips of up to 30 s to transcribe.")
    return clips


def read_table(path: Path) -> list[tuple[Path, str | None, str | None]]:
    """Read path, text and language of each row of a .tsv; paths are relative to its folder.

    Raises:
        InputError: the table cannot be read or has no column `path`.
    """
    rows = read_manifest(path)
    # An empty text may mean silence or an unknown text; both become `None`.
    return [
        (path.parent / row["path"], row.get("text") or None, row.get("lang") or None)
        for row in rows
    ]
