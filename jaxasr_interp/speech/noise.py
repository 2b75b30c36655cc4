"""Reference clips without speech, with which a run is compared when there is no second clip.

This uses numpy alone: the samples are the same on every device and with every version of JAX.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.audio import check_audio, load_audio


def noise_like(
    audio: Float[np.ndarray, " samples"], seed: int = 0
) -> Float[np.ndarray, " samples"]:
    """Make white Gaussian noise as long and as loud as a clip: with the same root mean square.

    `n = ε · rms(audio) / rms(ε)` with `ε ~ N(0, 1)` and `rms(x) = sqrt(mean(x²))`.

    Args:
        audio: 16 kHz samples.
        seed: the same seed gives the same noise.

    Returns:
        float32 samples.

    Raises:
        InputError: the clip is silent, or not one row of finite float samples.
    """
    level = _rms(check_audio(audio))
    if level == 0:
        raise InputError("The clip is silent, so no noise is as loud: give a clip with speech.")
    noise = np.random.default_rng(seed).standard_normal(len(audio))
    return (noise * (level / _rms(noise))).astype(np.float32)


def silence_like(audio: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Make silence as long as a clip: float32 zeros.

    Args:
        audio: 16 kHz samples.

    Returns:
        float32 samples.

    Raises:
        InputError: the clip is silent already, or not one row of finite float samples.
    """
    if not check_audio(audio).any():
        raise InputError("The clip is silent already: give a clip with speech.")
    return np.zeros(len(audio), np.float32)


def reference_audio(
    name: str, clean: Float[np.ndarray, " _"], seed: int = 0
) -> Float[np.ndarray, " _"]:
    """Make or load the audio of a reference run.

    Args:
        name: `"noise"`, white noise as loud as the clip; `"silence"`; or an audio file.
        clean: 16 kHz samples of the clip.
        seed: of the noise.

    Returns:
        float32 samples: as many as the clip has, unless they come from a file.

    Raises:
        InputError: see `check_reference`, `noise_like`, `silence_like` and `load_audio`.
    """
    match name:
        case "noise":
            return noise_like(clean, seed)
        case "silence":
            return silence_like(clean)
        case _:
            return load_audio(check_reference(name))


def check_reference(name: str) -> str:
    """Return `name`; raise `InputError` if it is neither a known reference nor a file."""
    if name not in ("noise", "silence") and not Path(name).is_file():
        raise InputError(
            f"The reference {name!r} is no file: give 'noise', 'silence' or an audio file."
        )
    return name


def _rms(samples: Float[np.ndarray, " samples"]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
