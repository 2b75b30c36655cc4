"""Subtitles and tables of a transcript's segments, in the forms that openai/whisper writes."""

from collections.abc import Callable, Mapping, Sequence

from jaxasr_interp.generation.segments import Segment


def to_srt(segments: Sequence[Segment]) -> str:
    """Return SubRip subtitles: numbered cues with times such as `00:01:02,345`."""
    return "".join(
        f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{_cue(one)}\n\n"
        for number, one in enumerate(segments, 1)
    )


def to_vtt(segments: Sequence[Segment]) -> str:
    """Return WebVTT subtitles: times such as `01:02.345`, with hours where there are any."""
    cues = (
        f"{_short_clock(one.start)} --> {_short_clock(one.end)}\n{_vtt_cue(one)}\n\n"
        for one in segments
    )
    return "".join(["WEBVTT\n\n", *cues])


def to_tsv(segments: Sequence[Segment]) -> str:
    """Return a table with tabs: start and end in whole milliseconds, and the text."""
    rows = (
        f"{round(1000 * one.start)}\t{round(1000 * one.end)}\t{_line(one).replace('\t', ' ')}\n"
        for one in segments
    )
    return "".join(["start\tend\ttext\n", *rows])


FORMATS: Mapping[str, Callable[[Sequence[Segment]], str]] = {
    ".srt": to_srt,
    ".vtt": to_vtt,
    ".tsv": to_tsv,
}
"""Writers by the ending of a file's name."""


def _cue(segment: Segment) -> str:
    # An arrow in the text would be read as the times of a cue.
    return _line(segment).replace("-->", "->")


def _vtt_cue(segment: Segment) -> str:
    # Else WebVTT has tags there.
    return _cue(segment).replace("&", "&amp;").replace("<", "&lt;")


def _line(segment: Segment) -> str:
    return " ".join(filter(None, segment.text.strip().splitlines()))


def _clock(seconds: float, decimal: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{decimal}{milliseconds:03d}"


def _short_clock(seconds: float) -> str:
    return _clock(seconds, ".").removeprefix("00:")
