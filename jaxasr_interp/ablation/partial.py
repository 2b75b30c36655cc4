"""The file from which a sweep on text resumes; it has a line for each finished clip."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.options import Choice, Generated
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.identity import check_identity, identify
from jaxasr_interp.speech.tokenizer import Tokenizer
from jaxasr_interp.speech.utterance import Clip

_CHECKSUM = "sha256"


class PartialTexts:
    """The finished clips of one sweep, kept in a file if there is a path.

    Args:
        path: path of the file, or `None`.
        model: model of the sweep.
        edits: interventions of the sweep.
        choice: how tokens are chosen.
        tokenizer: tokenizer, which decodes the texts.

    Raises:
        InputError: the file belongs to another sweep or is damaged, or an edit cannot be
            identified.
    """

    def __init__(
        self,
        path: Path | None,
        model: Whisper,
        edits: Sequence[Intervention],
        choice: Choice,
        tokenizer: Tokenizer,
    ):
        self.path, self.tokenizer = path, tokenizer
        self.done: dict[str, list[dict[str, Any]]] = {}
        if path is None:
            return
        identity = identify(model=model, edits=list(map(_written, edits)), choice=choice)
        if path.is_file():
            # The last line is incomplete if the sweep was interrupted while it was written.
            lines = [line for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]
            entries = [_read(path, line) for line in lines]
            check_identity(path, entries[0] if entries else {}, identity, "sweep")
            self.done = {one["clip"]: one["rows"] for one in entries[1:]}
            path.write_bytes(b"".join(lines))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_line(identity), "utf-8")

    def get(self, clip: Clip) -> list[Generated] | None:
        """Return the transcripts of a clip; `None` if it is not done."""
        rows = self.done.get(_key(clip))
        if rows is None:
            return None
        return [
            Generated(
                prompt=tuple(row["prompt"]),
                tokens=tuple(row["tokens"]),
                log_probs=tuple(row["log_probs"]),
                finished=row["finished"],
                no_speech_prob=row["no_speech_prob"],
                text=self.tokenizer.decode(row["tokens"]),
            )
            for row in rows
        ]

    def add(self, clip: Clip, rows: Sequence[Generated]) -> None:
        """Append the transcripts of a clip to the file."""
        if self.path is None:
            return
        left_out = ("text", "acts")
        kept = [{k: v for k, v in vars(row).items() if k not in left_out} for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line({"clip": _key(clip), "rows": kept}))
            file.flush()
            os.fsync(file.fileno())


def _written(edit: Intervention) -> list[Any]:
    """List all parts of an intervention; the text alone may name a file that has changed."""
    reference = edit.reference
    if reference is not None and Path(reference).is_file():
        reference = Path(reference).read_bytes()
    return [edit.text, edit.encoder, edit.decoder, edit.steps, reference, edit.seed]


def _line(entry: Mapping[str, Any]) -> str:
    """Format an entry as a line of JSON, with its checksum."""
    return json.dumps({**entry, _CHECKSUM: _checksum(entry)}) + "\n"


def _read(path: Path, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if entry.pop(_CHECKSUM) != _checksum(entry):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path} is damaged: remove it to begin anew.") from None
    return entry


def _checksum(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()


def _key(clip: Clip) -> str:
    """Identify a clip by its name, language and samples."""
    return f"{clip.name} {clip.language} {hashlib.sha256(clip.audio.tobytes()).hexdigest()[:16]}"
