"""The logit lens against torch and numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji


@pytest.fixture
def run(tiny, golden):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states
    return ji.decode(tiny, golden["tokens_a"], states)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_the_lens_equals_torch(tiny, run, golden):
    targets = [*golden["tokens_a"][1:].tolist(), 3]
    lens = ji.logit_lens(tiny, run, targets=targets, top_k=4)
    log_p = log_softmax(golden["lens/logits"])
    order = np.argsort(-log_p, axis=-1)
    np.testing.assert_array_equal(lens.top_tokens, order[..., :4])
    np.testing.assert_allclose(
        lens.top_log_probs, np.take_along_axis(log_p, order[..., :4], -1), rtol=1e-10
    )
    own = np.take_along_axis(log_p, np.asarray(targets)[None, :, None], -1)[..., 0]
    np.testing.assert_allclose(lens.target_log_prob, own, rtol=1e-10)
    np.testing.assert_array_equal(lens.target_rank, (log_p > own[..., None]).sum(-1))
    np.testing.assert_allclose(lens.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-10)
    kl = (np.exp(log_p[-1]) * (log_p[-1] - log_p)).sum(-1)
    np.testing.assert_allclose(lens.kl, kl, rtol=1e-9, atol=1e-13)


def test_the_last_layer_is_the_models_output(tiny, run):
    lens = ji.logit_lens(tiny, run)
    np.testing.assert_array_equal(lens.targets, run.logits.argmax(-1))
    log_p = log_softmax(np.asarray(run.logits))
    np.testing.assert_allclose(lens.target_log_prob[-1], log_p.max(-1), rtol=1e-12)
    np.testing.assert_array_equal(lens.target_rank[-1], 0)
    np.testing.assert_allclose(lens.kl[-1], 0, atol=1e-13)


def test_the_saturation_layer_is_where_the_top_token_stays(tiny, run):
    lens = ji.logit_lens(tiny, run)
    top = np.asarray(lens.top_tokens)[:, :, 0]
    for pos, saturated in enumerate(np.asarray(lens.saturation_layer)):
        assert (top[saturated:, pos] == top[-1, pos]).all()
        assert saturated == 0 or top[saturated - 1, pos] != top[-1, pos]


def test_the_dataset_has_named_axes(tiny, run):
    dataset = ji.logit_lens(tiny, run, top_k=3).to_dataset()
    assert dict(dataset.sizes) == {"layer": 3, "pos": 7, "top": 3}
    assert dataset.kl.dims == ("layer", "pos")
    assert dataset.saturation_layer.dims == ("pos",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [1, 2]}, "targets for 7 positions"),
        ({"targets": [48] * 7}, "outside the vocabulary"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 49}, "top_k is 49"),
        ({"implementation": "abacus"}, "No lens kernel 'abacus'"),
    ],
)
def test_bad_requests_are_named_in_one_sentence(tiny, run, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.logit_lens(tiny, run, **options)


def test_a_run_without_residuals_is_refused(tiny, golden):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states
    run = ji.decode(tiny, golden["tokens_a"], states, sites="q")
    with pytest.raises(ji.InputError, match="lacks resid_post"):
        ji.logit_lens(tiny, run)
