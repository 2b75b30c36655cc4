"""The file that a sweep on text grows by a line for each finished clip, to go on from later."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxasr_interp.decoding import Choice, Generated
from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions import Intervention
from jaxasr_interp.model import Whisper
from jaxasr_interp.tokens import Tokenizer

if TYPE_CHECKING:
    from jaxasr_interp.text_result import Clip


class PartialTexts:
    """Finished clips of one sweep: those that are in a file, if there is a path.

    Args:
        path: of the file, or `None`.
        model: whose sweep it is.
        edits: its interventions.
        choice: how tokens are chosen.
        tokenizer: writes the texts.

    Raises:
        InputError: the file is of another sweep, or an edit is a plain function.
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
        header = {
            "model": model.source,
            "dtype": str(model.dtype),
            "edits": [[edit.text, _fingerprint(edit)] for edit in edits],
            "choice": dataclasses.asdict(choice),
        }
        if path.is_file():
            # A line that was being written when the work was cut off lacks its end.
            lines = [line for line in path.read_text("utf-8").splitlines(True) if line[-1] == "\n"]
            if not lines or _read(lines[0]) != header:
                raise InputError(f"{path} is of another sweep: remove it, or choose another --out.")
            self.done = {one["clip"]: one["rows"] for one in map(json.loads, lines[1:])}
            path.write_text("".join(lines), "utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(header) + "\n", "utf-8")

    def get(self, clip: "Clip") -> list[Generated] | None:
        """The transcripts of a clip, if it is done."""
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

    def add(self, clip: "Clip", rows: Sequence[Generated]) -> None:
        """Keep the transcripts of a clip."""
        if self.path is None:
            return
        left_out = ("text", "acts")
        kept = [{k: v for k, v in vars(row).items() if k not in left_out} for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"clip": _key(clip), "rows": kept}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _fingerprint(edit: Intervention) -> str:
    """Hash of all that an intervention writes: its text may name a file that has changed."""
    leaves, structure = jax.tree.flatten((edit.encoder, edit.decoder, edit.steps))
    if any(map(callable, leaves)) or " at 0x" in str(structure):
        raise InputError(
            f"The edit {edit.text!r} is a plain function, which cannot be known again: sweep "
            "without a file to resume from."
        )
    digest = hashlib.sha256(str(structure).encode())
    for leaf in map(np.asarray, leaves):
        digest.update(str(leaf.shape).encode() + leaf.tobytes())
    if edit.reference is not None and Path(edit.reference).is_file():
        digest.update(Path(edit.reference).read_bytes())
    return digest.hexdigest()[:16]


def _read(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _key(clip: "Clip") -> str:
    """A clip by its name and its samples."""
    return f"{clip.name} {clip.language} {hashlib.sha256(clip.audio.tobytes()).hexdigest()[:16]}"
