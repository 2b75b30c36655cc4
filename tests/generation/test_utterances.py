"""Utterances: made from audio and text; their encoder runs are used only where they fit."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.by_hand import brief_clips
from helpers.generating import louder
from jaxasr_interp.generation import utterances
from jaxasr_interp.generation.files import transcribe_files
from jaxasr_interp.model.run import encode_utterance
from jaxasr_interp.pytree import replace


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def clips():
    return brief_clips()


def test_an_utterance_is_the_prompt_and_the_text(model, clips):
    given = ji.make_utterance(model, clips[0], text=" a b ", language="de")
    prompt = model.tokenizer.prompt("de")
    assert given.tokens.tolist() == [*prompt, *model.tokenizer.encode(" a b")]
    assert (given.prompt, given.language) == (len(prompt), "de")
    silent = ji.make_utterance(model, clips[0], text="", language="de")
    assert silent.tokens.tolist() == list(prompt)
    choice = ji.Choice(max_new_tokens=5)
    own = ji.make_utterance(model, clips[0], choice=choice)
    plain = ji.transcribe_batch(model, clips[:1], choice=choice)[0]
    assert tuple(own.tokens.tolist()[own.prompt :]) == plain.tokens
    assert own.language == plain.language
    states = ji.encode(model, own.mel).states
    np.testing.assert_array_equal(own.encoded.states, states)


def test_an_encoder_run_is_used_only_where_it_fits(model, clips):
    given = ji.make_utterance(model, clips[0], text="a", language="de", sites=["z"])
    assert encode_utterance(model, given).states is given.encoded.states
    other = ji.make_utterance(model, clips[1], text="a", language="de").mel
    heavier = jax.tree.map(lambda x: x * 1.01, model)
    for one, changed in (
        (model, replace(given, mel=other)),
        (model, dataclasses.replace(given, mel=other)),
        (heavier, given),
        (model, jax.tree.map(lambda x: x + 0, given)),
    ):
        found = encode_utterance(one, changed, ["z"])
        expected = ji.encode(one, changed.mel, sites=["z"])
        np.testing.assert_array_equal(found.states, expected.states)
        np.testing.assert_array_equal(found.acts.z, expected.acts.z)
    more = encode_utterance(model, given, ["z", "mlp_out"])
    assert more.acts.mlp_out is not None
    assert encode_utterance(model, given, ["z"]).acts.z is given.encoded.acts.z


def test_a_sweep_of_encoded_utterances_is_that_of_plain_ones(model, clips):
    pair = [
        ji.make_utterance(model, clip, text="a b", language="de", sites=["resid_pre"])
        for clip in clips
    ]
    plan = ji.plan_sweep(
        model, tokens=pair[1].tokens, stack="encoder", options=ji.PlanOptions(window=3)
    )
    plain = [ji.Utterance(one.mel, one.tokens) for one in pair]
    results = [
        ji.activation_patching(model, plan, clean=a, corrupted=b, metric=ji.metrics.kl())
        for a, b in (pair, plain)
    ]
    np.testing.assert_allclose(results[0].patched, results[1].patched, rtol=1e-9, atol=1e-12)
    assert results[0].plan.memory == plan.memory


def test_the_mean_of_clips_is_taken_once_for_many_files(model, clips, tmp_path, monkeypatch):
    import soundfile

    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], clips[i % 2], 16_000, subtype="FLOAT")
    made = []
    monkeypatch.setattr(
        "jaxasr_interp.generation.means.make_utterance",
        lambda *given, **named: made.append(1) or utterances.make_utterance(*given, **named),
    )
    edit = f"mean:decoder.mlp_out@1:ref={files[0]}"
    choice = ji.Choice(max_new_tokens=3)
    found = list(transcribe_files(model, files, choice=choice, edit=edit, batch_size=1))
    assert [isinstance(one, ji.Transcript) for _, one in found] == [True] * 3
    assert len(made) == 1


def test_a_long_clip_is_refused_by_its_name(model):
    long = np.zeros(16_000 * 31, np.float32)
    with pytest.raises(ji.InputError, match=r"long.wav is longer than 0.24 s \(31.0 s\)"):
        ji.make_utterance(model, long, name="long.wav")
