"""What is wrong with audio is said: files that were cut or damaged, or hold no sound."""

import struct
import subprocess
import sys

import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.audio import DELAY, GRASS, encoded, without_length_table, written
from jaxasr_interp.speech.audio import as_audio, read_audio


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
