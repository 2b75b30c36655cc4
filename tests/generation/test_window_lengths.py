"""Models whose encoder takes another length than 30 s."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxasr_interp as ji
from helpers.golden import GOLDEN
from helpers.real import real_model
from jaxasr_interp.checkpoint import convert

SECONDS = 10
CHOICE = ji.Choice(max_new_tokens=6)
POSITIONS = "model.encoder.embed_positions.weight"


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """The tiny model with 500 encoder positions, as a fine-tune for 10 s has them."""
    folder = tmp_path / "ten_seconds"
    shutil.copytree(GOLDEN / "tiny_random", folder, ignore=shutil.ignore_patterns("*.npz"))
    shutil.copy(tiny_tokenizer.path, folder / "tokenizer.json")
    tensors = load_file(folder / "model.safetensors")
    tensors[POSITIONS] = np.random.default_rng(0).normal(size=(50 * SECONDS, 16))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"max_source_positions": 500}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def noise(seconds):
    return np.random.default_rng(1).normal(size=int(16_000 * seconds)).astype(np.float32)


def test_a_model_of_10_seconds_transcribes(folder):
    model = ji.load_model(folder)
    assert model.config.max_seconds == SECONDS
    short = ji.transcribe(model, noise(9.5), language="en", choice=CHOICE)
    mel = ji.log_mel_spectrogram(noise(9.5), 8, 100 * SECONDS)
    prompt = model.tokenizer.prompt("en")
    expected = ji.generate(model, ji.encode(model, mel).states, prompt=prompt, choice=CHOICE)
    assert short.tokens == expected.tokens
    assert not short.segments
    assert ji.make_utterance(model, noise(9.5), text="a", language="en").frames == 475
    # Longer audio is heard in windows of 10 s.
    long = ji.transcribe(model, noise(15), language="en", choice=CHOICE)
    assert {int(segment.start // SECONDS) for segment in long.segments} == {0, 1}
    with pytest.raises(ji.InputError, match=r"The clip is longer than 10 s \(10\.5 s\)"):
        ji.make_utterance(model, noise(10.5))


@pytest.mark.real
def test_a_real_model_cut_to_10_seconds_still_hears():
    model = real_model("tiny.en")
    parameters = dict(convert.parameters_by_path(model))
    parameters["encoder.pos_embed"] = jnp.asarray(parameters["encoder.pos_embed"])[:500]
    config = dataclasses.replace(model.config, max_frames=500)
    short = convert.with_parameters(config, parameters)
    short.tokenizer, short.generation = model.tokenizer, model.generation
    from importlib.resources import files

    clip = ji.load_audio(str(files("jaxasr_interp") / "data" / "grass.flac"))
    text = ji.transcribe(short, clip, choice=ji.Choice(max_new_tokens=16)).text
    assert "cut the grass" in text.lower()
