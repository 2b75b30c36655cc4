"""Word boundaries in the sound: bursts at known times, all choices, and any boundaries at all."""

import itertools
import json

import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.golden import GOLDEN
from helpers.real import TINY_FIRST, real_model
from jaxasr_interp.generation.word_boundaries import _cheapest, refine_boundaries

SAMPLES = 160
"""Samples in a mel frame of 10 ms."""
LENGTHS = [30, 42, 25, 51, 38, 33]
"""Mel frames of each word."""
LETTERS = np.array([5, 5, 4, 7, 5, 6])
"""Letters of each word, of which its length says a part."""


def bursts(gaps, noise, fade=0.25):
    """The mel of loud noise in bursts with gaps of soft noise, and where each burst is."""
    rng = np.random.default_rng(0)
    pieces = itertools.chain.from_iterable(zip(gaps, [*LENGTHS, 0], strict=True))
    edges = np.cumsum(list(pieces))
    words = edges[:-2].reshape(-1, 2)
    audio = rng.normal(size=int(edges[-1]) * SAMPLES) * 10 ** (-noise / 20)
    for start, stop in words * SAMPLES:
        # A word swells and fades.
        audio[start:stop] += rng.normal(size=stop - start) * np.hanning(stop - start) ** fade
    mel = ji.log_mel_spectrogram((audio / 10).astype(np.float32))
    return np.asarray(mel)[:, : edges[-1]], words


def attended(words, offset, spread, seed=1):
    """Boundaries as the decoder attends to them: off by a constant and by chance."""
    off = offset + np.random.default_rng(seed).integers(-spread, spread + 1, len(words))
    starts = np.maximum.accumulate(np.clip(words[:, 0] + off, 0, words[-1, 1]))
    return np.array([0, *starts[1:], words[-1, 1] - 10])


@pytest.mark.parametrize("noise", [70, 20], ids=["quiet", "noise"])
@pytest.mark.parametrize("offset", [-18, 0, 15])
@pytest.mark.parametrize(
    "gaps", [[20, 6, 7, 8, 6, 7, 25], [20, 30, 60, 45, 38, 80, 40]], ids=["tight", "pauses"]
)
def test_words_start_and_stop_where_the_sound_does(gaps, offset, noise):
    mel, words = bursts(gaps, noise)
    found = refine_boundaries(attended(words, offset, 4), LETTERS, mel)
    assert np.abs(found - words).max() <= 2


def test_without_quiet_boundaries_move_to_the_least_energy():
    mel, words = bursts([0, 0, 0, 0, 0, 0, 0], 70, fade=0.5)
    found = refine_boundaries(attended(words, 8, 3), LETTERS, mel)
    assert np.abs(found[1:, 0] - words[1:, 0]).max() <= 3
    assert np.abs(found[:-1, 1] - words[:-1, 1]).max() <= 3


@pytest.mark.parametrize("letters", [[3, 3], [2, 5], [6, 1]])
def test_without_any_boundary_in_the_sound_letters_say_how_long_words_are(letters):
    mel = np.zeros((8, 100))
    (_, boundary), (same, _) = refine_boundaries(np.array([0, 50, 100]), np.array(letters), mel)
    assert boundary == same
    # Nearer to the letters' share than where the decoder attends, and not beyond.
    share = 100 * (letters[0] + 1) / (sum(letters) + 2)
    assert (boundary == 50) == (share == 50)
    assert min(50, share) <= boundary <= max(50, share)


def test_the_gaps_are_the_cheapest_of_all_that_are_in_order():
    rng = np.random.default_rng(3)
    for _ in range(20):
        boundaries = []
        for _ in range(4):
            stops = rng.integers(0, 40, 5)
            starts = stops + rng.integers(0, 6, 5)
            boundaries.append(np.stack([stops, starts, rng.normal(0, 30, 5)], 1).astype(float))
        # A choice that is always possible.
        boundaries = [np.vstack([gaps, [40, 40, 200]]) for gaps in boundaries]
        expected = rng.uniform(5, 20, 3)

        def cost(choice, expected=expected):
            words = np.array([b[0] - a[1] for a, b in itertools.pairwise(choice)])
            if words.min() < 0:
                return np.inf
            lengths = np.log(np.maximum(words, 1) / expected) ** 2
            return sum(gap[2] for gap in choice) + 100 * lengths.sum()

        best = min(itertools.product(*boundaries), key=cost)
        least, found = _cheapest(boundaries, expected)
        np.testing.assert_array_equal(found, np.array(best)[:, :2])
        assert least == pytest.approx(cost(best))


def test_any_boundaries_give_words_in_order_within_the_clip():
    rng = np.random.default_rng(4)
    for frames, words in itertools.product((1, 2, 24, 300), (1, 2, 40)):
        for mel in (rng.normal(size=(8, frames)), np.zeros((8, frames))):
            boundaries = np.sort(rng.integers(0, frames + 1, words + 1))
            found = refine_boundaries(boundaries, rng.integers(0, 9, words), mel)
            assert found.shape == (words, 2)
            edges = found.ravel()
            assert (np.diff(edges) >= 0).all()
            assert edges[0] >= 0
            assert edges[-1] <= frames


@pytest.mark.real
@pytest.mark.parametrize("name", TINY_FIRST)
def test_words_placed_with_pauses_are_found_there(name):
    model = real_model(name)
    spoken = json.loads((GOLDEN / "spoken_words.json").read_text())
    audio = ji.load_audio(GOLDEN / "spoken_words.flac")
    utterance = ji.make_utterance(model, audio, text=" ".join(spoken["words"]), language="en")
    true = np.array([spoken["starts"], spoken["ends"]]).T

    def errors(refine):
        words = ji.align_words(model, utterance, refine=refine)
        return np.abs(np.array([word.seconds for word in words]) - true)

    assert np.median(errors(refine=True), 0).max() <= 0.03
    assert np.percentile(errors(refine=True), 90, axis=0).max() <= 0.12
    assert np.median(errors(refine=False)[:, 0]) > 0.1
