"""Mean activations against the mean written out."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.generation.means import mean_activations


def test_means_are_over_positions_and_runs(tiny, utterances):
    a, b = utterances
    a = ji.Utterance(a.mel, a.tokens, prompt=4, frames=8)
    b = ji.Utterance(b.mel, b.tokens[:6], prompt=4, frames=12)
    means = mean_activations(
        tiny,
        [a, b],
        stack="decoder",
        sites=["mlp_out", "cross_z", "cross_v", "cross_pattern"],
        n_tokens=9,
    )
    runs = []
    for one in (a, b):
        states = ji.encode(tiny, one.mel).states
        runs.append(ji.decode(tiny, one.tokens, states, sites="all").acts)
    for site in ("mlp_out", "cross_z"):
        values = [np.asarray(getattr(acts, site)) for acts in runs]
        mean = np.asarray(getattr(means, site))
        assert mean.shape[1] == 9
        np.testing.assert_allclose(mean[:, 2], (values[0][:, 2] + values[1][:, 2]) / 2)
        text = np.concatenate([values[0][:, 4:7], values[1][:, 4:6]], axis=1).mean(1)
        for pos in (4, 8):
            np.testing.assert_allclose(mean[:, pos], text)
    sound = np.concatenate([np.asarray(runs[0].cross_v)[:, :8], runs[1].cross_v], axis=1).mean(1)
    np.testing.assert_allclose(means.cross_v[:, 11], sound)
    np.testing.assert_allclose(np.asarray(means.cross_pattern).sum(-1), 1)
    assert means.cross_pattern.shape == (3, 2, 9, 12)


def test_the_mean_of_the_encoder_is_over_what_is_heard(tiny, utterances):
    a, _ = utterances
    heard = ji.Utterance(a.mel, a.tokens, prompt=4, frames=5)
    means = mean_activations(tiny, [heard], stack="encoder", sites=["attn_out"], n_tokens=7)
    acts = ji.encode(tiny, a.mel, sites=["attn_out"]).acts
    np.testing.assert_allclose(means.attn_out[:, 9], acts.attn_out[:, :5].mean(1))


def test_what_has_no_mean_is_refused(tiny, utterances):
    a, _ = utterances
    options = {"stack": "decoder", "n_tokens": 7}
    with pytest.raises(ji.InputError, match="no runs"):
        mean_activations(tiny, [], sites=["z"], **options)
    with pytest.raises(ji.InputError, match="'pattern' is none"):
        mean_activations(tiny, [a], sites=["pattern"], **options)
    empty = ji.Utterance(a.mel, jnp.asarray(a.tokens[:4]), prompt=4)
    with pytest.raises(ji.InputError, match="no text"):
        mean_activations(tiny, [empty], sites=["z"], **options)
