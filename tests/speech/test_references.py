"""Clips with nothing to hear."""

import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.speech.noise import noise_like, silence_like


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def test_noise_is_white_and_as_loud_as_the_clip():
    time = np.arange(32_000) / 16_000
    clip = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    noise = noise_like(clip)
    assert noise.dtype == np.float32
    assert noise.shape == clip.shape
    assert rms(noise) == pytest.approx(rms(clip), rel=1e-6)
    power = np.square(np.abs(np.fft.rfft(noise)))
    assert power[:8000].mean() == pytest.approx(power[8000:].mean(), rel=0.1)
    np.testing.assert_array_equal(noise, noise_like(clip, seed=0))
    assert np.abs(noise - noise_like(clip, seed=1)).max() > 0.1


def test_silence_is_as_long_as_the_clip():
    clip = np.full(800, 0.1, np.float32)
    np.testing.assert_array_equal(silence_like(clip), np.zeros(800, np.float32))


@pytest.mark.parametrize("reference", [noise_like, silence_like])
def test_nothing_is_like_a_silent_clip(reference):
    with pytest.raises(ji.InputError, match="is silent"):
        reference(np.zeros(800, np.float32))
