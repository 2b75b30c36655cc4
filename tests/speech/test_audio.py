"""Audio files and log-mel spectrograms, against transformers' feature extractor."""

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from jaxtyping import TypeCheckError
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

import jaxasr_interp as ji
from helpers.real import data_folder
from jaxasr_interp.speech.audio import HOP, N_FFT, _cut_by_hops, _cut_by_index, mel_filterbank


def noise(seconds, rate=16_000, channels=1):
    shape = (int(seconds * rate), channels)
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def reference(audio, n_mels):
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(audio, sampling_rate=16_000)["input_features"][0]


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filterbank_equals_transformers(n_mels):
    theirs = mel_filter_bank(201, n_mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filterbank(n_mels), theirs, atol=1e-9)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.001, 1.0, 29.99, 31.0])
def test_log_mel_equals_transformers(n_mels, seconds):
    audio = noise(seconds)[:, 0]
    difference = np.abs(ji.log_mel_spectrogram(audio, n_mels) - reference(audio, n_mels))
    assert difference.max() < 1e-4
    assert difference.mean() < 1e-6


@pytest.mark.parametrize("frames", [1, 10, 3000])
def test_windows_are_cut_alike_on_a_tpu(frames):
    samples = jnp.arange(frames * HOP + N_FFT, dtype=jnp.float32)
    by_hops, by_index = _cut_by_hops(samples), _cut_by_index(samples)
    assert by_hops.shape == (frames, N_FFT)
    np.testing.assert_array_equal(by_hops, by_index)


@pytest.mark.real
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.corpus), 16])
def test_log_mel_equals_transformers_on_real_clips(data, manifest, n_mels, every):
    worst, means = 0.0, 0.0
    for row in manifest[::every]:
        audio = ji.load_audio(data / row["path"])
        difference = np.abs(ji.log_mel_spectrogram(audio, n_mels) - reference(audio, n_mels))
        worst, means = max(worst, difference.max()), max(means, difference.mean())
    print(f"{n_mels} mels: largest {worst:.1e}, largest mean {means:.1e}")
    assert worst < 1e-4
    assert means < 1e-6


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1), (48_000, 3)])
def test_any_format_rate_and_channel_count_is_read(tmp_path, kind, rate, channels):
    if kind == "mp3" and channels == 3:
        pytest.skip("MP3 has at most two channels")
    seconds = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)
    audio = ji.load_audio(path)
    assert audio.dtype == np.float32
    assert abs(len(audio) - 16_000) < 2_500  # lossy formats pad
    spectrum = np.abs(np.fft.rfft(audio[2_000:12_000]))
    assert abs(int(spectrum.argmax()) * 16_000 / 10_000 - 440) < 3
    assert abs(np.sqrt(2) * audio[2_000:12_000].std() - 0.5) < 0.05


def text(path):
    path.write_text("not audio")
    return path


def write(path, samples, rate=16_000):
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: tmp / "absent.wav", "There is no audio file"),
        (lambda tmp: tmp, "There is no audio file"),
        (lambda tmp: text(tmp / "text.wav"), "is not audio"),
        (lambda tmp: (tmp / "zero.flac").write_bytes(b"") or tmp / "zero.flac", "is not audio"),
        (lambda tmp: write(tmp / "empty.wav", np.zeros(0, np.float32)), "has no samples"),
        (lambda tmp: write(tmp / "nan.wav", np.array([0, np.nan], np.float32)), "not finite"),
        (lambda tmp: write(tmp / "inf.wav", np.array([0, np.inf], np.float32)), "not finite"),
    ],
)
def test_bad_audio_is_named_in_one_sentence(tmp_path, make, message):
    with pytest.raises(ji.InputError, match=message) as error:
        ji.load_audio(make(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "audio", [np.zeros(0, np.float32), np.full(9, np.nan), np.zeros((2, 9)), np.zeros(9, np.int16)]
)
def test_bad_samples_are_refused(audio):
    with pytest.raises((ji.InputError, TypeCheckError)):
        ji.log_mel_spectrogram(audio)


def test_speech_is_found_where_it_is_said_to_be(monkeypatch, tmp_path):
    (tmp_path / "manifest.tsv").write_text("path\n")
    monkeypatch.setenv("JAXASR_DATA", str(tmp_path))
    assert data_folder() == tmp_path
