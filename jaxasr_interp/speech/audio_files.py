"""Decoding the content of audio files to their end, with FFmpeg or libsndfile.

A header may state a length that is too short (an MP3 of variable bit rate without a table), too
long (a file that was cut off), or none (a stream). So all packets are read, up to the last one. A
warning says so where a file holds less than its header states.
"""

import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.audio_headers import (
    damaged_ogg_pages,
    ogg_ends,
    ogg_links,
    promised_seconds,
)

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

RATES = 1_000, 768_000
_SAMPLES_OF_CODEC_DELAY = 2_400
_SECONDS_OF_CODEC_DELAY = 0.15
_LOSSLESS = ("pcm_", "flac", "alac", "wavpack", "tta")
_TAGS = b"ID3", b"TAG", b"APETAGEX"
_OFFSET_AND_SCALE = {"u1": (128, 128), "i2": (0, 2**15), "i4": (0, 2**31)}


class AudioWarning(UserWarning):
    """A problem of an audio file that does not keep it from being read."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """Samples at one rate.

    Attributes:
        samples: the samples of each channel, with full scale ±1.
        rate: samples per second.
    """

    samples: Float[np.ndarray, "channel samples"]
    rate: int

    @property
    def seconds(self) -> float:
        """Return the duration in seconds."""
        return self.samples.shape[1] / self.rate


def decode_audio(content: bytes, origin: str) -> Iterator[Sound]:
    """Decode the content of a file, link by link where Ogg streams are chained.

    Args:
        content: bytes of a WAV, FLAC, Ogg, MP3, M4A, WebM or any other file that FFmpeg reads.
        origin: name of the file in errors and warnings.

    Yields:
        The samples of the first audio stream; more than one piece where Ogg streams are chained or
        the rate or the number of channels changes.

    Raises:
        InputError: the content is not audio, or its rate is not between 1 kHz and 768 kHz.
    """
    for number, link in enumerate(ogg_links(content), 1):
        try:
            found = _decode(link, origin)
        except InputError as error:
            if number == 1:
                raise
            warn(f"{origin} is read without link {number} of its chained streams: {error}")
            continue
        yield from found


def _decode(content: bytes, origin: str) -> list[Sound]:
    with _opened(content, origin) as container:
        stream = container.streams.audio[0]
        # A stream whose container is closed is not to be touched: it may be gone.
        lossless = _is_lossless(stream)
        promised = promised_seconds(container, stream, content)
        if _ffmpeg_is_wrong(container, stream, content):
            found, failed, last = [_by_libsndfile(content, origin)], 0, b""
        else:
            frames, failed, last = _by_ffmpeg(container, stream)
            found = _joined(frames, origin)
        ends = _ends(container.format.name, stream, content, last)
    if failed and not found:
        raise _not_audio(origin, "nothing in it can be decoded")
    if not found:
        return []
    for one in found:
        check_rate(one.rate, origin)
    seconds = sum(one.seconds for one in found)
    missing = 0.0 if promised is None else promised - seconds
    damaged = failed + (damaged_ogg_pages(content) if ends else 0)
    delay = max(_SECONDS_OF_CODEC_DELAY, _SAMPLES_OF_CODEC_DELAY / found[0].rate)
    if missing > (1e-3 if lossless else delay):
        reason = f"it holds {seconds:.2f} s of the {promised:.2f} s it promises"
    elif not ends:
        reason = f"its stream has no end; it holds {seconds:.2f} s"
    elif damaged:
        reason = f"{damaged} of its packets cannot be read; {seconds:.2f} s remain"
    else:
        return found
    warn(f"{origin} is cut off or damaged: {reason}.")
    return found


def _opened(content: bytes, origin: str) -> "InputContainer":
    import av
    from av.error import FFmpegError

    try:
        # FFmpeg must not open other files or the network because a playlist says so.
        container = av.open(io.BytesIO(content), "r", options={"protocol_whitelist": "none"})
    except (FFmpegError, ValueError, OSError) as error:
        raise _not_audio(origin, getattr(error, "strerror", None) or str(error)) from None
    sounds = container.streams.audio
    if not sounds or sounds[0].codec_context is None:
        container.close()
        raise _not_audio(origin, "its codec is unknown" if sounds else "there is no sound in it")
    return container


def _not_audio(origin: str, reason: str) -> InputError:
    return InputError(
        f"{origin} is not audio that can be read ({reason}): give a WAV, FLAC, Ogg, MP3, M4A or "
        "WebM file."
    )


def _ffmpeg_is_wrong(container: "InputContainer", stream: "AudioStream", content: bytes) -> bool:
    """Tell whether libsndfile must decode the content, because FFmpeg gets it wrong.

    FFmpeg swaps the bytes of big-endian WAV and the bits of G.721 and G.723, and cuts Ogg Vorbis of
    one page up to 128 samples short or leaves it as long as its blocks are.
    """
    codec = stream.codec_context.name
    vorbis = content[:4] == b"OggS" and codec == "vorbis" and len(container.streams) == 1
    return vorbis or codec.startswith("g726") or content[:4] == b"RIFX"


def _by_libsndfile(content: bytes, origin: str) -> Sound:
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _not_audio(origin, error.error_string.rstrip(".")) from None
    return Sound(samples.T, rate)


def _by_ffmpeg(
    container: "InputContainer", stream: "AudioStream"
) -> "tuple[list[AudioFrame], int, bytes]":
    """Decode all packets; return the frames, how many packets failed, and the last packet."""
    from av.error import FFmpegError

    if _is_lossless(stream):
        # Without this, frames with a wrong checksum are decoded as if they were right.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        if container.format.name == "caf":
            # FFmpeg removes the padding of the last packet twice.
            stream.codec_context.options |= {"flags2": "+skip_manual"}
    packets = container.demux(stream)
    frames, failed, last = [], 0, b""
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return frames, failed, last
            last = bytes(packet) or last
            frames += packet.decode()
        except (FFmpegError, ValueError):
            # The latter where the decoder cannot be opened for what the header says.
            failed += any(last) and not last.startswith(_TAGS)


def _is_lossless(stream: "AudioStream") -> bool:
    return stream.codec_context.name.startswith(_LOSSLESS)


def _ends(kind: str, stream: "AudioStream", content: bytes, last: bytes) -> bool:
    """Tell whether the last Ogg page or MP3 frame is complete; other files count as complete."""
    from av import CodecContext

    if content[:4] == b"OggS":
        return ogg_ends(content)
    if kind != "mp3" or not last.startswith(b"\xff"):
        return True
    return bool(CodecContext.create(stream.codec_context.name, "r").parse(last))


def check_rate(rate: int, origin: str) -> None:
    """Raise `InputError` if no sound is sampled at this rate."""
    least, most = RATES
    if not least <= rate <= most:
        raise InputError(
            f"{origin} claims {rate} samples a second: expected {least} to {most}; mend its header."
        )


def _joined(frames: "list[AudioFrame]", origin: str) -> list[Sound]:
    """Convert frames to floats, and join those of one rate and number of channels."""
    pieces: list[tuple[tuple[int, int], list[np.ndarray]]] = []
    for frame in frames:
        try:
            samples = _as_float(frame)
        except ValueError:
            raise _not_audio(origin, f"its samples are of type {frame.format.name}") from None
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
        return samples
    offset, scale = _OFFSET_AND_SCALE[samples.dtype.str[1:]]
    return (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)


def warn(text: str) -> None:
    """Warn of a problem of an audio file."""
    warnings.warn(text, AudioWarning, stacklevel=2)
