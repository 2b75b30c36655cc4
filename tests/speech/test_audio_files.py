"""Audio is read to its end, whatever its header says, and what is wrong with it is said."""

import io
import struct
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import soundfile
import soxr
from jaxtyping import TypeCheckError

import jaxasr_interp as ji
from helpers.audio import encoded, written
from helpers.golden import GOLDEN
from jaxasr_interp.speech.audio import as_audio, read_audio
from jaxasr_interp.speech.audio_files import decode_audio

GRASS = 35_109
DELAY = 2_400
"""Samples by which the length of a lossy file may differ."""


@pytest.fixture(scope="module")
def grass():
    path = resources.files("jaxasr_interp") / "data" / "grass.flac"
    return soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")[0]


def pcm(content):
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0]


def noise_then_speech(grass):
    """A second of full-scale noise leads guesses of the length astray."""
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 32_000).astype(np.float32)
    return np.concatenate([noise, np.zeros(32_000, np.float32), grass])


def without_length_table(content):
    """An MP3 without its first frame, which holds nothing but the table."""
    second = content.index(content[:2], 4)
    assert any(mark in content[:second] for mark in (b"Xing", b"Info"))
    return content[second:]


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


@pytest.mark.parametrize(
    ("kind", "subtype", "endian"),
    [
        *(
            (kind, "PCM_16", None)
            for kind in ("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "AU", "NIST")
        ),
        ("WAV", "PCM_16", "BIG"),
        ("WAV", "PCM_24", None),
        ("CAF", "PCM_16", None),
        ("OGG", "VORBIS", None),
        ("OGG", "OPUS", None),
        ("MP3", None, None),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_was_cut_off_gives_what_is_there_and_says_so(
    grass, kind, subtype, endian, share
):
    samples = np.tile(grass, 6)
    content = written(samples, format=kind, subtype=subtype, endian=endian)
    with pytest.warns(
        ji.AudioWarning, match=r"cut\.file is cut off or .*holds \d+\.\d\d s"
    ) as said:
        audio = read_audio(content[: int(share * len(content))], "cut.file")
    assert len(said) == 1
    assert 0.1 * len(samples) < len(audio) < len(samples)
    if kind not in ("OGG", "MP3"):
        np.testing.assert_array_equal(audio, samples[: len(audio)])
        assert f"holds {len(audio) / 16_000:.2f} s of the 13.17 s" in str(said[0].message)


def test_an_mp3_without_a_table_says_that_its_last_frame_is_cut(grass):
    content = without_length_table(written(grass, format="MP3", bitrate_mode="VARIABLE"))
    read_audio(content, "a.mp3")
    with pytest.warns(ji.AudioWarning, match=r"cut off or damaged: its stream has no end"):
        read_audio(content[:-5], "a.mp3")


@pytest.mark.parametrize(
    "options",
    [
        {"movflags": "faststart"},
        {"movflags": "empty_moov+default_base_moof", "frag_duration": "200000"},
    ],
)
def test_an_m4a_that_was_cut_off_says_so(grass, options):
    content = encoded(grass, "mp4", "aac", 16_000, options)
    assert abs(len(read_audio(content, "a.m4a")) - GRASS) <= DELAY
    with pytest.warns(ji.AudioWarning, match=r"holds \d\.\d\d s of the \d\.\d\d s it promises"):
        read_audio(content[: int(0.7 * len(content))], "a.m4a")


def test_chained_streams_are_read_up_to_where_the_last_is_cut(grass):
    link = written(grass, format="OGG", subtype="OPUS")
    for more, said in ((100, "without link 2 of its chained"), (len(link) * 3 // 4, "has no end")):
        with pytest.warns(ji.AudioWarning, match=said):
            audio = read_audio(link + link[:more], "a.opus")
        np.testing.assert_array_equal(audio[:GRASS], read_audio(link, "a.opus"))


@pytest.mark.parametrize(
    ("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
)
def test_a_flipped_bit_is_said_where_the_file_has_checksums(grass, kind, subtype):
    whole = written(grass, format=kind, subtype=subtype)
    random = np.random.default_rng(0)
    for _ in range(20):
        content = bytearray(whole)
        # Beyond the headers, without which nothing can be read.
        content[random.integers(len(whole) // 2, len(whole))] ^= 1 << random.integers(8)
        with pytest.warns(ji.AudioWarning, match=r"a\.file is cut off or damaged: "):
            read_audio(bytes(content), "a.file")


def test_padding_and_tags_between_packets_are_no_damage(grass):
    mp3 = written(grass, format="MP3")
    tag = b"ID3\x03\0\0\0\0\0\x20" + bytes(32)
    for content in (mp3 + bytes(1_000), mp3 + b"TAG" + bytes(125), tag + mp3 + tag + mp3):
        assert len(read_audio(content, "a.mp3")) >= GRASS
    read_audio(written(grass, format="WAV", subtype="PCM_16") + b"LIST\4\0\0\0INFO", "a.wav")
    read_audio(written(grass, format="OGG", subtype="VORBIS") + bytes(1_000), "a.ogg")


def test_nothing_but_the_file_is_opened(tmp_path):
    sound = tmp_path / "sound.wav"
    sound.write_bytes(written(np.ones(800), format="WAV", subtype="PCM_16"))
    session = (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
    )
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{sound}\n#EXT-X-ENDLIST\n"
    for content in (session, playlist, f"ffconcat version 1.0\nfile '{sound}'\n"):
        # Not "connection timed out", as where the network is tried.
        with pytest.raises(ji.InputError, match=r"\((Invalid data found|Operation not permitted)"):
            read_audio(content.encode(), "a.mp3")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_page_that_is_damaged_is_said(grass, subtype):
    samples = np.tile(grass, 6)
    content = bytearray(written(samples, format="OGG", subtype=subtype))
    content[len(content) // 2] ^= 4
    with pytest.warns(ji.AudioWarning, match=r"is cut off or damaged: "):
        audio = read_audio(bytes(content), "a.ogg")
    assert len(audio) < len(samples)


@pytest.mark.parametrize("rest", [40, 200, 2_000])
def test_links_that_can_be_read_are_read(grass, rest):
    first = written(grass, format="OGG", subtype="VORBIS")
    with pytest.warns(ji.AudioWarning, match="is read without link 2 of its chained streams"):
        audio = read_audio(first + first[:rest], "a.ogg")
    np.testing.assert_array_equal(audio, read_audio(first, "one"))


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
    ("kind", "subtype", "rate"),
    [
        ("WAV", "FLOAT", 16_000),
        ("MP3", None, 16_000),
        ("OGG", "VORBIS", 16_000),
        ("OGG", "OPUS", 48_000),
    ],
)
def test_channels_that_cancel_are_said(grass, kind, subtype, rate):
    opposed = written(np.stack([grass, -grass], axis=1), rate, format=kind, subtype=subtype)
    with pytest.warns(ji.AudioWarning, match=r"a\.file has channels that cancel: .* \d\.\d% of"):
        read_audio(opposed, "a.file")


@pytest.mark.parametrize("channels", [2, 64])
def test_silent_channels_cancel_nothing(grass, channels):
    samples = np.zeros((channels, GRASS), np.float32)
    assert not as_audio(samples, 16_000, "row").any()
    samples[0] = grass
    np.testing.assert_allclose(as_audio(samples, 16_000, "row"), grass / channels, rtol=1e-6)


@pytest.mark.parametrize("scale", [32_768, 1e20])
def test_samples_far_beyond_full_scale_are_said(grass, scale):
    content = written(grass * scale, format="WAV", subtype="FLOAT")
    with pytest.warns(ji.AudioWarning, match=r"a\.wav peaks at [\d.e+]+, far beyond ±1"):
        audio = read_audio(content, "a.wav")
    assert len(audio) == GRASS
    # A little beyond is what mixing leaves.
    read_audio(written(grass * 4, format="WAV", subtype="FLOAT"), "loud.wav")


def test_audio_whose_power_is_beyond_float32_has_no_spectrogram(grass):
    with pytest.raises(ji.InputError, match=r"peaks at .*e\+19, whose power is beyond float32"):
        ji.log_mel_spectrogram(grass * np.float32(1e20))
    assert np.isfinite(ji.log_mel_spectrogram(grass * np.float32(1e15))).all()


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("html.mp3", b"<html><body>404</body></html>", r"html\.mp3 is not audio that can be read"),
        ("raw.raw", bytes(70_218), r"raw\.raw holds samples without a header"),
        ("a.wav", b"", r"is not audio that can be read"),
        ("text.m4a", b"not audio at all " * 99, r"is not audio that can be read"),
    ],
)
def test_what_is_no_audio_is_said_in_a_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ji.InputError, match=message) as error:
        ji.load_audio(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(20, 0x4321, "its codec is unknown"), (34, 64, "its samples are of type s64")],
)
def test_what_no_decoder_reads_is_said(grass, at, value, message):
    """The kind of a WAV's samples is at 20, their bits are at 34."""
    content = bytearray(written(grass, format="WAV", subtype="PCM_16"))
    struct.pack_into("<H", content, at, value)
    struct.pack_into("<H", content, 32, 8)
    with pytest.raises(ji.InputError, match=rf"a\.wav is not audio that can be read \({message}"):
        read_audio(bytes(content), "a.wav")


@pytest.mark.parametrize("rate", [1, 999, 800_000])
def test_rates_that_nothing_is_sampled_at_are_refused(grass, rate):
    content = written(grass[:100], rate, format="WAV", subtype="PCM_16")
    with pytest.raises(ji.InputError, match=rf"a\.wav claims {rate} samples a second"):
        read_audio(content, "a.wav")
    with pytest.raises(ji.InputError, match=f"claims {rate} samples"):
        as_audio(grass, rate, "The row")


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


def test_the_command_line_warns_in_a_line(grass, tmp_path):
    path = tmp_path / "cut.wav"
    path.write_bytes(written(grass, format="WAV", subtype="PCM_16")[:40_000])
    code = (
        "import sys; from jaxasr_interp.cli import app;"
        "from jaxasr_interp.speech.audio import load_audio;"
        "app.app = lambda arguments: load_audio(sys.argv[1]); app.main()"
    )
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert (
        said
        == f"warning: {path} is cut off or damaged: it holds 1.25 s of the 2.19 s it promises.\n"
    )


def test_pieces_know_how_long_they_last(grass):
    (sound,) = decode_audio(written(grass, 8_000, format="WAV", subtype="PCM_16"), "a.wav")
    assert (sound.rate, sound.samples.shape) == (8_000, (1, GRASS))
    assert sound.seconds == GRASS / 8_000
