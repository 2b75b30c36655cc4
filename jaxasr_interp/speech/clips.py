"""Tables of clips, tab-separated or as JSON Lines, with one row for each clip."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from jaxasr_interp.errors import InputError


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Read a table of clips.

    Args:
        path: a `.tsv` (tab-separated without quoting, the first line names the columns), or a
            `.jsonl` (one object a line, whose values become text; see `as_label`).

    Returns:
        The rows. All have the same columns, among them `path`; a missing cell is `""`.

    Raises:
        InputError: the table cannot be read, has no rows or no column `path`, or a row has more
            cells than there are columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}.") from None
    rows = _json_rows(path, text) if path.suffix == ".jsonl" else _tab_rows(path, text)
    if not rows:
        raise InputError(f"{path} has no rows: give columns path and text, and labels.")
    if "path" not in rows[0]:
        raise InputError(f"{path} has no column 'path': give columns path and text, and labels.")
    return rows


def as_label(value: object) -> str | None:
    """Return a cell as text: `""` for an empty cell, `None` for anything but a single value."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str | bool | int | float | np.generic) else None


def label_rows(rows: list[dict[str, object]]) -> list[dict[str, str]]:
    """Turn rows of values into rows of text with the same columns, without compound values."""
    texts = [{name: as_label(value) for name, value in row.items()} for row in rows]
    compound = {name for row in texts for name, value in row.items() if value is None}
    columns = [c for c in dict.fromkeys(name for row in texts for name in row) if c not in compound]
    return [{name: row.get(name) or "" for name in columns} for row in texts]


def _tab_rows(path: Path, text: str) -> list[dict[str, str]]:
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    names = list(reader.fieldnames or ())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path} has the column {twice!r} twice: name each column once.")
    rows = list(reader)
    for number, row in enumerate(rows):
        if None in row:
            raise InputError(
                f"{path} has a row with more cells than columns, for {row.get('path')!r} "
                f"(row {number + 1}): separate cells by single tabs."
            )
    return rows


def _json_rows(path: Path, text: str) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path} has no JSON object in line {number + 1}: write one a line.")
        rows.append(row)
    return label_rows(rows)
