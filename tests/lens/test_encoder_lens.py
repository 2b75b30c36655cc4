"""The encoder lens: against torch at every depth, and against one decoding after another."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import PROMPT
from helpers.generating import louder
from helpers.golden import GOLDEN
from helpers.real import REAL_MODELS, real_model

GAP = 1e-3
CLOSEST = (
    "read_en/librispeech_1688-142285-0003.flac",
    "read_en/vctk_p225_003.flac",
    "read_en/cmu_cmu_arctic_us_aew_a0001.flac",
    "read_en/fleurs_fleurs-en-003.flac",
    "read_en/ljspeech_LJ001-0004.flac",
)


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def mel(golden):
    return jnp.asarray(golden["mel_a"])


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def depths_by_hand(model, mel, norm):
    """The residual stream after every number of layers, normed in numpy."""
    acts = ji.encode(model, mel, sites="all").acts
    depths = np.concatenate([acts.resid_pre[:1], acts.resid_post])
    if not norm:
        return depths
    final = model.encoder.final_norm
    centred = depths - depths.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return normed * np.asarray(final.scale[...]) + np.asarray(final.bias[...])


@pytest.mark.parametrize("norm", [True, False])
def test_every_depth_is_written_and_asked_on_its_own(model, mel, norm):
    options = {"prompt": [*PROMPT, 3], "choice": ji.Choice(max_new_tokens=5)}
    lens = ji.encoder_lens(model, mel, norm=norm, top_k=4, **options)
    depths = depths_by_hand(model, mel, norm)
    assert len(lens.generated) == len(depths) == 3
    assert lens.normed == norm
    assert lens.reference == lens.generated[-1].tokens
    assert len({one.tokens for one in lens.generated}) > 1
    for i, states in enumerate(jnp.asarray(depths)):
        alone = ji.generate(model, states, prompt=[*PROMPT, 3], choice=ji.Choice(max_new_tokens=5))
        assert lens.generated[i].tokens == alone.tokens
        assert lens.texts[i] == alone.text.strip()
        np.testing.assert_allclose(lens.generated[i].log_probs, alone.log_probs, rtol=1e-9)
        logits = ji.decode(model, [*PROMPT, 3, *lens.reference], states).logits[4:-1]
        log_p = log_softmax(np.asarray(logits))
        own = np.take_along_axis(log_p, np.array(lens.reference)[:, None], 1)[:, 0]
        np.testing.assert_allclose(lens.log_probs[i], own, rtol=1e-9, atol=1e-11)
        order = np.argsort(-log_p, axis=1)[:, :4]
        np.testing.assert_array_equal(lens.top_tokens[i], order)
        expected = np.take_along_axis(log_p, order, 1)
        np.testing.assert_allclose(lens.top_log_probs[i], expected, rtol=1e-9, atol=1e-11)


def test_full_depth_is_the_model_and_a_reference_is_asked_for(model, mel):
    reference, choice = [3, 7, 4, 12, 9], ji.Choice(max_new_tokens=5)
    lens = ji.encoder_lens(model, mel, prompt=[*PROMPT, 3], reference=reference, choice=choice)
    states = ji.encode(model, mel).states
    plain = ji.generate(model, states, prompt=[*PROMPT, 3], choice=ji.Choice(max_new_tokens=5))
    assert lens.generated[-1].tokens == plain.tokens
    assert lens.reference == tuple(reference)
    log_p = log_softmax(np.asarray(ji.decode(model, [*PROMPT, 3, *reference], states).logits))
    own = log_p[np.arange(4, 9), reference]
    np.testing.assert_allclose(lens.log_probs[-1], own, rtol=1e-9)


def test_where_nothing_is_heard_the_end_is_asked_for(model, mel):
    model.generation = ji.GenerationSettings(suppress=tuple(i for i in range(48) if i != 30))
    lens = ji.encoder_lens(model, mel, prompt=PROMPT, choice=ji.Choice(max_new_tokens=5))
    assert lens.texts == [""] * 3
    assert lens.reference == (30,)
    log_p = log_softmax(np.asarray(ji.decode(model, PROMPT, ji.encode(model, mel).states).logits))
    assert lens.log_probs[-1, 0] == pytest.approx(log_p[-1, 30])


def test_the_dataset_has_named_axes_and_errors(model, mel):
    written = tuple(
        ji.Generated(tuple(PROMPT), (5,) * (3 + i), (-1.0,) * (4 + i), True, 0.1, text)
        for i, text in enumerate([" no no no no no no no", "", " Cut the grass."])
    )
    lens = ji.EncoderLens(
        written, (4, 5), np.zeros((3, 2)), np.zeros((3, 2, 4), int), np.zeros((3, 2, 4)), False
    )
    dataset = lens.to_dataset()
    assert dict(dataset.sizes) == {"depth": 3, "pos": 2, "rank": 4}
    assert dataset.reference.dims == ("pos",)
    assert dataset.reference_log_prob.dims == ("depth", "pos")
    assert dataset.top_tokens.dims == dataset.top_log_probs.dims == ("depth", "pos", "rank")
    assert dataset.text.values.tolist() == ["no no no no no no no", "", "Cut the grass."]
    assert dataset.wer.values.tolist() == pytest.approx([7 / 3, 1, 0])
    assert dataset.loop.values.tolist() == [True, False, False]
    assert dataset.tokens.values.tolist() == [3, 4, 5]
    assert dataset.attrs["normed"] == 0
    right = lens.to_dataset("cut the long grass")
    assert right.wer.values.tolist() == pytest.approx([7 / 4, 1, 1 / 4])


def test_bad_input_is_named(model, mel):
    for options, message in (
        ({"top_k": 0}, "top_k is 0: expected 1 to 48"),
        ({"top_k": 49}, "top_k is 49"),
        ({"reference": []}, "no transcript to ask for"),
        ({"prompt": [99]}, "Token 99 is outside"),
    ):
        with pytest.raises(ji.InputError, match=message):
            ji.encoder_lens(model, mel, **options)
    with pytest.raises(ji.InputError, match="The spectrogram is"):
        ji.encoder_lens(model, mel[:, :20])


def first_difference(ours, theirs):
    """The step from which two sequences differ; `None` if they are the same."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return step
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def expect_torch(name, data, clip, raw=False):
    model = real_model(name)
    golden = json.loads((GOLDEN / f"encoder_lens_{name}.json").read_text())
    expected = golden["clips"][clip]["raw"] if raw else golden["clips"][clip]
    mel = ji.log_mel_spectrogram(ji.load_audio(data / clip), model.config.n_mels)
    choice = ji.Choice(max_new_tokens=golden["max_new_tokens"])
    lens = ji.encoder_lens(model, mel, norm=not raw, prompt=golden["prompt"], choice=choice)
    depths = zip(lens.generated, expected["tokens"], expected["close"], strict=True)
    for depth, (one, tokens, close) in enumerate(depths):
        ours = [*one.tokens, *([golden["end_of_text"]] if one.finished else [])]
        step = first_difference(ours, tokens)
        assert step is None or close.get(str(step), 1) < GAP, (name, clip, depth, step)
    return lens


@pytest.mark.real
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("clip", CLOSEST[:2])
def test_depths_equal_torch(data, clip):
    lens = expect_torch("base", data, clip)
    # What full depth wrote is what it finds most probable, and more so than any other depth.
    np.testing.assert_array_equal(lens.top_tokens[-1, 1:, 0], lens.reference[1:])
    assert lens.log_probs.mean(1).argmax() == len(lens.log_probs) - 1


@pytest.mark.corpus
@pytest.mark.real
@pytest.mark.parametrize("name", REAL_MODELS)
def test_all_depths_equal_torch(data, name):
    for clip in CLOSEST:
        expect_torch(name, data, clip)
    raw = [clip for clip in CLOSEST if "vctk" in clip]
    for clip in raw:
        expect_torch(name, data, clip, raw=True)


def test_an_encoder_run_is_read_as_its_spectrogram_is(model, mel):
    choice = ji.Choice(max_new_tokens=5)
    run = ji.encode(model, mel, sites=("resid_pre", "resid_post"))
    lens = ji.encoder_lens(model, run, choice=choice)
    expected = ji.encoder_lens(model, mel, choice=choice)
    assert lens.generated == expected.generated
    np.testing.assert_array_equal(lens.log_probs, expected.log_probs)
    with pytest.raises(ji.InputError, match="lacks a site"):
        ji.encoder_lens(model, ji.encode(model, mel, sites=("resid_mid",)), choice=choice)
