"""The content of audio files to samples, to their end: whatever FFmpeg or libsndfile decodes.

A header may promise too little (an MP3 of variable bit rate without a table), too much (a file that
was cut off), or nothing (a stream): what counts are the packets, up to the last. What was promised
and is not there is said in a warning.
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
_OFFSET_AND_SCALE = {"u1": (128, 128), "i2": (0, 2**15), "i4": (0, 2**31), "i8": (0, 2**63)}


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
        promised = promised_seconds(container, stream, content)
        if _ffmpeg_is_wrong(container, stream, content):
            found, failed, last = [_by_libsndfile(content, origin)], 0, b""
        else:
            found, failed, last = _by_ffmpeg(container, stream)
        ends = _ends(container.format.name, stream, content, last)
    if failed and not found:
        raise _not_audio(origin, "nothing in it can be decoded")
    for one in found:
        check_rate(one.rate, origin)
    seconds = sum(one.seconds for one in found)
    missing = 0.0 if promised is None else promised - seconds
    damaged = failed + (damaged_ogg_pages(content) if ends else 0)
    delay = max(_SECONDS_OF_CODEC_DELAY, _SAMPLES_OF_CODEC_DELAY / stream.codec_context.sample_rate)
    if missing > (1e-3 if _is_lossless(stream) else delay):
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
        # No playlist or session description is to make FFmpeg open other files or the network.
        container = av.open(io.BytesIO(content), "r", options={"protocol_whitelist": "none"})
    except (FFmpegError, ValueError, OSError) as error:
        raise _not_audio(origin, getattr(error, "strerror", None) or str(error)) from None
    if not container.streams.audio:
        container.close()
        raise _not_audio(origin, "there is no sound in it")
    return container


def _not_audio(origin: str, reason: str) -> InputError:
    return InputError(
        f"{origin} is not audio that can be read ({reason}): give a WAV, FLAC, Ogg, MP3, M4A or "
        "WebM file."
    )


def _ffmpeg_is_wrong(container: "InputContainer", stream: "AudioStream", content: bytes) -> bool:
    """Whether libsndfile is to decode the content.

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
) -> tuple[list[Sound], int, bytes]:
    """What the packets hold, up to the last; how many of sound fail; and the last packet."""
    from av.error import FFmpegError

    if _is_lossless(stream):
        # Without this, frames whose checksum is wrong are taken as they are.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        if container.format.name == "caf":
            # FFmpeg takes what pads the last packet away, and then as much again.
            stream.codec_context.options |= {"flags2": "+skip_manual"}
    packets = container.demux(stream)
    frames, failed, last = [], 0, b""
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return _joined(frames), failed, last
            last = bytes(packet) or last
            frames += packet.decode()
        except FFmpegError:
            failed += any(last) and not last.startswith(_TAGS)


def _is_lossless(stream: "AudioStream") -> bool:
    return stream.codec_context.name.startswith(_LOSSLESS)


def _ends(kind: str, stream: "AudioStream", content: bytes, last: bytes) -> bool:
    """Whether the last Ogg page or MP3 frame is whole; other files do not say."""
    from av import CodecContext

    if content[:4] == b"OggS":
        return ogg_ends(content)
    if kind != "mp3" or not last.startswith(b"\xff"):
        return True
    return bool(CodecContext.create(stream.codec_context.name, "r").parse(last))


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
        return samples
    offset, scale = _OFFSET_AND_SCALE[samples.dtype.str[1:]]
    return (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)


def warn(text: str) -> None:
    """Warn of an audio file."""
    warnings.warn(text, AudioWarning, stacklevel=2)
