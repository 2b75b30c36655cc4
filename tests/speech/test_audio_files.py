"""Audio is read to its end, whatever its kind is and its header says."""

import io
import struct

import numpy as np
import pytest
import soundfile
import soxr
from jaxtyping import TypeCheckError

import jaxasr_interp as ji
from helpers.audio import DELAY, GRASS, encoded, noise_then_speech, without_length_table, written
from helpers.golden import GOLDEN
from jaxasr_interp.speech.audio import as_audio, read_audio
from jaxasr_interp.speech.audio_files import decode_audio


def pcm(content):
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0]


@pytest.mark.parametrize("mode", ["VARIABLE", "AVERAGE"])
def test_an_mp3_is_read_to_its_end(grass, mode):
    samples = noise_then_speech(grass)
    whole = written(samples, format="MP3", bitrate_mode=mode, compression_level=0.9)
    for content in (whole, without_length_table(whole)):
        audio = read_audio(content, "a.mp3")
        assert 0 <= len(audio) - len(samples) <= DELAY
        # The last word is there: correlated with the clip, at the codec's delay.
        tail, ending = grass[-8_000:], audio[-8_000 - DELAY :]
        assert np.correlate(ending, tail).max() > 0.8 * np.square(tail).sum()


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 1), (16_000, 2)])
def test_every_link_of_chained_ogg_streams_is_read(grass, subtype, rate, channels):
    first = written(grass, format="OGG", subtype=subtype)
    other = np.stack([grass[:30_000]] * channels, axis=1)
    second = written(other, rate, format="OGG", subtype=subtype)
    expected = [len(read_audio(content, "one")) for content in (first, second)]
    audio = read_audio(first + second + first, "a.ogg")
    assert len(audio) == 2 * expected[0] + expected[1]
    np.testing.assert_array_equal(audio[: expected[0]], read_audio(first, "one"))
    np.testing.assert_array_equal(audio[-expected[0] :], read_audio(first, "one"))
    assert abs(expected[0] - GRASS) <= DELAY


def test_a_streamed_flac_that_does_not_say_its_length_is_read(grass, tmp_path):
    content = bytearray(written(grass, format="FLAC", subtype="PCM_16"))
    # The total number of samples: the low 36 bits of bytes 21 to 25 of the file.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path = tmp_path / "streamed.flac"
    path.write_bytes(content)
    np.testing.assert_array_equal(ji.load_audio(path), grass)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_streamed_wav_that_does_not_say_its_length_is_read(grass, size):
    content = bytearray(written(grass, format="WAV", subtype="PCM_16"))
    struct.pack_into("<I", content, content.index(b"data") + 4, size)
    np.testing.assert_array_equal(read_audio(bytes(content), "pipe"), grass)


def test_a_cover_behind_an_mp3_is_no_sound_that_is_missing(grass):
    whole = written(noise_then_speech(grass), format="MP3", bitrate_mode="VARIABLE")
    behind = b"APETAGEX" + bytes(60_000)
    more = len(read_audio(whole + behind, "a.mp3")) - len(read_audio(whole, "a.mp3"))
    assert 0 <= more <= DELAY


def test_the_length_of_a_wav_is_counted_in_samples(grass):
    """Some files state another number of bytes a second than they have."""
    content = bytearray(written(grass, format="WAV", subtype="PCM_16"))
    at = content.index(b"fmt ") + 16
    for wrong in (16_000, 64_000):
        struct.pack_into("<I", content, at, wrong)
        np.testing.assert_array_equal(read_audio(bytes(content), "a.wav"), grass)
        with pytest.warns(ji.AudioWarning, match="of the 2.19 s"):
            read_audio(bytes(content[:40_000]), "a.wav")


@pytest.mark.parametrize(
    ("kind", "codec", "rate"),
    [
        ("mp4", "aac", 16_000),
        ("adts", "aac", 16_000),
        ("asf", "wmav2", 16_000),
        ("webm", "libopus", 48_000),
    ],
)
def test_what_phones_and_browsers_write_is_read(grass, kind, codec, rate):
    audio = read_audio(encoded(grass, kind, codec, rate), kind)
    assert abs(len(audio) - GRASS) <= DELAY
    n = min(len(audio), GRASS)
    best = np.correlate(audio[DELAY : n - DELAY], grass[:n], "full").max()
    assert best > 0.8 * np.square(grass[DELAY : n - DELAY]).sum()


def test_flac_in_ogg_is_read(grass):
    np.testing.assert_array_equal(ji.load_audio(GOLDEN / "audio" / "flac_in_ogg.ogg"), grass)


@pytest.mark.parametrize(("channels", "rate"), [(1, 44_100), (2, 8_000), (6, 48_000)])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_samples_are_those_that_libsndfile_reads(grass, subtype, channels, rate):
    samples = grass[:9_000, None] * np.linspace(0.3, 1, channels, dtype=np.float32)[None]
    content = written(samples, rate, format="WAV", subtype=subtype)
    mix = pcm(content).mean(axis=1, dtype=np.float32)
    expected = soxr.resample(mix, rate, 16_000)
    np.testing.assert_allclose(read_audio(content, "a.wav"), expected, atol=2e-7)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None)]
)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_whole_files_are_decoded_as_libsndfile_does(grass, tmp_path, kind, subtype, rate, channels):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.stack([grass] * channels, axis=1), rate, format=kind, subtype=subtype)
    theirs, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected = soxr.resample(theirs.mean(axis=1), rate, 16_000)
    np.testing.assert_allclose(ji.load_audio(path), expected, atol=2e-6)


@pytest.mark.parametrize("length", [100, 500, 3_000, 8_000, 20_000])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_short_ogg_files_have_their_length(grass, length, rate):
    for subtype in ("VORBIS", "OPUS") if rate == 16_000 else ("VORBIS",):
        content = written(grass[5_000 : 5_000 + length], rate, format="OGG", subtype=subtype)
        assert sum(one.samples.shape[1] / one.rate for one in decode_audio(content, "a.ogg")) == (
            pytest.approx(length / rate)
        )


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "CAF", "FLAC", "W64", "NIST", "RF64"])
def test_no_kind_of_file_is_decoded_otherwise_than_by_libsndfile(grass, tmp_path, kind):
    tried = 0
    for subtype in soundfile.available_subtypes(kind):
        # FFmpeg takes NMS ADPCM for AMR, and says that its packets cannot be read.
        for endian in () if subtype.startswith("NMS") else ("FILE", "LITTLE", "BIG"):
            path = tmp_path / f"{subtype}-{endian}.{kind.lower()}"
            try:
                path.write_bytes(
                    written(grass[5_000:13_000], format=kind, subtype=subtype, endian=endian)
                )
                theirs, _ = soundfile.read(path, dtype="float32")
                ours = ji.load_audio(path)
            except (soundfile.LibsndfileError, ValueError):
                continue  # Not written by the one, or refused by the other.
            tried += 1
            np.testing.assert_allclose(ours, theirs[: len(ours)], atol=0.01, err_msg=path.name)
            assert len(theirs) - len(ours) < 512, path.name
    assert tried


@pytest.mark.parametrize("subtype", ["ALAC_16", "ALAC_24"])
@pytest.mark.parametrize("length", [800, 5_000, GRASS])
def test_the_last_packet_of_alac_is_read_to_its_end(grass, subtype, length):
    content = written(grass[:length], format="CAF", subtype=subtype)
    np.testing.assert_array_equal(read_audio(content, "a.caf"), grass[:length])


def test_rows_of_samples_are_floats_integers_or_channels(grass):
    counts = (grass * 32_768).astype(np.int16)
    np.testing.assert_array_equal(as_audio(counts, 16_000, "row"), counts / np.float32(32_768))
    two = np.stack([grass, grass])
    np.testing.assert_array_equal(as_audio(two, 16_000, "row"), grass)
    empty = np.zeros((2, 0), np.float32)
    others = np.zeros(5, np.int8), np.zeros(5, bool), np.array(["a"])
    for samples in (two.T, empty, empty.T, grass[None, None], *others):
        with pytest.raises((ji.InputError, TypeCheckError), match=r"The row|samples"):
            as_audio(samples, 16_000, "The row")
    with pytest.raises(ji.InputError, match="not finite"):
        as_audio(grass.astype(np.float64) * 1e300, 16_000, "The row")


def test_a_path_beyond_ascii_is_read(grass, tmp_path):
    path = tmp_path / "naïve 東京.flac"
    path.write_bytes(written(grass, format="FLAC", subtype="PCM_16"))
    np.testing.assert_array_equal(ji.load_audio(path), grass)


def test_pieces_know_how_long_they_last(grass):
    (sound,) = decode_audio(written(grass, 8_000, format="WAV", subtype="PCM_16"), "a.wav")
    assert (sound.rate, sound.samples.shape) == (8_000, (1, GRASS))
    assert sound.seconds == GRASS / 8_000
