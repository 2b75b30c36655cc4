"""The content of audio files to samples, to their end: whatever FFmpeg decodes.

A header may promise too little (an MP3 of variable bit rate without a table), too much (a file that
was cut off), or nothing (a stream): what counts are the packets, up to the last. Where there are
fewer than were promised, a warning says how many.
"""

import dataclasses
import io
import struct
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

RATES = 1_000, 768_000
_SECONDS_OF_CODEC_DELAY = 0.15
_SAMPLES_OF_CODEC_DELAY = 2_400
_WITHOUT_DELAY = ("pcm_", "flac", "alac")
_OFFSET_AND_SCALE = {"u1": (128, 128), "i2": (0, 2**15), "i4": (0, 2**31), "i8": (0, 2**63)}
_STATES_ITS_LENGTH = {"caf", "flac", "ogg", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
_PCM = (1, 3, 0xFFFE)
_COUNTS_FRAMES = {bytes([flags]) for flags in range(16) if flags & 1}
_LAST_PAGE, _FIRST_PAGE = 4, 2


class AudioWarning(UserWarning):
    """Something about an audio file that its user should know of."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """Samples at one rate.

    Attributes:
        samples: full scale is ±1.
        rate: samples a second.
    """

    samples: Float[np.ndarray, "channel samples"]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples.shape[1] / self.rate


def decode_audio(content: bytes, origin: str) -> Iterator[Sound]:
    """Decode the content of a file, link by link where Ogg streams are chained.

    Args:
        content: of a WAV, FLAC, Ogg, MP3, M4A, WebM or any other file that FFmpeg reads.
        origin: names the file in errors and warnings.

    Yields:
        What the first audio stream holds; more than one piece where Ogg streams are chained or the
        rate or the number of channels changes.

    Raises:
        InputError: the content is not audio, or its rate is not between 1 kHz and 768 kHz.
    """
    links = _ogg_links(content)
    for number, link in enumerate(links):
        try:
            yield from _decode(link, origin)
        except InputError:
            if not number:
                raise
            warn(f"{origin} is cut off: of its {len(links)} chained streams, {number} can be read.")
            return


def _decode(content: bytes, origin: str) -> Iterator[Sound]:
    import av
    from av.error import FFmpegError, InvalidDataError

    damaged, frames = 0, []
    try:
        with av.open(io.BytesIO(content), "r") as container:
            if not container.streams.audio:
                raise InputError(f"{origin} cannot be read as audio: it has no sound in it.")
            stream = container.streams.audio[0]
            promised = _promised_seconds(container, stream, content)
            exact = stream.codec_context.name.startswith(_WITHOUT_DELAY)
            for packet in container.demux(stream):
                try:
                    frames += packet.decode()
                except InvalidDataError:
                    damaged += 1
    except InputError:
        raise
    except (FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{origin} cannot be read as audio: {reason}") from None
    for frame in frames:
        check_rate(frame.sample_rate, origin)
    found = _joined(frames)
    if not found:
        raise InputError(f"{origin} has no samples: give a clip that holds sound.")
    seconds = sum(one.seconds for one in found)
    missing = 0.0 if promised is None else promised - seconds
    delay = 1e-3 if exact else max(_SECONDS_OF_CODEC_DELAY, _SAMPLES_OF_CODEC_DELAY / found[0].rate)
    if promised is not None and missing > delay:
        of = f"{seconds:.2f} s of the {promised:.2f} s it promises"
        warn(f"{origin} is cut off or damaged: it holds {of}.")
    elif not _ends(content):
        warn(f"{origin} is cut off: its stream has no end; it holds {seconds:.2f} s.")
    elif damaged:
        warn(f"{origin} is damaged: {damaged} packets are left out; {seconds:.2f} s remain.")
    yield from found


def check_rate(rate: int, origin: str) -> None:
    """Raise `InputError` if the rate is none that sound is sampled at."""
    least, most = RATES
    if not least <= rate <= most:
        raise InputError(
            f"{origin} claims {rate} samples a second: expected {least} to {most}; mend its header."
        )


def _joined(frames: "list[AudioFrame]") -> list[Sound]:
    """Frames as floats, those of one rate and number of channels joined."""
    pieces: list[tuple[tuple[int, int], list[np.ndarray]]] = []
    for frame in frames:
        samples = _as_float(frame)
        kind = frame.sample_rate, len(samples)
        if not pieces or pieces[-1][0] != kind:
            pieces.append((kind, []))
        pieces[-1][1].append(samples)
    return [Sound(np.concatenate(parts, axis=1), rate) for (rate, _), parts in pieces]


def _as_float(frame: "AudioFrame") -> Float[np.ndarray, "channel samples"]:
    samples: Any = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    offset, scale = _OFFSET_AND_SCALE[samples.dtype.str[1:]]
    return (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)


def _promised_seconds(
    container: "InputContainer", stream: "AudioStream", content: bytes
) -> float | None:
    """How long the header says that the sound lasts, if it does."""
    name = container.format.name
    if name == "wav" and content[:4] == b"RIFF":
        return _wav_seconds(content)
    counted = name in ("wav", "aiff", "au") and stream.codec_context.name.startswith("pcm_")
    if name == "mp3":
        return _mp3_seconds(content, stream.sample_rate)
    if not (name in _STATES_ITS_LENGTH or counted):
        return None  # What FFmpeg gives is a guess.
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or len(container.streams) > 1:
        return None
    return container.duration / 1e6


def _wav_seconds(content: bytes) -> float | None:
    """What the data chunk claims to hold; `None` if it claims nothing, as a stream's does not."""
    at, bytes_per_second = 12, 0
    while at + 8 <= len(content) and content[:4] == b"RIFF":
        name, size = struct.unpack_from("<4sI", content, at)
        if name == b"fmt " and at + 24 <= len(content):
            kind, _, rate, average, block = struct.unpack_from("<HHIIH", content, at + 8)
            bytes_per_second = rate * block if kind in _PCM else average
        if name == b"data":
            known = 0 < size < 2**31 - 2**16 and bytes_per_second
            return size / bytes_per_second if known else None
        at += 8 + size + size % 2
    return None


def _mp3_seconds(content: bytes, rate: int) -> float | None:
    """How many frames an MP3's first one says that there are, as seconds, if it does."""
    start = 0
    if content[:3] == b"ID3":
        a, b, c, d = content[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    first = content[start : start + 512]
    frames = 0
    for mark, at in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        found = first.find(mark)
        counted = mark == b"VBRI" or first[found + 7 : found + 8] in _COUNTS_FRAMES
        if found >= 0 and counted and found + at + 4 <= len(first):
            (frames,) = struct.unpack_from(">I", first, found + at)
    return frames * (1152 if rate >= 32_000 else 576) / rate if frames else None


def _ends(content: bytes) -> bool:
    """Whether an Ogg stream's last page says that it is the last; other files do not say."""
    return content[:4] != b"OggS" or bool([*_ogg_pages(content)][-1][1] & _LAST_PAGE)


def warn(text: str) -> None:
    """Warn of an audio file."""
    warnings.warn(text, AudioWarning, stacklevel=2)


def _ogg_pages(content: bytes) -> Iterator[tuple[int, int]]:
    """Offset and flags of each page."""
    at = content.find(b"OggS")
    while at >= 0 and at + 27 <= len(content):
        yield at, content[at + 5]
        segments = content[at + 27 : at + 27 + content[at + 26]]
        at = content.find(b"OggS", at + 27 + len(segments) + sum(segments))


def _ogg_links(content: bytes) -> list[bytes]:
    """The links of chained Ogg streams; any other content as it is.

    A link begins with the first pages of its streams: where one follows a page that is none.
    """
    if content[:4] != b"OggS":
        return [content]
    starts, before = [], 0
    for at, flags in _ogg_pages(content):
        if flags & _FIRST_PAGE and not before & _FIRST_PAGE:
            starts.append(at)
        before = flags
    ends = [*starts[1:], len(content)]
    return [content[start:end] for start, end in zip(starts or [0], ends, strict=True)]
