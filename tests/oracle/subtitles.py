"""Subtitles as openai-whisper's own writers write them.

Writes `tests/golden/subtitles.{srt,vtt,tsv}` and the segments they are of.
"""

import json
from pathlib import Path

from whisper.utils import WriteSRT, WriteTSV, WriteVTT

GOLDEN = Path(__file__).parents[1] / "golden"
SEGMENTS = [
    {"start": 0.0, "end": 2.5, "text": " My brother went outside."},
    {"start": 2.5, "end": 59.9996, "text": " An arrow --> and\ta tab."},
    {"start": 61.02, "end": 3599.14, "text": " Grüße, 日本語"},
    {"start": 3600.0, "end": 36005.678, "text": " Hours later "},
]


def main() -> None:
    (GOLDEN / "subtitles.json").write_text(json.dumps(SEGMENTS) + "\n")
    for writer in (WriteSRT, WriteVTT, WriteTSV):
        result = {"segments": SEGMENTS, "language": "en"}
        writer(str(GOLDEN))(result, "subtitles.flac", {})


if __name__ == "__main__":
    main()
