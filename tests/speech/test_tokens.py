"""Prompts and tokens of the real tokenizers, text as tiktoken encodes it, words that are added."""

import hashlib
import json
import logging
import lzma
import random
from pathlib import Path

import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.golden import GOLDEN
from helpers.real import real_model
from jaxasr_interp.speech.languages import LANGUAGES, without_warnings
from jaxasr_interp.speech.merges import complete_merges

pytestmark = pytest.mark.real
VOCABULARIES = {"base": "multilingual", "tiny.en": "gpt2"}


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


@pytest.fixture(scope="module")
def encodings():
    return json.loads((GOLDEN / "encodings.json").read_text())


@pytest.fixture(scope="module")
def lines():
    with lzma.open(GOLDEN / "lines.txt.xz", "rt", encoding="utf-8") as file:
        return file.read().split("\n")[:-1]


def test_ten_thousand_lines_are_encoded_as_tiktoken_does(real, encodings, lines):
    name, model = real
    assert len(lines) == 10_000
    assert len(encodings["languages"]) == 20
    rows = [model.tokenizer.encode(line) for line in lines]
    assert [model.tokenizer.decode(row) for row in rows] == lines
    for number, expected in enumerate(encodings[VOCABULARIES[name]]):
        block = rows[number * encodings["block"] :][: encodings["block"]]
        flat = [token for row in block for token in (len(row), *row)]
        found = hashlib.sha256(np.array(flat, "<i4").tobytes()).hexdigest()
        assert found == expected, f"lines from {number * encodings['block']} on"


def test_transcripts_are_encoded_as_they_were_written(real, encodings, manifest):
    """But for those that a model wrote in other tokens than the encoder's, tiktoken's too."""
    name, model = real
    greedy = json.loads((GOLDEN / f"greedy_{name}.json").read_text())
    otherwise = encodings[f"otherwise {name}"]
    for clip, written in greedy["clips"].items():
        tokens = [token for token in written["tokens"] if token != greedy["end_of_text"]]
        text = model.tokenizer.decode(tokens)
        assert model.tokenizer.encode(text) == otherwise.get(clip, tokens), clip
        assert model.tokenizer.decode(otherwise.get(clip, tokens)) == text
    # Digit strings have many tokenisations, sentences few.
    sentences = [row["path"] for row in manifest if row["kind"] == "read_en"][:100]
    assert sum(clip not in otherwise for clip in sentences) >= 95


def test_a_merge_that_is_missing_is_put_back_and_said_once(multilingual, caplog):
    assert multilingual.merges.restored == 1
    assert multilingual.merges.pairs[0] == ("Ġ", "t")
    assert multilingual.encode(" the") == [264]
    again = ji.Tokenizer(multilingual.path)
    with caplog.at_level(logging.INFO):
        again.encode(" the")
    assert not caplog.records


def content_of(tokenizer):
    content = json.loads(Path(tokenizer.path).read_text("utf-8"))
    merges = [tuple(pair.split(" ")) for pair in content["model"]["merges"]]
    return content, content["model"]["vocab"], merges


@pytest.mark.parametrize("seed", range(5))
def test_any_merges_that_are_missing_are_found(english, seed):
    _, vocabulary, merges = content_of(english)
    drawn = random.Random(seed)
    lost = set(drawn.sample(range(len(merges)), 30)) | {0, len(merges) - 1}
    kept = [pair for number, pair in enumerate(merges) if number not in lost]
    found = complete_merges(vocabulary, kept, english.end_of_text)
    assert (found.state, found.restored) == ("complete", len(lost))
    assert list(found.pairs) == merges


def test_a_vocabulary_of_another_build_is_left_as_it_is(english, tmp_path, caplog):
    content, vocabulary, merges = content_of(english)
    merges[5], merges[9] = merges[9], merges[5]
    other = complete_merges(vocabulary, merges, english.end_of_text)
    assert (other.state, other.restored, list(other.pairs)) == ("other", 0, merges)
    content["model"]["merges"] = [" ".join(pair) for pair in merges]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = ji.Tokenizer(str(path))
    assert tokenizer.decode(tokenizer.encode(" the other")) == " the other"
    assert not caplog.records


def with_words(tokenizer, path, words, timestamps=True, first=None):
    """The tokenizer with its timestamps and then some words added, as fine-tunes have them."""
    content, _, _ = content_of(tokenizer)
    number = max(token["id"] for token in content["added_tokens"]) + 1
    names = [f"<|{0.02 * i:.2f}|>" for i in range(1501)] if timestamps else []
    for i, name in enumerate([*names, *words]):
        token = {"id": number + i, "content": name, "special": False, "normalized": False}
        token |= {"single_word": False, "lstrip": False, "rstrip": False}
        content["added_tokens"].append(token)
    path.write_text(json.dumps(content), encoding="utf-8")
    return ji.Tokenizer(str(path))


def test_words_that_a_fine_tune_added_are_text(english, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "tokenizer.json"
    tokenizer = with_words(english, path, [" kiwibird", " quokka"])
    assert tokenizer.added_words == {51864: " kiwibird", 51865: " quokka"}
    tokens = [50257, 50362, 50363, *tokenizer.encode(" the"), 51864, 51865, 50400, 50256]
    theirs = transformers.WhisperTokenizer(tokenizer_file=str(path))
    assert tokenizer.decode(tokens) == " the kiwibird quokka"
    assert tokenizer.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
    assert tokenizer.encode(" the kiwibird") == [262, 51864]
    assert [tokenizer.label(token) for token in (51864, 50400, 50256)] == [
        " kiwibird",
        "<|0.74|>",
        "<|endoftext|>",
    ]
    assert [tokenizer.is_timestamp(t) for t in (50362, 50363, 51863, 51864)] == [0, 1, 1, 0]
    masks = tokenizer.text_mask(51866), tokenizer.timestamp_mask(51866)
    for token in range(51866):
        assert masks[0][token] == tokenizer.is_text(token)
        assert masks[1][token] == tokenizer.is_timestamp(token)


def test_words_beyond_ascii_are_read_as_they_are_written(english, tmp_path):
    tokenizer = with_words(english, tmp_path / "tokenizer.json", [" naïve", " 東京 z", "<|hm|>"])
    assert tokenizer.decode([262, 51864, 51865, 51866, 262]) == " the naïve 東京 z<|hm|> the"


def test_special_tokens_that_a_fine_tune_added_are_no_words(english, tmp_path):
    path = tmp_path / "tokenizer.json"
    with_words(english, path, [" kiwi", "<|ff|>"])
    content = json.loads(path.read_text())
    content["added_tokens"][-1]["special"] = True
    path.write_text(json.dumps(content))
    tokenizer = ji.Tokenizer(str(path))
    assert tokenizer.added_words == {51864: " kiwi"}
    assert tokenizer.decode([51865, 262, 51864]) == " the kiwi"


def test_an_ordinary_token_that_is_listed_as_added_hides_no_missing_merge(multilingual, tmp_path):
    content, vocabulary, _ = content_of(multilingual)
    token = next(word for word, number in vocabulary.items() if number == 600)
    entry = dict(content["added_tokens"][0], content=token, id=600, special=False)
    content["added_tokens"].insert(0, entry)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert ji.Tokenizer(str(path)).encode(" the") == [264]


def test_a_trainings_truncation_and_padding_are_left_out(english, tmp_path):
    content, _, _ = content_of(english)
    content["truncation"] = {"direction": "Right", "max_length": 3, "stride": 0}
    content["truncation"]["strategy"] = "LongestFirst"
    content["padding"] = {"strategy": {"Fixed": 12}, "direction": "Right", "pad_token": "!"}
    content["padding"] |= {"pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    text = " one two three four five"
    assert ji.Tokenizer(str(path)).encode(text) == english.encode(text)


def test_words_in_place_of_timestamps_are_words(english, tmp_path):
    tokenizer = with_words(english, tmp_path / "tokenizer.json", [" kiwi"], timestamps=False)
    assert tokenizer.decode([262, 50363]) == " the kiwi"
    assert [tokenizer.is_timestamp(token) for token in (50363, 50364)] == [False, True]


def test_added_tokens_that_are_read_under_other_ids_are_refused(english, tmp_path):
    path = tmp_path / "tokenizer.json"
    content, _, _ = content_of(english)
    content["added_tokens"][-1]["id"] += 7
    path.write_text(json.dumps(content))
    with pytest.raises(ji.InputError, match=r"the id 50369, but it is read as 50362"):
        ji.Tokenizer(str(path)).encode(" the")


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
    with pytest.raises(ji.InputError, match="is not a Whisper tokenizer"):
        ji.Tokenizer(str(path)).encode("a")


def test_languages_are_those_of_transformers():
    with without_warnings():
        from transformers.models.whisper import tokenization_whisper
    assert list(LANGUAGES.items()) == list(tokenization_whisper.LANGUAGES.items())
