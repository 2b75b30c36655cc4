"""Tables on disk and rows of values: read as rows of text with named columns."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr_interp.errors import InputError

type Row = dict[str, str]

TABLES = (".tsv", ".csv", ".jsonl", ".json")
"""The endings of files that are read as tables."""

NAMES_OF_AUDIO = ("path", "audio", "audio_filepath", "file")
"""The names under which tables have the file of a clip; the first one is the usual one."""

_NAMES = {"path": NAMES_OF_AUDIO, "text": ("text", "sentence", "transcription")}
_TABS: tuple[dict[str, Any], str] = (
    {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
    "separate cells by single tabs",
)
_COMMAS: tuple[dict[str, Any], str] = (
    {"delimiter": ",", "skipinitialspace": True},
    "put cells that hold commas in quotes",
)


def read_manifest(path: Path) -> list[Row]:
    """Read a table of clips; see `read_table`.

    Its files are in a column `path`, `audio`, `audio_filepath` or `file`, its texts in a column
    `text`, `sentence` or `transcription`. Rows have these columns also as `path` and `text`.

    Raises:
        InputError: see `read_table`.
    """
    advice = "give columns path and text, and labels"
    rows = with_usual_names(read_table(path, (), advice))
    check_columns(path, rows, ("path",), advice)
    return rows


def read_table(path: Path, needed: Sequence[str], advice: str) -> list[Row]:
    """Read a table.

    Args:
        path: a `.tsv` (tab-separated without quoting, the first line names the columns), a `.csv`
            (comma-separated, cells may be in quotes), or a `.jsonl` or `.json` with one object a
            line, whose values become text (see `as_label`).
        needed: columns that it must have.
        advice: what to do if it has none of them.

    Returns:
        The rows. All have the same columns; a missing cell is `""`.

    Raises:
        InputError: the table cannot be read, has no rows or not the columns, or a row has more
            cells than there are columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from None
    rows = _json_rows(path, text) if path.suffix in (".jsonl", ".json") else _rows(path, text)
    if not rows:
        raise InputError(f"{path} has no rows: {advice}.")
    check_columns(path, rows, needed, advice)
    return rows


def check_columns(path: Path, rows: Sequence[Row], needed: Sequence[str], advice: str) -> None:
    """Raise `InputError` if the rows of a table lack a column."""
    for name in needed:
        if name not in rows[0]:
            raise InputError(f"{path} has no column {name!r}: {advice}.")


def with_usual_names(rows: list[Row]) -> list[Row]:
    """Give rows the columns `path` and `text` where they have them under another name."""
    found = {
        usual: next((name for name in names if name in rows[0]), usual)
        for usual, names in _NAMES.items()
    }
    others = {usual: name for usual, name in found.items() if name != usual}
    return [row | {usual: row[name] for usual, name in others.items()} for row in rows]


def as_label(value: object) -> str | None:
    """Return a cell as text: `""` for an empty cell, `None` for anything but a single value."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str | bool | int | float | np.generic) else None


def label_rows(rows: list[dict[str, object]]) -> list[Row]:
    """Turn rows of values into rows of text with the same columns, without compound values."""
    texts = [{name: as_label(value) for name, value in row.items()} for row in rows]
    compound = {name for row in texts for name, value in row.items() if value is None}
    columns = [c for c in dict.fromkeys(name for row in texts for name in row) if c not in compound]
    return [{name: row.get(name) or "" for name in columns} for row in texts]


def _rows(path: Path, text: str) -> list[Row]:
    form, advice = _COMMAS if path.suffix == ".csv" else _TABS
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True, **form)
    try:
        names, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has the column {twice!r} twice: name each column once.")
    for number, row in enumerate(rows):
        if None in row:
            first = next(iter(row.values()))
            raise InputError(
                f"{path} has a row with more cells than columns, for {first!r} "
                f"(row {number + 1}): {advice}."
            )
    return rows


def _json_rows(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path} has no JSON object in line {number + 1}: write one a line.")
        rows.append(row)
    return label_rows(rows)
