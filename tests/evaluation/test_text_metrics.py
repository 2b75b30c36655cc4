"""Errors and words on silence; bootstrap intervals. Against jiwer, scipy and hand counts."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxasr_interp as ji
from jaxasr_interp.evaluation.bootstrap import bootstrap_interval
from jaxasr_interp.evaluation.text_metrics import (
    Errors,
    character_errors,
    normalize,
    word_errors,
    words_on_silence,
)

LANGUAGES = st.sampled_from(["en", "de", "hi", "ja"])
WORDS = st.lists(st.sampled_from(["cat", "dog", "the", "barks", "ran"]), min_size=1, max_size=8)
PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Mr. Smith isn't here, um, [Music] OK?", "en", "mister smith is not here ok"),
        ("Twenty-one dollars.", "English", "$21"),
        (" ¿Qué tal?  ¡Así! ", "es", "qué tal así"),
        ("你好, ok", "zh", "你 好 o k"),
        ("你好", "Chinese", "你 好"),
        ("Well...", "en", "well ."),
        ("...", "de", ""),
    ],
)
def test_texts_are_normalised_as_whisper_does(text, language, expected):
    assert normalize(text, language) == expected


def test_spellings_are_changed_in_english_alone():
    spelling = {"colour": "color"}
    assert normalize("Colour!", spelling=spelling) == "color"
    assert normalize("Colour!", "de", spelling) == "colour"
    assert word_errors("color", "colour", spelling=spelling).rate == 0


@pytest.mark.parametrize("measure", [normalize, words_on_silence])
def test_an_unknown_language_is_refused(measure):
    with pytest.raises(ji.InputError, match="Unknown language 'klingon'"):
        measure("text", "klingon")


def test_word_errors_are_those_counted_by_hand():
    errors = word_errors("The cat sat on the mat.", "the hat sat the mat today")
    assert errors == Errors(hits=4, substitutions=1, deletions=1, insertions=1)
    assert errors.reference_length == 6
    assert errors.rate == pytest.approx(3 / 6)
    assert word_errors("你好吗", "你们好", "zh") == Errors(2, 0, 1, 1)


def test_character_errors_count_spaces_only_where_they_are_written():
    assert character_errors("a cat", "a hats") == Errors(4, 1, 0, 1)
    assert character_errors("你好吗", "你吗", "zh") == Errors(2, 0, 1, 0)


@pytest.mark.parametrize("measure", [word_errors, character_errors])
def test_all_is_inserted_where_nothing_is_said(measure):
    assert measure("", "") == measure("?", "um") == Errors()
    assert Errors().rate == 0
    assert measure("", "go on").rate == np.inf
    assert measure("", "go on").insertions == (2 if measure is word_errors else 5)
    assert measure("go on", "").rate == 1


@given(PAIRS)
@settings(deadline=None)
def test_errors_add_up_to_those_of_the_corpus(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    words = sum((word_errors(*pair) for pair in pairs), Errors())
    assert words.rate == pytest.approx(jiwer.wer(references, hypotheses))
    characters = sum((character_errors(*pair) for pair in pairs), Errors())
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses))
    assert words.reference_length == sum(len(text.split()) for text in references)


@given(st.text(max_size=40), LANGUAGES)
@settings(deadline=None)
def test_a_text_has_no_errors_against_itself(text, language):
    words = word_errors(text, text, language)
    assert words.rate == character_errors(text, text, language).rate == 0
    assert words.hits == len(normalize(text, language).split())
    assert not words_on_silence(text, language) or words.hits > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), (" ... ♪", False), ("[Music] (applause) um", False), ("you", True), ("7", True)],
)
def test_any_word_on_silence_is_a_hallucination(text, expected):
    assert words_on_silence(text) is expected


def test_an_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).gamma(2, size=60)
    ours = bootstrap_interval(values, level=0.9, n_resamples=5000)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    assert ours.estimate == values.mean()
    np.testing.assert_allclose((ours.low, ours.high), theirs, atol=0.02)


def test_an_error_rate_is_resampled_by_clip():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    words = generator.integers(5, 30, size=50)
    errors = generator.binomial(words, 0.2)

    def rate(errors, words):
        return errors.sum(-1) / words.sum(-1)

    ours = bootstrap_interval((errors, words), rate, n_resamples=5000)
    theirs = stats.bootstrap(
        (errors, words), rate, paired=True, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    assert ours.estimate == errors.sum() / words.sum()
    np.testing.assert_allclose((ours.low, ours.high), theirs, atol=0.005)


def test_an_interval_holds_the_truth_as_often_as_its_level_says():
    samples = np.random.default_rng(0).normal(size=(300, 40))
    intervals = [bootstrap_interval(clips, level=0.8, n_resamples=200) for clips in samples]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.8, abs=0.07)


def test_an_interval_is_the_same_for_the_same_seed():
    values = np.arange(20.0)
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    one = bootstrap_interval(np.array([3.0]))
    assert one.low == one.estimate == one.high == 3
    rows = bootstrap_interval(np.stack([values, values], 1), lambda rows: rows[:, 0].mean())
    assert rows == bootstrap_interval(values)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.array([]), {}, "no clips"),
        ((), {}, "no clips"),
        ((np.ones(2), np.ones(3)), {}, "hold 2, 3 clips"),
        (np.ones(3), {"level": 95.0}, "level is 95.0"),
        (np.ones(3), {"level": 0.0}, "level is 0.0"),
        (np.ones(3), {"n_resamples": 0}, "resamples is 0"),
        (np.array([0.1, np.inf]), {}, "not finite"),
    ],
)
def test_a_bad_bootstrap_is_refused(values, options, message):
    with pytest.raises(ji.InputError, match=message):
        bootstrap_interval(values, **options)
