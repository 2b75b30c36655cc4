"""Errors, loops and words on silence; bootstrap intervals. Against jiwer, scipy and hand counts."""

import zlib

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxasr_interp as ji
from jaxasr_interp.bootstrap import bootstrap_interval
from jaxasr_interp.text_metrics import (
    Errors,
    Repetition,
    character_errors,
    compression_ratio,
    is_loop,
    length_ratio,
    longest_repeat,
    normalize,
    repeats,
    word_errors,
    words_on_silence,
)

LANGUAGES = st.sampled_from(["en", "de", "hi", "ja"])
WORDS = st.lists(st.sampled_from(["cat", "dog", "the", "barks", "ran"]), min_size=1, max_size=8)
PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=5)

SPEECH = [
    "",
    "No, no, no.",
    "No, no, no, no, no!",
    "Ha ha ha.",
    "hahaha, hmmmmm, aaaah",
    "nineteen twenty twenty twenty",
    "Thank you. Thank you. Thank you very much.",
    "I had had it, and that that was that.",
    "It cost 1,000,000,000 dollars, or 1000000000.",
    "Visit www.committee.com",
    "We shall fight on the beaches, we shall fight on the landing grounds, we shall fight in the "
    "fields and in the streets, we shall fight in the hills; we shall never surrender.",
    "はい、はい、はい、そうです。",
    "चूंकि मानव परिवार के सभी सदस्यों के जन्मजात गौरव और समान तथा अविच्छिन्न अधिकार की स्वीकृति ही "
    "विश्व-शान्ति, न्याय और स्वतन्त्रता की बुनियाद है, चूंकि मानव अधिकारों के प्रति उपेक्षा और घृणा के "
    "फलस्वरूप ही ऐसे बर्बर कार्य हुए जिनसे मनुष्य की आत्मा पर अत्याचार किया गया, चूंकि एक ऐसी "
    "विश्व-व्यवस्था की उस स्थापना को जिसमें लोगों को भाषण और धर्म की आज़ादी तथा भय और अभाव से मुक्ति "
    "मिलेगी, सर्वसाधारण के लिए सर्वोच्च आकांक्षा घोषित किया गया है",
]
LOOPS = [
    "AAAAAAAAAAAAA",
    "the the the the the the",
    "Thank you. Thank you. Thank you. Thank you.",
    "So I went to the shop. I went to the shop. I went to the shop.",
    "And then he said, " + "no, " * 30,
    "♪ ♪ ♪ ♪ ♪ ♪",
    "no-no-no-no-no-no-no",
    "ご視聴ありがとうございました。" * 3,
    "感谢观看" * 4,
    # Twelve words are more than an n-gram holds: compression alone.
    "all of us have been here before and will be here again; " * 4,
    "मानव परिवार के सभी सदस्यों के जन्मजात गौरव और समान अधिकार की स्वीकृति " * 5,
]


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
    assert length_ratio(text, text, language) == 1
    assert words.hits == len(normalize(text, language).split())
    assert not words_on_silence(text, language) or words.hits > 0


def test_length_ratio_counts_words():
    assert length_ratio("one two, three four", "three four") == 1
    assert length_ratio("the cat sat", "the cat sat and sat again") == 2
    assert length_ratio("the cat sat", "") == 0
    assert length_ratio("", "the") == np.inf
    assert length_ratio("", "um") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), (" ... ♪", False), ("[Music] (applause) um", False), ("you", True), ("7", True)],
)
def test_any_word_on_silence_is_a_hallucination(text, expected):
    assert words_on_silence(text) is expected


@given(st.text())
def test_compression_is_bytes_over_compressed_bytes(text):
    encoded = text.encode("utf-8")
    assert compression_ratio(text) == len(encoded) / len(zlib.compress(encoded))
    assert compression_ratio("") == 0


def test_repeats_are_those_counted_by_hand():
    assert repeats(["a", "b", "a", "b", "c", "c", "c"]) == (
        Repetition(("c",), 3),
        Repetition(("a", "b"), 2),
    )
    assert repeats("xabab") == (Repetition(("a", "b"), 2),)
    assert repeats([]) == repeats(["a", "b"]) == ()
    assert repeats("abcabc", longest=2) == ()
    assert Repetition(("a", "b"), 4).excess == 6


@given(WORDS, WORDS, WORDS, st.integers(2, 6))
def test_what_is_repeated_is_found(before, ngram, after, times):
    found = repeats([*before, *ngram * times, *after])
    assert max(r.times for r in found if len(r.ngram) == len(ngram)) >= times
    text = " ".join([*before, *ngram * times, *after])
    repetition = longest_repeat(text)
    assert repetition.times >= times
    assert " ".join(repetition.ngram * repetition.times) in text


@pytest.mark.parametrize(
    ("text", "ngram", "times"),
    [
        ("", (), 0),
        ("Hello there", ("hello",), 1),
        ("No, no. NO!", ("no",), 3),
        ("thank you. Thank you", ("thank", "you"), 2),
        ("the the the thank you thank you thank you", ("thank", "you"), 3),
        ("Yes, AAAAAAAAAAAAA", ("a",), 13),
        ("committee", ("committee",), 1),
        ("का, के, की", ("का",), 1),
    ],
)
def test_the_longest_repeat(text, ngram, times):
    assert longest_repeat(text) == Repetition(ngram, times)


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_caught(text):
    assert is_loop(text)
    assert is_loop(f"Well, he said: {text}")


@pytest.mark.parametrize("text", SPEECH)
def test_speech_is_no_loop(text):
    assert not is_loop(text)


def test_no_reference_of_the_corpus_is_a_loop(manifest):
    clips = [row for row in manifest if row["text"] and row["kind"] != "long"]
    assert [row["path"] for row in clips if is_loop(row["text"])] == []


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
