"""What texts repeat, and which of them are loops: hand counts, speech and what models wrote."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasr_interp.evaluation.loops import (
    Repetition,
    compression_ratio,
    is_loop,
    longest_repeat,
    repeats,
)

WORDS = st.lists(st.sampled_from(["cat", "dog", "the", "barks", "ran"]), min_size=1, max_size=8)

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
