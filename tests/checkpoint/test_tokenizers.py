"""Tokenizers that do not lie in a `tokenizer.json` beside the weights."""

import json
from pathlib import Path

import pytest

import jaxasr_interp as ji
from helpers.golden import GOLDEN
from jaxasr_interp.checkpoint import tokenizers
from jaxasr_interp.checkpoint.bundled import find_parts

TEXT = " Cut the grass, 剪草 — 12.5%."


@pytest.fixture
def base_tokenizer():
    if find_parts("base") is None:
        pytest.skip("weights not installed")
    return ji.Tokenizer(str(find_parts("base")[0].with_name("tokenizer.json")))


@pytest.mark.real
def test_large_v3_has_the_vocabulary_of_base_with_cantonese(base_tokenizer):
    golden = json.loads((GOLDEN / "special_tokens_large-v3.json").read_text("utf-8"))
    tokenizer, settings = tokenizers.bundled_tokenizer(51866, "large-v3.pt")
    for mark, number in golden["special"].items():
        # The file has the older name of one token.
        name = {"<|nospeech|>": "nocaptions"}.get(mark, mark[2:-2])
        assert tokenizer.special(name) == number, mark
    assert tokenizer.encode(golden["text"]) == golden["tokens"]
    assert tokenizer.prompt("en") == golden["prompt"]
    assert tokenizer.timestamp_begin == golden["timestamp_begin"]
    assert tokenizer.languages["yue"] == golden["special"]["<|yue|>"]
    assert "yue" not in base_tokenizer.languages
    special = ["startoftranscript", "startofprev", "startoflm", "transcribe", "translate"]
    forbidden = {*golden["suppress"], tokenizer.no_speech, *map(tokenizer.special, special)}
    assert {*settings.suppress} == forbidden
    assert settings.suppress_first == (220, 50257)
    assert settings.alignment_heads == ()


@pytest.mark.real
@pytest.mark.parametrize(("d_vocab", "name"), [(51864, "tiny.en"), (51865, "base")])
def test_the_other_vocabularies_are_those_of_bundled_models(d_vocab, name):
    if find_parts(name) is None:
        pytest.skip("weights not installed")
    folder = find_parts(name)[0].parent
    tokenizer, settings = tokenizers.bundled_tokenizer(d_vocab, "a.pt")
    assert tokenizer == ji.Tokenizer(str(folder / "tokenizer.json"))
    stated = json.loads((folder / "config.json").read_text())
    assert list(settings.suppress) == stated["suppress_ids"]


@pytest.mark.parametrize(("d_vocab", "extra"), [(51864, "demo"), (51865, "base"), (51866, "base")])
def test_where_none_is_installed_the_extra_is_named(monkeypatch, d_vocab, extra):
    monkeypatch.setattr(tokenizers, "find_parts", lambda name: None)
    with pytest.raises(ji.InputError, match=rf"a\.pt .*'jaxasr-interp\[{extra}\]'"):
        tokenizers.bundled_tokenizer(d_vocab, "a.pt")


def test_another_vocabulary_has_no_bundled_tokenizer():
    assert tokenizers.bundled_tokenizer(51999, "a.pt") == (None, ji.GenerationSettings())


def split(tokenizer: ji.Tokenizer, folder: Path, settings: bool) -> ji.Tokenizer:
    """Write a tokenizer as the files that transformers saved before `tokenizer.json`."""
    content = json.loads(tokenizer.content)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocabulary = {t: n for t, n in content["model"]["vocab"].items() if t not in added}
    end = "<|endoftext|>"
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, end: added[end]}))
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    if settings:
        decoder = {token["id"]: token for token in content["added_tokens"]}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    else:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return tokenizers.find_tokenizer(folder)


@pytest.mark.real
def test_a_vocabulary_with_merges_is_a_tokenizer(tmp_path, base_tokenizer):
    tokenizer = split(base_tokenizer, tmp_path, settings=True)
    assert tokenizer.encode(TEXT) == base_tokenizer.encode(TEXT)
    assert tokenizer.decode(base_tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.languages == base_tokenizer.languages
    assert tokenizer.prompt("de", "translate") == base_tokenizer.prompt("de", "translate")
    assert tokenizer.added_words == {}
    # Saved with a model, it is one file.
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.content)
    again = tokenizers.find_tokenizer(tmp_path)
    assert Path(again.path).name == "tokenizer.json"
    assert again.encode(TEXT) == tokenizer.encode(TEXT)


def test_the_tiny_tokenizer_in_parts_is_the_same(tmp_path, tiny_tokenizer):
    tokenizer = split(tiny_tokenizer, tmp_path, settings=False)
    assert tokenizer.encode(" cut the grass") == tiny_tokenizer.encode(" cut the grass")
    assert tokenizer.prompt("de") == tiny_tokenizer.prompt("de")


def test_a_damaged_vocabulary_is_named(tmp_path, tiny_tokenizer):
    tokenizer = split(tiny_tokenizer, tmp_path, settings=False)
    (tmp_path / "added_tokens.json").write_text("[1]")
    with pytest.raises(ji.InputError, match=r"vocab\.json is not a Whisper tokenizer"):
        tokenizer.prompt()
