"""What the headers of audio files state: durations, ends of streams, and checksums."""

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from av import AudioStream
    from av.container import InputContainer

# Formats whose header states a length. For the others FFmpeg estimates it from the file size.
_STATES_ITS_LENGTH = {
    *("au", "caf", "flac", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "nistsphere"),
    *("tta", "wav", "wv"),
}
_LONGEST_IN_WAV = 2**31 - 2**16
_SAMPLES = (1, 3, 0xFFFE)
_COUNTS_FRAMES = 1
_FIRST_PAGE, _LAST_PAGE = 2, 4
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def promised_seconds(
    container: "InputContainer", stream: "AudioStream", content: bytes
) -> float | None:
    """Return the duration that the header states, or `None` if it states none."""
    name = container.format.name
    if content[:4] in (b"RIFF", b"RIFX"):
        return _wav_seconds(content)
    if name in ("aiff", "caf") and stream.codec_context.name.startswith("pcm_"):
        return stream.frames / stream.codec_context.sample_rate if stream.frames else None
    if name == "mp3":
        return _mp3_seconds(content, stream.codec_context.sample_rate)
    if name not in _STATES_ITS_LENGTH:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or len(container.streams) > 1:
        return None
    return container.duration / 1e6


def _wav_seconds(content: bytes) -> float | None:
    """Return the duration of the data chunk by its stated size; `None` where none is stated.

    FFmpeg does not tell it: it reports the duration of the data that are there.
    """
    order = "<" if content[:4] == b"RIFF" else ">"
    at, bytes_per_second = 12, 0
    while at + 8 <= len(content):
        name, size = struct.unpack_from(f"{order}4sI", content, at)
        if name == b"fmt " and at + 24 <= len(content):
            kind, _, rate, average, block = struct.unpack_from(f"{order}HHIIH", content, at + 8)
            # For plain samples it can be computed, and some files state it wrongly.
            bytes_per_second = rate * block if kind in _SAMPLES else average
        if name == b"data":
            known = 0 < size < _LONGEST_IN_WAV and bytes_per_second
            return size / bytes_per_second if known else None
        at += 8 + size + size % 2
    return None


def _mp3_seconds(content: bytes, rate: int) -> float | None:
    """Return the duration by the number of frames that the first MP3 frame states, if it does.

    FFmpeg's own duration is an estimate where other data follow the sound.
    """
    start = 0
    if content[:3] == b"ID3":
        a, b, c, d = content[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    first, frames = content[start : start + 512], 0
    for mark, at in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = first.find(mark)
        if found >= 0 and found + at + 4 <= len(first):
            counted = mark == b"VBRI" or first[found + 7] & _COUNTS_FRAMES
            frames = struct.unpack_from(">I", first, found + at)[0] if counted else 0
    return frames * (1152 if rate >= 32_000 else 576) / rate if frames else None


class _Page(NamedTuple):
    """Where an Ogg page starts, where it should end, and its flags."""

    start: int
    end: int
    flags: int


def _ogg_pages(content: bytes) -> Iterator[_Page]:
    at = content.find(b"OggS")
    while at >= 0 and at + 27 <= len(content):
        segments = content[at + 27 : at + 27 + content[at + 26]]
        end = at + 27 + len(segments) + sum(segments)
        yield _Page(at, end, content[at + 5])
        at = content.find(b"OggS", end)


def ogg_links(content: bytes) -> list[bytes]:
    """Split chained Ogg streams into their links; return other content as one link.

    A link begins with the first pages of its streams, so at a first page that follows another page.
    """
    if content[:4] != b"OggS":
        return [content]
    starts, before = [], 0
    for page in _ogg_pages(content):
        if page.flags & _FIRST_PAGE and not before & _FIRST_PAGE:
            starts.append(page.start)
        before = page.flags
    ends = [*starts[1:], len(content)]
    return [content[start:end] for start, end in zip(starts or [0], ends, strict=True)]


def ogg_ends(content: bytes) -> bool:
    """Tell whether the last page of an Ogg stream is complete and marked as the last."""
    *_, last = _ogg_pages(content)
    return bool(last.flags & _LAST_PAGE) and last.end <= len(content)


def damaged_ogg_pages(content: bytes) -> int:
    """Count the pages that differ from their checksum or do not follow the page before.

    FFmpeg leaves such pages out silently.
    """
    pages = [*_ogg_pages(content)]
    astray = sum(page.end != following.start for page, following in pairwise(pages))
    return astray + sum(not _is_whole(content[page.start : page.end]) for page in pages)


def _is_whole(page: bytes) -> bool:
    """Tell whether an Ogg page's checksum is right.

    It is CRC-32 with zlib's polynomial, but with its bits reversed and without inversions.
    """
    blank = page[:22] + bytes(4) + page[26:]
    checksum = zlib.crc32(blank.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(_BITS_REVERSED) == page[22:26]
