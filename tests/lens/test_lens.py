"""The logit lens and direct logit attribution against torch and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.lens.direct import DIRECT_SITES
from jaxasr_interp.lens.logit import LENS_SITES

SITES = {*DIRECT_SITES, *LENS_SITES, "ln_final"}


@pytest.fixture
def run(tiny, golden):
    return decode(tiny, golden)


def decode(tiny, golden, **options):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states
    return ji.decode(tiny, golden["tokens_a"], states, **({"sites": SITES} | options))


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def weights(tiny):
    """Scale and bias of the final LayerNorm, and the unembedding."""
    norm = tiny.decoder.final_norm
    return (np.asarray(x[...]) for x in (norm.scale, norm.bias, tiny.decoder.embed))


def centred(x):
    return x - x.mean(-1, keepdims=True)


def deviation(x):
    return np.sqrt(x.var(-1, keepdims=True) + 1e-5)


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


@pytest.mark.parametrize("site", LENS_SITES)
def test_every_site_is_read_by_the_final_norm_and_the_unembedding(tiny, run, golden, site):
    scale, bias, embed = weights(tiny)
    states = golden[f"decoder/{site}"]
    if site.endswith("result"):
        states = states.swapaxes(1, 2)
    log_p = log_softmax((centred(states) / deviation(states) * scale + bias) @ embed.T)
    final = log_softmax(golden["decoder/logits"])
    lens = ji.logit_lens(tiny, run, site=site, top_k=3)
    order = np.argsort(-log_p, axis=-1)[..., :3]
    np.testing.assert_array_equal(lens.top_tokens, order)
    np.testing.assert_allclose(
        lens.top_log_probs, np.take_along_axis(log_p, order, -1), rtol=1e-8, atol=1e-10
    )
    own = log_p[..., np.arange(7), final.argmax(-1)]
    np.testing.assert_allclose(lens.target_log_prob, own, rtol=1e-8, atol=1e-10)
    kl = (np.exp(final) * (final - log_p)).sum(-1)
    np.testing.assert_allclose(lens.kl, kl, rtol=1e-8, atol=1e-10)
    dataset = lens.to_dataset()
    assert dataset.entropy.dims == lens.axes
    assert dataset.entropy.shape == log_p.shape[:-1]
    assert ("saturation_layer" in dataset) == ("resid" in site)


def test_the_last_layer_is_the_models_output(tiny, run):
    lens = ji.logit_lens(tiny, run)
    np.testing.assert_array_equal(lens.targets, run.logits.argmax(-1))
    log_p = log_softmax(np.asarray(run.logits))
    np.testing.assert_allclose(lens.target_log_prob[-1], log_p.max(-1), rtol=1e-12)
    np.testing.assert_array_equal(lens.target_rank[-1], 0)
    np.testing.assert_allclose(lens.kl[-1], 0, atol=1e-13)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_the_saturation_layer_is_where_the_top_token_stays(tiny, run, site):
    lens = ji.logit_lens(tiny, run, site=site)
    said = np.asarray(run.logits).argmax(-1)
    top = np.asarray(lens.top_tokens)[:, :, 0]
    for pos, saturated in enumerate(np.asarray(lens.saturation_layer)):
        assert (top[saturated:, pos] == said[pos]).all()
        assert saturated == 0 or top[saturated - 1, pos] != said[pos]
    assert (np.asarray(lens.saturation_layer) == 3).any() == (site == "resid_pre")


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
        ({"targets": np.full(7, 0.5)}, "targets are float64: expected tokens"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 49}, "top_k is 49"),
        ({"implementation": "abacus"}, "No lens kernel 'abacus'"),
        ({"site": "cross_q"}, "No lens can read 'cross_q': choose one of embed, resid_pre"),
    ],
)
def test_bad_requests_are_named_in_one_sentence(tiny, run, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.logit_lens(tiny, run, **options)


def test_a_run_without_residuals_is_refused(tiny, golden):
    run = decode(tiny, golden, sites="result")
    with pytest.raises(ji.InputError, match="lacks resid_post: decode with sites"):
        ji.logit_lens(tiny, run, site="result")
    with pytest.raises(ji.InputError, match="lacks embed"):
        ji.direct_logit_attribution(tiny, run, [0] * 7)


@pytest.mark.parametrize("against", [False, True])
def test_contributions_are_those_of_each_component_and_add_up(tiny, run, golden, against):
    targets, others = np.array([3, 41, 7, 12, 0, 21, 47]), np.array([1, 2, 3, 5, 8, 13, 21])
    found = ji.direct_logit_attribution(tiny, run, targets, others if against else None)
    scale, bias, embed = weights(tiny)
    token = embed[targets] - (embed[others] if against else 0)
    scales = deviation(golden["decoder/resid_post"][-1])

    def share(component):
        return (centred(component) / scales * scale * token).sum(-1)

    exact = {"rtol": 1e-9, "atol": 1e-11}
    for site in ("embed", "pos_embed", "mlp_out"):
        of_site = golden[f"decoder/{site}"][..., :7, :]
        np.testing.assert_allclose(getattr(found, site), share(of_site), **exact)
    for prefix, heads, of_bias in (
        ("", found.attn_heads, found.attn_bias),
        ("cross_", found.cross_attn_heads, found.cross_attn_bias),
    ):
        result = golden[f"decoder/{prefix}result"].swapaxes(1, 2)
        np.testing.assert_allclose(heads, share(result), **exact)
        attn_out = golden[f"decoder/{prefix}attn_out"]
        np.testing.assert_allclose(heads.sum(1) + of_bias, share(attn_out), **exact)
    np.testing.assert_allclose(found.norm_bias, token @ bias, **exact)
    logits = golden["decoder/logits"][np.arange(7), targets]
    if against:
        logits = logits - golden["decoder/logits"][np.arange(7), others]
    np.testing.assert_allclose(found.logit, logits, **exact)
    np.testing.assert_allclose(sum(found.by_component().values()), logits, rtol=0, atol=1e-10)
    dataset = found.to_dataset()
    assert ("others" in dataset) == against
    assert dataset.cross_attn_heads.dims == ("layer", "head", "pos")
    np.testing.assert_allclose(dataset.contribution.sum("component"), logits, rtol=0, atol=1e-10)
    assert dataset.component.values[[0, 3, -1]].tolist() == [
        "embed",
        "cross_attn_out 0",
        "norm_bias",
    ]


def test_a_batch_of_runs_is_mapped(tiny, run):
    runs = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), run)
    targets = jnp.asarray([[3, 41, 7, 12, 0, 21, 47], [1, 2, 3, 5, 8, 13, 21]])

    @jax.vmap
    def both(run, targets):
        parts = ji.direct_logit_attribution(tiny, run, targets)
        return ji.logit_lens(tiny, run, targets=targets), parts

    of_batch = jax.tree.map(lambda x: x[1], both(runs, targets))
    one = jax.tree.map(lambda x: x[1], runs)
    alone = (
        ji.logit_lens(tiny, one, targets=targets[1]),
        ji.direct_logit_attribution(tiny, one, targets[1]),
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11), of_batch, alone
    )


@pytest.mark.parametrize(("site", "explained"), [("z", True), ("resid_mid", False)])
def test_what_an_edit_writes_past_the_components_is_left_unexplained(tiny, golden, site, explained):
    def edit(at, layer, value):
        return value * 2 if at == site else value

    run = decode(tiny, golden, edit=edit)
    assert np.abs(run.logits - golden["decoder/logits"]).max() > 0.1
    found = ji.direct_logit_attribution(tiny, run, [3] * 7)
    assert (np.abs(found.unexplained).max() < 1e-10) == explained
