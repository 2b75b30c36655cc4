"""When words are said: the warping against all paths, and real speech against shifts of itself."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.real import real_model
from jaxasr_interp.generation.utterances import count_frames
from jaxasr_interp.generation.word_times import Stretch, _median, align_within, align_words, warp


def all_paths(rows, columns):
    """Every monotonic path from the first cell to the last."""
    if rows == columns == 1:
        return [[(0, 0)]]
    steps = [(a, b) for a, b in ((1, 1), (1, 0), (0, 1)) if rows > a and columns > b]
    ends = [all_paths(rows - a, columns - b) for a, b in steps]
    return [[*path, (rows - 1, columns - 1)] for path in itertools.chain(*ends)]


def test_warping_finds_the_cheapest_of_all_paths():
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 4), (4, 1), (3, 5), (5, 4)):
        cost = rng.normal(size=(rows, columns))
        paths = all_paths(rows, columns)
        cheapest = min(paths, key=lambda path: sum(cost[cell] for cell in path))
        assert list(zip(*warp(cost).tolist(), strict=True)) == cheapest


def test_the_median_filter_mirrors_the_ends():
    values = np.random.default_rng(1).normal(size=(2, 3, 9))
    smooth = _median(values)
    row = values[1, 2]
    mirrored = [*row[3:0:-1], *row, *row[-2:-5:-1]]
    expected = [np.median(mirrored[i : i + 7]) for i in range(9)]
    np.testing.assert_allclose(smooth[1, 2], expected)
    np.testing.assert_array_equal(_median(values[:, :, :3]), values[:, :, :3])


def words_of_clip(model, audio, text):
    prompt = model.tokenizer.prompt()
    tokens = [*prompt, *model.tokenizer.encode(text)]
    mel = ji.log_mel_spectrogram(audio, model.config.n_mels)
    utterance = ji.Utterance(mel, jnp.asarray(tokens), len(prompt), count_frames(model, audio))
    return align_words(model, utterance)


@pytest.mark.real
@pytest.mark.parametrize("own_heads", [True, False])
def test_words_move_with_the_speech(monkeypatch, own_heads):
    from importlib import resources

    model = real_model("tiny.en")
    if not own_heads:
        monkeypatch.setattr(model, "generation", ji.GenerationSettings())
    audio = ji.load_audio(str(resources.files("jaxasr_interp") / "data" / "grass.flac"))
    text = " My brother went outside to cut the grass."
    words = words_of_clip(model, audio, text)
    assert [word.text for word in words] == text.split()
    assert words[-1].name == "grass"
    assert words[0].tokens == (2, 3)
    edges = [edge for word in words for edge in word.seconds]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= len(audio) / 16_000 + 0.02
    # Where the vowel of "grass" sounds, in both.
    start, stop = words[-1].seconds
    assert start < 1.75 < stop
    later = words_of_clip(model, np.pad(audio, (16_000, 0)), text)
    moved = [b.seconds[1] - a.seconds[1] for a, b in zip(words[:-1], later[:-1], strict=True)]
    assert np.median(moved) == pytest.approx(1.0, abs=0.06)
    assert np.abs(np.array(moved) - 1).max() < 0.3


def test_there_are_no_words_without_text_and_no_frames_without_sound(tiny, utterances):
    mel = utterances[0].mel
    prompt = [31, 32, 35, 39]
    assert align_words(tiny, ji.Utterance(mel, jnp.asarray(prompt), 4, 12)) == ()
    with pytest.raises(ji.InputError, match="fills 13 frames"):
        align_words(tiny, ji.Utterance(mel, jnp.asarray([*prompt, 0, 3]), 4, 13))
    with pytest.raises(ji.InputError, match="prompt is 0"):
        align_words(tiny, ji.Utterance(mel, jnp.asarray(prompt), 0, 12))
    longer = [*prompt, *[3] * tiny.config.max_tokens]
    with pytest.raises(ji.InputError, match="transcript ends at token"):
        align_words(tiny, ji.Utterance(mel, jnp.asarray(longer), 4, 12))
    with pytest.raises(ji.InputError, match="not finite"):
        align_words(tiny, ji.Utterance(mel * jnp.nan, jnp.asarray([*prompt, 0, 3]), 4, 12))


def test_no_word_lies_in_two_stretches(tiny, utterances):
    """Of "ab" and "cd" without a space between, each is a word of its own stretch."""
    prompt, letters = [31, 32, 35, 39], [0, 1, 2, 3, 4]
    utterance = ji.Utterance(utterances[0].mel, jnp.asarray([*prompt, *letters]), 4, 12)
    (whole,) = align_words(tiny, utterance)
    assert whole.tokens == (4, 9)
    stretches = [Stretch((4, 7), (0, 6)), Stretch((7, 9), (5, 12))]
    words = align_within(tiny, utterance, stretches)
    assert [word.tokens for word in words] == [(4, 7), (7, 9)]
