"""Audio files to 16 kHz samples, and samples to log-mel spectrograms."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from jaxasr_interp.errors import InputError, check_least
from jaxasr_interp.speech.audio_files import check_rate, decode_audio, warn

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
CHUNK_SECONDS = 30
MEL_FRAMES_PER_SECOND = SAMPLE_RATE // HOP
_HEADERLESS = {".raw", ".pcm"}
_FAR_BEYOND_FULL_SCALE = 10.0
_CANCELLED = 0.05
_MOST_CHANNELS = 64
_LOUDEST = 1e16
_MEL_1KHZ = 15.0


def load_audio(path: str | Path) -> Float[np.ndarray, " samples"]:
    """Read an audio file as 16 kHz mono, to its end, whatever length its header states.

    Args:
        path: WAV, FLAC, Ogg, MP3, M4A, WebM or anything else that FFmpeg reads; any rate from 1 kHz
            to 768 kHz, any channel count.

    Returns:
        float32 samples with full scale ±1: channels are averaged, and resampled with soxr.

    Raises:
        InputError: the file is missing, not audio, empty, or holds values that are not finite.

    Warns:
        AudioWarning: the file is cut off or damaged, its channels cancel, or its samples are far
            beyond ±1.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no audio file {path}.")
    if path.suffix.lower() in _HEADERLESS:
        raise InputError(
            f"{path} holds samples without a header, which do not say their rate: make a WAV of it."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    return read_audio(content, str(path))


def read_audio(content: bytes, origin: str) -> Float[np.ndarray, " samples"]:
    """Do what `load_audio` does for the content of a file, which messages call `origin`."""
    pieces = [as_audio(one.samples, one.rate, origin) for one in decode_audio(content, origin)]
    return check_audio(np.concatenate([np.zeros(0, np.float32), *pieces]), origin)


def as_audio(
    samples: Num[np.ndarray, " samples"] | Num[np.ndarray, "channel samples"],
    rate: int,
    origin: str,
) -> Float[np.ndarray, " _"]:
    """Convert samples at any rate to 16 kHz float32, and average their channels.

    Args:
        samples: floats with full scale ±1, or signed integers of 16 or 32 bits.
        rate: samples per second.
        origin: name of the samples in errors and warnings.

    Raises:
        InputError: there are no samples, they have another type or shape, they are not finite, or
            their rate is not between 1 kHz and 768 kHz.
    """
    import soxr

    check_rate(rate, origin)
    if samples.dtype.kind != "f" and samples.dtype not in (np.int16, np.int32):
        raise InputError(
            f"{origin} is {samples.dtype}: expected floats, or signed integers of 16 or 32 bits."
        )
    if samples.dtype in (np.int16, np.int32):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    with np.errstate(over="ignore"):
        samples = _check_finite(samples.astype(np.float32), origin)
    mix = check_audio(_mixed(samples, origin) if samples.ndim == 2 else samples, origin)
    peak = float(np.abs(mix).max())
    if peak > _FAR_BEYOND_FULL_SCALE:
        warn(f"{origin} peaks at {peak:.4g}, far beyond ±1: scale its samples.")
    if rate != SAMPLE_RATE:
        mix = soxr.resample(mix, rate, SAMPLE_RATE)
    return check_audio(mix, origin)


def _mixed(
    samples: Float[np.ndarray, "channel samples"], origin: str
) -> Float[np.ndarray, " samples"]:
    """Average the channels; warn if the mean is almost silent though they are not."""
    if not 1 <= len(samples) <= _MOST_CHANNELS:
        raise InputError(
            f"{origin} has shape {list(samples.shape)}: expected one row of samples, or one for "
            f"each of at most {_MOST_CHANNELS} channels."
        )
    mix = samples.mean(axis=0)
    # The power that is left, as a share of what uncorrelated channels would leave.
    independent = np.square(samples, dtype=np.float64).sum() / len(samples) ** 2
    left = np.square(mix, dtype=np.float64).sum() / independent if independent else 1.0
    if left < _CANCELLED:
        warn(
            f"{origin} has channels that cancel: their mean is near silent, with {left:.1%} of the "
            "power of independent ones; take one of them."
        )
    return mix


def check_audio(
    audio: Float[np.ndarray, " samples"], origin: str = "The audio"
) -> Float[np.ndarray, " samples"]:
    """Return `audio`; raise `InputError` unless it is one row of finite samples, at least one."""
    check_row(audio, origin)
    return _check_finite(audio, origin)


def check_row(audio: np.ndarray | Array, origin: str = "The audio") -> None:
    """Raise `InputError` unless the shape and dtype of `audio` are those of a row of samples."""
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        raise InputError(
            f"{origin} is {audio.dtype} of shape {audio.shape}: expected one row of float samples, "
            "as load_audio gives them."
        )
    if not len(audio):
        raise InputError(f"{origin} has no samples: give a clip that holds sound.")


def _check_finite(audio: Float[np.ndarray, "..."], origin: str) -> Float[np.ndarray, "..."]:
    if not np.isfinite(audio).all():
        raise InputError(
            f"{origin} holds samples that are not finite (NaN, infinite or beyond float32)."
        )
    return audio


def log_mel_spectrogram(
    audio: Float[np.ndarray, " samples"] | Float[Array, " samples"],
    n_mels: int = 80,
    frames: int = CHUNK_SECONDS * MEL_FRAMES_PER_SECOND,
) -> Float[Array, "n_mels mel_frame"]:
    """Compute Whisper's log-mel spectrogram.

    `S = log10(max(M |STFT(x)|², 1e-10))`, then `(max(S, max S - 8) + 4) / 4`, where the STFT has a
    periodic Hann window of 25 ms every 10 ms and `M` is Slaney's mel filterbank.

    Args:
        audio: 16 kHz samples, cut or padded with silence to `frames`.
        n_mels: mel bands (80; 128 for large-v3 and its descendants).
        frames: columns of 10 ms each (3000 is 30 s).

    Returns:
        float32 spectrogram.

    Raises:
        InputError: `audio` is not one row of finite float samples, or beyond ±1e16. Under a
            transformation its numbers are unknown, and only its shape and dtype are checked.
    """
    check_least(1, n_mels=n_mels, frames=frames)
    if isinstance(audio, Tracer):
        check_row(audio)
        given, pad = audio, jnp.pad
    else:
        # On the host, so that each length does not take a program of its own.
        given, pad = check_audio(np.asarray(audio)), np.pad
        peak = np.abs(given[: frames * HOP]).max()
        if peak > _LOUDEST:
            raise InputError(
                f"The audio peaks at {peak:.4g}, whose power is beyond float32: scale it to ±1."
            )
    samples = given[: frames * HOP].astype(np.float32)
    padded = jnp.asarray(pad(samples, (0, frames * HOP - len(samples))))
    return _log_mel(padded, jnp.asarray(mel_filterbank(n_mels)))


@jax.jit
def _log_mel(
    samples: Float[Array, " samples"], filterbank: Float[Array, "n_bins n_mels"]
) -> Float[Array, "n_mels mel_frame"]:
    padded = jnp.pad(samples, N_FFT // 2, mode="reflect")
    windows = jax.lax.platform_dependent(padded, tpu=_cut_by_hops, default=_cut_by_index)
    hann = jnp.asarray(np.hanning(N_FFT + 1)[:-1], jnp.float32)
    spectrum = jnp.fft.rfft(windows * hann[None, :])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, filterbank, precision=jax.lax.Precision.HIGHEST).T
    log_mel = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0


def _cut_by_index(padded: Float[Array, " samples"]) -> Float[Array, "mel_frame sample"]:
    """Cut samples into windows of `N_FFT`, one every `HOP`."""
    starts = jnp.arange((len(padded) - N_FFT) // HOP) * HOP
    return padded[starts[:, None] + jnp.arange(N_FFT)[None, :]]


def _cut_by_hops(padded: Float[Array, " samples"]) -> Float[Array, "mel_frame sample"]:
    """Do the same without an index for each sample, which a TPU fetches one by one."""
    n = (len(padded) - N_FFT) // HOP
    parts = -(-N_FFT // HOP)
    hops = jnp.pad(padded, (0, (n + parts) * HOP - len(padded))).reshape(-1, HOP)
    return jnp.concatenate([hops[i : n + i] for i in range(parts)], axis=1)[:, :N_FFT]


def hz_to_mel(hz: Float[np.ndarray, "*frequencies"] | float) -> Float[np.ndarray, "*frequencies"]:
    """Return Slaney's mel: linear below 1 kHz (200/3 Hz per mel), logarithmic above."""
    above = _MEL_1KHZ + np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4) * 27
    return np.where(np.less(hz, 1000), np.multiply(hz, 3 / 200), above)


@functools.cache
def mel_filterbank(n_mels: int) -> Float[np.ndarray, "n_bins n_mels"]:
    """Make Slaney's triangular mel filters with unit area, 0 to 8 kHz.

    The mel scale is linear below 1 kHz (200/3 Hz per mel) and logarithmic above (27 mel per factor
    of 6.4). Slaney 1998, "Auditory Toolbox".
    """
    mels = np.linspace(0, hz_to_mel(SAMPLE_RATE / 2), n_mels + 2)
    log_part = 1000 * np.exp(np.log(6.4) / 27 * (mels - _MEL_1KHZ))
    edges = np.where(mels < _MEL_1KHZ, mels * 200 / 3, log_part)
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])).astype(np.float32)
