"""Checkpoints whose parts are not of one model, and one that has learned words of its own."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxasr_interp as ji
from helpers.golden import GOLDEN

TINY = GOLDEN / "tiny_random"
EMBEDDING = "model.decoder.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """The tiny model with its tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.npz"))
    shutil.copy(tiny_tokenizer.path, folder / "tokenizer.json")
    return folder


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def add_tokens(folder, names):
    def change(content):
        number = max(token["id"] for token in content["added_tokens"])
        for i, name in enumerate(names, 1):
            token = {"id": number + i, "content": name, "special": False, "normalized": False}
            token |= {"single_word": False, "lstrip": False, "rstrip": False}
            content["added_tokens"].append(token)

    edit_json(folder / "tokenizer.json", change)


def resize(folder, rows):
    """Add rows to the embedding, which is the unembedding too."""
    tensors = load_file(folder / "model.safetensors")
    tensors[EMBEDDING] = np.concatenate([tensors[EMBEDDING], rows])
    tensors.pop("proj_out.weight", None)
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "config.json", lambda c: c.update(vocab_size=len(tensors[EMBEDDING])))


def final_hidden(model, states, tokens):
    run = ji.decode(model, tokens, states, sites=["ln_final"])
    return np.asarray(run.acts.ln_final[-1], np.float64)


def test_words_that_a_fine_tune_added_are_written(x64, folder, golden):
    """Their rows of the embedding are turned so that they are what the model says next."""
    words = [" kiwibird", " quokka"]
    add_tokens(folder, [*(f"<|{0.02 * i:.2f}|>" for i in range(8)), *words])
    model = ji.load_model(folder, dtype="float64")
    states = ji.encode(model, jnp.asarray(golden["mel_a"])).states
    prompt = model.tokenizer.prompt("en")
    first = final_hidden(model, states, prompt)
    rows = np.stack([first, np.zeros_like(first)]) * 50 / (first @ first)
    resize(folder, rows)
    model = ji.load_model(folder, dtype="float64")
    assert model.tokenizer.added_words == {48: words[0], 49: words[1]}
    second = final_hidden(model, states, [*prompt, 48])
    towards = second - first * (second @ first) / (first @ first)
    tensors = load_file(folder / "model.safetensors")
    tensors[EMBEDDING][49] = towards * 100 / (towards @ second)
    save_file(tensors, folder / "model.safetensors")
    model = ji.load_model(folder, dtype="float64")
    out = ji.generate(model, states, prompt=prompt, choice=ji.Choice(max_new_tokens=2))
    assert out.tokens == (48, 49)
    assert out.text == " kiwibird quokka"
    from transformers import WhisperTokenizer

    theirs = WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"))
    tokens = [*out.prompt, *out.tokens, model.tokenizer.end_of_text]
    assert theirs.decode(tokens, skip_special_tokens=True) == out.text
    # With timestamps too, they are words and not times.
    timed = model.tokenizer.prompt("en", timestamps=True)
    out = ji.generate(model, states, prompt=timed, choice=ji.Choice(max_new_tokens=1))
    assert 40 <= out.tokens[0] < 48


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("generation_config.json", {"eos_token_id": 29}, r"<\|endoftext\|> the id 30 and .* 29"),
        ("generation_config.json", {"no_timestamps_token_id": 38}, "notimestamps"),
        ("generation_config.json", {"decoder_start_token_id": 30}, "startoftranscript"),
        ("generation_config.json", {"task_to_id": {"transcribe": 34}}, "transcribe"),
        ("generation_config.json", {"lang_to_id": {"<|de|>": 32}}, r"<\|de\|> the id 33"),
        ("generation_config.json", {"lang_to_id": {"<|fr|>": 32}}, r"no token <\|fr\|>"),
        ("generation_config.json", {"alignment_heads": [[3, 0]]}, "head 0 of layer 3"),
        ("generation_config.json", {"alignment_heads": [[0, 2]]}, "head 2 of layer 0"),
    ],
)
def test_parts_of_different_models_are_refused(folder, file, change, message):
    ji.load_model(folder)
    edit_json(folder / file, lambda content: content.update(change))
    with pytest.raises(ji.InputError, match=message) as error:
        ji.load_model(folder)
    assert "\n" not in str(error.value)


def test_without_generation_settings_the_config_speaks(folder):
    (folder / "generation_config.json").unlink()
    ji.load_model(folder)
    edit_json(folder / "config.json", lambda content: content.update(eos_token_id=3))
    with pytest.raises(ji.InputError, match=r"config\.json 3: they are not of one model"):
        ji.load_model(folder)


def test_what_only_pads_or_begins_other_models_contradicts_nothing(folder):
    """Fine-tunes write odd padding tokens, and several that end a text."""
    change = {"pad_token_id": 3, "bos_token_id": 3, "eos_token_id": [3, 30]}
    edit_json(folder / "generation_config.json", lambda content: content.update(change))
    edit_json(folder / "config.json", lambda content: content.update(eos_token_id=3))
    ji.load_model(folder)


def test_special_tokens_outside_the_vocabulary_are_refused(folder):
    edit_json(folder / "config.json", lambda content: content.update(vocab_size=36))
    tensors = load_file(folder / "model.safetensors")
    tensors[EMBEDDING] = tensors[EMBEDDING][:36]
    tensors.pop("proj_out.weight", None)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ji.InputError, match="the id 39 and the model has 36 tokens"):
        ji.load_model(folder)


def test_ctranslate2s_languages_are_the_tokenizers(folder, tmp_path):
    other = tmp_path / "ct2"
    shutil.copytree(GOLDEN / "tiny_random_ct2" / "float32", other)
    shutil.copy(folder / "tokenizer.json", other / "tokenizer.json")
    edit_json(other / "config.json", lambda content: content.update(lang_ids=[32, 33]))
    ji.load_model(other)
    edit_json(other / "config.json", lambda content: content.update(lang_ids=[32, 34]))
    with pytest.raises(ji.InputError, match="other ids for the languages"):
        ji.load_model(other)


def forced(folder, **settings):
    edit_json(folder / "generation_config.json", lambda content: content.update(settings))
    generation = ji.load_model(folder).generation
    return generation.language, generation.task


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (None, None)),
        ({"language": "<|de|>", "task": "translate"}, ("de", "translate")),
        ({"language": "German"}, ("de", None)),
        ({"forced_decoder_ids": [[1, 33], [2, 35], [3, 39]]}, ("de", "transcribe")),
        ({"forced_decoder_ids": [[1, None], [2, 35]]}, (None, "transcribe")),
        ({"language": "en", "forced_decoder_ids": [[1, 33], [2, 34]]}, ("en", "translate")),
    ],
)
def test_a_checkpoint_names_language_and_task(folder, settings, expected):
    assert forced(folder, **settings) == expected


def test_what_a_checkpoint_names_is_the_default_of_prompts(folder):
    audio = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    plain = ji.load_model(folder)
    forced(folder, language="de", task="translate")
    model = ji.load_model(folder)
    prompt = plain.tokenizer.prompt("de", "translate")
    assert list(ji.make_utterance(model, audio, text="a").tokens[: len(prompt)]) == prompt
    choice = ji.Choice(max_new_tokens=4)
    ours = ji.transcribe(model, audio, choice=choice)
    assert ours == ji.transcribe(plain, audio, language="de", task="translate", choice=choice)
    assert ours.language == "de"
    states = ji.encode(model, ji.log_mel_spectrogram(audio, 8, 24)).states
    assert list(ji.generate(model, states, choice=choice).prompt) == prompt
    # What the caller names goes first.
    assert ji.transcribe(model, audio, language="en", choice=choice).language == "en"


def test_the_older_fields_of_a_config_name_no_language(folder):
    """They are those of the model that was fine-tuned."""
    (folder / "generation_config.json").unlink()
    ids = {"forced_decoder_ids": [[1, 33], [2, 35]]}
    edit_json(folder / "config.json", lambda content: content.update(ids))
    assert ji.load_model(folder).generation.language is None


def test_saving_keeps_what_a_checkpoint_names(folder, tmp_path):
    forced(folder, language="de", task="translate")
    saved = ji.save_model(ji.load_model(folder), tmp_path / "saved")
    generation = ji.load_model(saved).generation
    assert (generation.language, generation.task) == ("de", "translate")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suppress_tokens": 7}, "suppress_tokens of another form"),
        ({"suppress_tokens": [[1]]}, "suppress_tokens of another form"),
        ({"begin_suppress_tokens": ["a"]}, "begin_suppress_tokens of another form"),
        ({"suppress_tokens": [48]}, "forbids the token 48: the model has 48 tokens"),
        ({"alignment_heads": [1, 2]}, "alignment_heads of another form"),
        ({"alignment_heads": {"a": 1}}, "alignment_heads of another form"),
        ({"forced_decoder_ids": [1, 2]}, "forced_decoder_ids of another form"),
        ({"forced_decoder_ids": "de"}, "forced_decoder_ids of another form"),
        ({"lang_to_id": [32]}, "lang_to_id of another form"),
        ({"eos_token_id": "end"}, "eos_token_id of another form"),
        ({"language": ["de"]}, "language of another form"),
        ({"language": "Klingon"}, "Unknown language 'Klingon'"),
        ({"task": "sing"}, "the task 'sing'"),
    ],
)
def test_settings_of_another_form_are_named_in_one_sentence(folder, settings, message):
    with pytest.raises(ji.InputError, match=message) as error:
        forced(folder, **settings)
    assert "\n" not in str(error.value)
