"""Audio files made up for tests: by libsndfile, as phones and browsers do, and with errors."""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

GRASS = 35_109
"""Samples of the clip `grass.flac`."""
DELAY = 2_400
"""Samples by which the length of a lossy file may differ."""
_SAMPLE_FORMATS = {"libopus": "flt"}
_BIT_RATES = {"wmav2": 48_000}
_NUMBERS = b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1"


def written(samples: np.ndarray, rate: int = 16_000, **options: Any) -> bytes:
    """The content of a file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def encoded(
    samples: np.ndarray, kind: str, codec: str, rate: int, options: dict[str, str] | None = None
) -> bytes:
    """The content of a file that FFmpeg writes, of 16 kHz samples."""
    import av

    form = _SAMPLE_FORMATS.get(codec, "fltp")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"
        with av.open(str(path), "w", format=kind, options=options or {}) as out:
            stream: Any = out.add_stream(codec, rate=rate, layout="mono")
            stream.codec_context.format = form
            if codec in _BIT_RATES:
                stream.codec_context.bit_rate = _BIT_RATES[codec]
            stream.codec_context.open()
            frame = av.AudioFrame.from_ndarray(
                (samples * 32_767).astype(np.int16)[None], format="s16", layout="mono"
            )
            frame.sample_rate = 16_000
            resampler = av.AudioResampler(
                form, "mono", rate, frame_size=stream.codec_context.frame_size
            )
            for converted in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(converted))
            out.mux(stream.encode(None))
        return path.read_bytes()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to four errors, more of them in its header than behind it."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = max(1, len(data))
        at = int(rng.integers(min(size, 200) if rng.random() < 0.6 else size))
        some = slice(at, at + int(rng.integers(1, 400)))
        match rng.integers(6):
            case 0:
                data[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                data[at : at + 4] = _NUMBERS[rng.integers(len(_NUMBERS))]
            case 2:
                data[at : at + 8] = rng.bytes(8)
            case 3:
                del data[some]
            case 4:
                data[at:at] = data[some]
            case 5:
                del data[int(rng.integers(size)) :]
    return bytes(data)


def noise_then_speech(grass):
    """A second of full-scale noise leads guesses of the length astray."""
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 32_000).astype(np.float32)
    return np.concatenate([noise, np.zeros(32_000, np.float32), grass])


def without_length_table(content):
    """An MP3 without its first frame, which holds nothing but the table."""
    second = content.index(content[:2], 4)
    assert any(mark in content[:second] for mark in (b"Xing", b"Info"))
    return content[second:]
