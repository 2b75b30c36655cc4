"""Many files of every kind, in order, each with its transcript or its error."""

import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.files import GLASS, GRASS
from helpers.real import real_model
from jaxasr_interp.generation.files import transcribe_files

pytestmark = pytest.mark.real

SENTENCE = "My brother went outside to cut the {}."


def test_files_come_back_in_order_whatever_they_are(tmp_path):
    model = real_model("tiny.en")
    long, bad = str(tmp_path / "long.wav"), str(tmp_path / "bad.wav")
    grass = ji.load_audio(GRASS)
    silence = np.zeros(29 * 16_000, np.float32)
    soundfile.write(long, np.concatenate([grass, silence, ji.load_audio(GLASS)]), 16_000)
    (tmp_path / "bad.wav").write_text("not audio")
    paths = [GRASS, bad, long, GLASS, GLASS]
    results = list(transcribe_files(model, paths, batch_size=2))
    assert [path for path, _ in results] == paths
    by_path = dict(results)
    assert by_path[GRASS].text == SENTENCE.format("grass")
    assert by_path[GLASS].text == SENTENCE.format("glass")
    assert isinstance(by_path[bad], ji.InputError)
    assert by_path[long].text.startswith(SENTENCE.format("grass"))
    assert by_path[long].segments[-1].end > 30
    alone = ji.transcribe(model, grass)
    assert alone.tokens == by_path[GRASS].tokens
    assert alone.mean_log_prob == pytest.approx(by_path[GRASS].mean_log_prob, abs=1e-5)


def test_words_have_times_in_audio_of_any_length():
    model = real_model("tiny.en")
    grass, glass = ji.load_audio(GRASS), ji.load_audio(GLASS)
    alone = ji.transcribe(model, grass, times=True)
    assert alone.text == SENTENCE.format("grass")
    (segment,) = alone.segments
    assert [word.text for word in segment.words] == alone.text.split()
    # Where the sound starts and ends, and where the vowel of "grass" sounds.
    assert segment.words[0].start == pytest.approx(0.06, abs=0.03)
    assert segment.words[-1].end == pytest.approx(2.0, abs=0.03)
    assert segment.words[-1].start < 1.75 < segment.words[-1].end
    before = np.concatenate([glass, np.zeros(29 * 16_000, np.float32)])
    audio = np.concatenate([before, grass])
    long = ji.transcribe(model, audio, times=True, condition_on_previous_text=False)
    for one in long.segments:
        assert [word.text for word in one.words] == one.text.split()
    assert "".join(one.text for one in long.segments).strip() == long.text
    words = [word for one in long.segments for word in one.words][-len(segment.words) :]
    assert [word.text for word in words] == alone.text.split()
    moved = np.array([a.start - b.start for a, b in zip(words, segment.words, strict=True)])
    assert np.abs(moved - len(before) / 16_000).max() < 0.1
    # An edit changes the text; its words are found in the sound all the same.
    edited = ji.transcribe(model, grass, times=True, edit="zero:encoder.mlp_out@1")
    assert [w.text for s in edited.segments for w in s.words] == edited.text.split()


def test_sentences_that_are_said_again_have_words_where_their_timestamps_are():
    """Windows end in the middle of a sentence, whose sound is not that of the last word."""
    model = real_model("tiny.en")
    audio = np.concatenate([ji.load_audio(GRASS), ji.load_audio(GLASS)] * 8)
    segments = ji.transcribe(model, audio, times=True).segments
    assert len(segments) == 16
    for segment in segments:
        assert len(segment.words) == 8
        edges = [edge for word in segment.words for edge in (word.start, word.end)]
        assert edges == sorted(edges)
        assert edges[0] == pytest.approx(segment.start, abs=0.5)
        assert edges[-1] == pytest.approx(segment.end, abs=0.5)
        assert max(word.end - word.start for word in segment.words) < 0.8


def test_an_empty_batch_and_a_long_clip_are_refused():
    model = real_model("tiny.en")
    with pytest.raises(ji.InputError, match="no clips"):
        ji.transcribe_batch(model, [])
    with pytest.raises(ji.InputError, match="longer than 30 s"):
        ji.transcribe_batch(model, [np.zeros(31 * 16_000, np.float32)])


def test_a_language_is_detected_and_a_translation_is_english(data):
    model = real_model("base")
    clip = ji.load_audio(data / "read_multi" / "fleurs_fleurs-de-005.flac")
    detected = ji.transcribe(model, clip)
    assert detected.language == "de"
    assert detected == ji.transcribe(model, clip, language="german")
    translated = ji.transcribe(model, clip, language="de", task="translate")
    assert translated.text != detected.text
    assert {"the", "of", "and", "in", "to"} & set(translated.text.lower().split())
