"""Subtitles against those of openai-whisper's own writers."""

import json

import pytest

from helpers.golden import GOLDEN
from jaxasr_interp.generation.segments import Segment
from jaxasr_interp.report.subtitles import FORMATS


@pytest.mark.parametrize("ending", FORMATS)
def test_subtitles_are_those_of_openai_whisper(ending):
    rows = json.loads((GOLDEN / "subtitles.json").read_text())
    segments = [Segment(**row, tokens=(), mean_log_prob=-0.1, no_speech_prob=0.0) for row in rows]
    expected = (GOLDEN / f"subtitles{ending}").read_text(encoding="utf-8")
    assert FORMATS[ending](segments) == expected
