"""Prompts and tokens of the real tokenizers, and of the tiny one."""

import pytest
from conftest import real_model

import jaxasr_interp as ji

pytestmark = pytest.mark.real


@pytest.fixture
def english():
    return real_model("tiny.en").tokenizer


@pytest.fixture
def multilingual():
    return real_model("base").tokenizer


def test_prompts_are_whispers(english, multilingual):
    assert english.prompt() == [50257, 50362]
    assert english.prompt(timestamps=True) == [50257]
    assert multilingual.prompt() == [50258, 50259, 50359, 50363]
    assert multilingual.prompt("german", "translate") == [50258, 50261, 50358, 50363]
    assert multilingual.prompt("de", timestamps=True) == [50258, 50261, 50359]
    assert multilingual.prompt(previous=[1, 2]) == [50361, 1, 2, 50258, 50259, 50359, 50363]


def test_special_tokens_are_whispers(english, multilingual):
    assert (english.end_of_text, english.no_speech, english.timestamp_begin) == (
        50256,
        50361,
        50363,
    )
    assert (multilingual.end_of_text, multilingual.no_speech) == (50257, 50362)
    assert multilingual.timestamp_begin == 50364
    assert not english.multilingual
    assert multilingual.multilingual
    assert len(multilingual.languages) == 99
    assert multilingual.languages["su"] == 50357


@pytest.mark.parametrize("text", [" My brother went outside.", " naïve café, 12 €", " 你好 мир"])
def test_text_survives_a_round_trip(english, multilingual, text):
    for tokenizer in (english, multilingual):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_leaves_out_special_tokens_and_timestamps(multilingual):
    tokens = [*multilingual.prompt(), 50364, *multilingual.encode(" yes"), 50400, 50257]
    assert multilingual.decode(tokens) == " yes"
    assert [multilingual.label(t) for t in (50363, 50364, 50400)] == [
        "<|notimestamps|>",
        "<|0.00|>",
        "<|0.72|>",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda en, multi: multi.prompt("klingon"), "Unknown language 'klingon': choose one of af"),
        (lambda en, multi: en.prompt("de"), "Unknown language 'de': choose one of en"),
        (lambda en, multi: en.prompt(task="translate"), "English-only model cannot translate"),
        (lambda en, multi: multi.prompt(task="sing"), "Unknown task 'sing'"),
        (lambda en, multi: multi.special("cat"), "has no token <|cat|>"),
    ],
)
def test_bad_prompts_are_named_in_one_sentence(english, multilingual, call, message):
    with pytest.raises(ji.InputError) as error:
        call(english, multilingual)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ji.InputError, match=r"is not a Whisper tokenizer\.json"):
        ji.Tokenizer(str(path)).encode("a")
