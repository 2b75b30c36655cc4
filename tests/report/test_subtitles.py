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


def test_text_ends_no_cue_and_opens_no_tag():
    text = " a\n\nb\tc <i> & d --> e"
    segment = Segment(0.0, 1.0, text, tokens=(), mean_log_prob=-0.1, no_speech_prob=0.0)
    written = {ending: write([segment]).splitlines() for ending, write in FORMATS.items()}
    assert written[".srt"] == ["1", "00:00:00,000 --> 00:00:01,000", "a b\tc <i> & d -> e", ""]
    assert written[".vtt"][-2:] == ["a b\tc &lt;i> &amp; d -> e", ""]
    assert written[".tsv"] == ["start\tend\ttext", "0\t1000\ta b c <i> & d --> e"]
