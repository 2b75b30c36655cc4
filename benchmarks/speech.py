"""The clips of read English speech that benchmarks hear.

They are looked for in `JAXASR_DATA`, then in `../shared/data`.
"""

import csv
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("JAXASR_DATA", ROOT.parent / "shared" / "data"))


def read_clips() -> list[dict[str, str]]:
    """The manifest's rows of all `read_en` clips, the shortest first."""
    with (FOLDER / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return sorted((r for r in rows if r["kind"] == "read_en"), key=lambda r: float(r["seconds"]))


def spread(count: int) -> list[dict[str, str]]:
    """So many clips, evenly spread from the shortest to the longest."""
    clips = read_clips()
    return [clips[(2 * i + 1) * len(clips) // (2 * count)] for i in range(count)]
