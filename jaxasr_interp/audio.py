"""Audio files to 16 kHz samples, and samples to log-mel spectrograms."""

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError

SAMPLE_RATE = 16_000
N_FFT = 400
HOP = 160
CHUNK_SECONDS = 30
CHUNK_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE
MEL_FRAMES_PER_SECOND = SAMPLE_RATE // HOP


def load_audio(path: str | Path) -> Float[np.ndarray, " samples"]:
    """Read an audio file as 16 kHz mono.

    Args:
        path: WAV, FLAC, OGG, MP3 or anything else soundfile reads; any rate and channel count.

    Returns:
        float32 samples in [-1, 1]: channels averaged, resampled with soxr.

    Raises:
        InputError: the file is missing, not audio, empty, or holds values that are not finite.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no audio file {path}.")
    return read_audio(path, str(path))


def read_audio(file: str | Path | io.BytesIO, origin: str) -> Float[np.ndarray, " samples"]:
    """`load_audio` for the content of a file too; `origin` names it in errors."""
    import soundfile

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", error)
        raise InputError(f"{origin} cannot be read as audio: {reason}") from None
    return as_audio(samples.mean(axis=1, dtype=np.float32), rate, origin)


def as_audio(
    samples: Float[np.ndarray, " samples"], rate: int, origin: str
) -> Float[np.ndarray, " _"]:
    """One row of samples at any rate as 16 kHz float32; raise `InputError` if it holds no sound."""
    import soxr

    samples = check_audio(samples, origin).astype(np.float32)
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return check_audio(samples, origin)


def check_audio(
    audio: Float[np.ndarray, " samples"], origin: str = "The audio"
) -> Float[np.ndarray, " samples"]:
    """Return `audio`; raise `InputError` unless it is one row of finite samples, at least one."""
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        raise InputError(
            f"{origin} is {audio.dtype} of shape {audio.shape}: expected one row of float samples."
        )
    if not len(audio):
        raise InputError(f"{origin} has no samples: give a clip that holds sound.")
    if not np.isfinite(audio).all():
        raise InputError(f"{origin} holds samples that are not finite (NaN or infinite).")
    return audio


def log_mel_spectrogram(
    audio: Float[np.ndarray, " samples"] | Float[Array, " samples"],
    n_mels: int = 80,
    frames: int = CHUNK_SECONDS * MEL_FRAMES_PER_SECOND,
) -> Float[Array, "n_mels mel_frame"]:
    """Whisper's log-mel spectrogram.

    `S = log10(max(M |STFT(x)|², 1e-10))`, then `(max(S, max S - 8) + 4) / 4`, where the STFT has a
    periodic Hann window of 25 ms every 10 ms and `M` is Slaney's mel filterbank.

    Args:
        audio: 16 kHz samples, cut or padded with silence to `frames`.
        n_mels: mel bands (80; 128 for large-v3 and its descendants).
        frames: columns of 10 ms each (3000 is 30 s).

    Returns:
        float32 spectrogram.

    Raises:
        InputError: `audio` is not one row of finite float samples.
    """
    samples = check_audio(np.asarray(audio))[: frames * HOP].astype(np.float32)
    padded = np.pad(samples, (0, frames * HOP - len(samples)))
    return _log_mel(jnp.asarray(padded), jnp.asarray(mel_filterbank(n_mels)))


@jax.jit
def _log_mel(
    samples: Float[Array, " samples"], filterbank: Float[Array, "n_bins n_mels"]
) -> Float[Array, "n_mels mel_frame"]:
    padded = jnp.pad(samples, N_FFT // 2, mode="reflect")
    starts = jnp.arange(len(samples) // HOP) * HOP
    windows = padded[starts[:, None] + jnp.arange(N_FFT)[None, :]]
    hann = jnp.asarray(np.hanning(N_FFT + 1)[:-1], jnp.float32)
    spectrum = jnp.fft.rfft(windows * hann[None, :])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, filterbank, precision=jax.lax.Precision.HIGHEST).T
    log_mel = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0


@functools.cache
def mel_filterbank(n_mels: int) -> Float[np.ndarray, "n_bins n_mels"]:
    """Slaney's triangular mel filters with unit area, 0 to 8 kHz.

    The mel scale is linear below 1 kHz (200/3 Hz per mel) and logarithmic above (27 mel per factor
    of 6.4). Slaney 1998, "Auditory Toolbox".
    """
    mel_1khz = 15.0
    top = mel_1khz + np.log(SAMPLE_RATE / 2 / 1000) / np.log(6.4) * 27
    mels = np.linspace(0, top, n_mels + 2)
    log_part = 1000 * np.exp(np.log(6.4) / 27 * (mels - mel_1khz))
    edges = np.where(mels < mel_1khz, mels * 200 / 3, log_part)
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])).astype(np.float32)
