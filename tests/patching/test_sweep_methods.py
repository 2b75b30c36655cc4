"""The minimal sweep equals one plain run for each patch: every site, every kind of patch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxasr_interp as ji
from helpers.patches import OneOf, random_edits
from jaxasr_interp.model.sites import SITES, head_axis, sweepable_sites

# With few kinds of edits, `test_verify` compares all sites.
WITH_ALL_KINDS = {
    "encoder": ("conv2_out", "resid_pre", "v", "pattern", "z", "mlp_out", "ln_final"),
    "decoder": ("embed", "resid_pre", "k", "pattern", "result", "cross_q", "cross_k", "cross_v"),
}
CELLS = [
    pytest.param(stack, site, marks=() if site in chosen else pytest.mark.slow)
    for stack, chosen in WITH_ALL_KINDS.items()
    for site in sweepable_sites(stack)
]
MOST = 1e-9


def mean_square(logits):
    return jnp.square(logits).mean()


@pytest.fixture
def metrics(golden):
    target, other = int(golden["t"]), int(golden["u"])
    return [
        ji.metrics.log_prob(target),
        ji.metrics.logit_diff(target, other),
        ji.metrics.rank(target, pos=4),
        ji.metrics.entropy(3),
        ji.metrics.kl(None),
        ji.metrics.cross_entropy(golden["tokens_a"][4:], 3),
        ji.metrics.custom(mean_square, "size"),
    ]


def random_plan(rng, model, tokens, stack, site):
    """Some layers, heads and strengths, and windows of several widths.

    The windows are always the same: all sites of a stack then share the engine's programs.
    """
    frames = stack == "encoder" or site in ("cross_k", "cross_v")
    n_heads = {"encoder": 4, "decoder": 2}[stack]
    n_layers = {"encoder": 2, "decoder": 3}[stack]
    layers = sorted(rng.choice(n_layers, 2, replace=False).tolist())
    by_head = head_axis(site) is not None and rng.random() < 0.6
    return ji.plan_sweep(
        model,
        tokens=tokens,
        stack=stack,
        site=site,
        layers=layers if SITES[stack][site][0] == "layer" else None,
        heads=[int(rng.integers(n_heads))] if by_head else None,
        positions=[(0, 3), (4, 9), (11, 12)] if frames else [(1, 2), (3, 7), (5, 6)],
        options=ji.PlanOptions(alpha=[1.0, float(rng.uniform(-0.5, 1.5))]),
    )


@pytest.mark.parametrize(("stack", "site"), CELLS)
def test_minimal_equals_one_run_per_patch(tiny, utterances, metrics, stack, site):
    clean, corrupted = utterances
    kinds = random_edits(tiny, site, stack, clean)
    rng = np.random.default_rng(len(site) * 31 + len(stack))
    plan = random_plan(rng, tiny, corrupted.tokens, stack, site)
    moved = []
    for number in range(len(kinds)):
        edit = OneOf(kinds, jnp.asarray(number, jnp.int32))
        direction = ("clean_to_corrupted", "corrupted_to_clean")[number % 2]
        minimal, reference = (
            ji.activation_patching(
                tiny,
                plan,
                clean=clean,
                corrupted=corrupted,
                metric=metrics,
                edit=edit,
                options=ji.SweepOptions(direction=direction, method=method),
            )
            for method in ("minimal", "reference")
        )
        np.testing.assert_allclose(minimal.patched, reference.patched, rtol=MOST, atol=MOST)
        base = reference.corrupted if number % 2 == 0 else reference.clean
        moved.append(np.abs(reference.patched[4].reshape(-1) - base[4]).max())
    assert max(moved) > 1e-3, "no patch changed anything: nothing was tested"


@pytest.mark.parametrize(
    ("stack", "site"),
    [("decoder", "resid_pre"), ("decoder", "cross_z"), ("encoder", "k"), ("encoder", "ln_final")],
)
def test_vmap_equals_one_run_per_patch(tiny, utterances, metrics, stack, site):
    clean, corrupted = utterances
    plan = random_plan(np.random.default_rng(5), tiny, corrupted.tokens, stack, site)
    batched, looped = (
        ji.activation_patching(
            tiny,
            plan,
            clean=clean,
            corrupted=corrupted,
            metric=metrics,
            options=ji.SweepOptions(method=method),
        )
        for method in ("vmap", "reference")
    )
    np.testing.assert_allclose(batched.patched, looped.patched, rtol=MOST, atol=MOST)


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_random_plans_of_several_sites(tiny, utterances, metrics, seed):
    """Whole sites and heads, windows that overlap, strengths of 0 and below, some cells only."""
    clean, corrupted = utterances
    rng = np.random.default_rng(seed)
    sites = rng.choice(["resid_pre", "v", "cross_z", "mlp_out", "pattern", "q"], 3, replace=False)
    plan = ji.plan_sweep(
        tiny,
        tokens=corrupted.tokens,
        site=sites.tolist(),
        heads=[1] if set(sites) - {"resid_pre", "mlp_out"} else None,
        positions=[(0, 7), (2, 5), (3, 4), -1],
        options=ji.PlanOptions(alpha=[0.0, 1.0, -0.7]),
    )
    plan = plan.select(rng.choice(plan.size, 40, replace=False))
    minimal, reference = (
        ji.activation_patching(
            tiny,
            plan,
            clean=clean,
            corrupted=corrupted,
            metric=metrics,
            options=ji.SweepOptions(method=method),
        )
        for method in ("minimal", "reference")
    )
    np.testing.assert_allclose(minimal.patched, reference.patched, rtol=MOST, atol=MOST)
    done = np.isfinite(minimal.patched).reshape(len(metrics), -1)
    np.testing.assert_array_equal(np.flatnonzero(done[0]), np.sort(plan.only))


@pytest.mark.parametrize("n_tokens", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_layer_and_hardly_any_token(x64, n_tokens):
    config = ji.WhisperConfig(
        n_mels=4, d_vocab=20, d_model=12, encoder_layers=1, decoder_layers=1, encoder_heads=3,
        decoder_heads=2, encoder_d_mlp=10, decoder_d_mlp=14, max_frames=9, max_tokens=5,
    )  # fmt: skip
    model = jax.tree.map(lambda x: x.astype(jnp.float64), ji.Whisper(config, rngs=nnx.Rngs(1)))
    rng = np.random.default_rng(0)
    runs = [
        ji.Utterance(
            jnp.asarray(rng.normal(size=(4, 18))),
            jnp.asarray(rng.integers(0, 20, n_tokens), jnp.int32),
        )
        for _ in range(2)
    ]
    for options in (
        {"site": ["resid_pre", "k", "resid_post"]},
        {"site": "cross_v", "positions": [(2, 6)]},
        {"stack": "encoder", "site": ["q", "resid_post"], "positions": [(2, 6)]},
        {"stack": "encoder", "site": "ln_final", "positions": [(0, 9), (8, 9)]},
    ):
        plan = ji.plan_sweep(model, tokens=runs[0].tokens, **options)
        minimal, reference = (
            ji.activation_patching(
                model,
                plan,
                clean=runs[0],
                corrupted=runs[1],
                metric=[ji.metrics.kl(None), ji.metrics.log_prob(3)],
                options=ji.SweepOptions(method=method),
            )
            for method in ("minimal", "reference")
        )
        np.testing.assert_allclose(minimal.patched, reference.patched, rtol=MOST, atol=MOST)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_all_positions_of_layer_0_give_the_other_run(tiny, utterances, metrics, stack):
    clean, corrupted = utterances
    corrupted = ji.Utterance(corrupted.mel, clean.tokens)
    if stack == "decoder":
        corrupted = ji.Utterance(clean.mel, utterances[1].tokens)
    plan = ji.plan_sweep(tiny, tokens=clean.tokens, stack=stack, layers=[0], positions="all")
    result = ji.activation_patching(
        tiny, plan, clean=clean, corrupted=corrupted, metric=metrics[:2]
    )
    np.testing.assert_allclose(result.patched.reshape(2), result.clean, rtol=1e-10)
    assert np.abs(result.clean - result.corrupted).min() > 1e-4


def test_several_pairs_equal_each_alone(tiny, utterances, metrics):
    a, b = utterances
    c = ji.Utterance(a.mel, b.tokens)
    pairs = {"clean": [a, b, c], "corrupted": [b, a, a]}
    wanted = [[ji.metrics.log_prob(token), ji.metrics.kl()] for token in (3, 9, 21)]
    for options in (
        {"site": ["resid_pre", "cross_result"], "heads": "each"},
        {"stack": "encoder", "site": "z", "positions": [(3, 8)]},
        {"stack": "encoder", "site": "ln_final", "positions": [(3, 8)]},
    ):
        plan = ji.plan_sweep(tiny, tokens=a.tokens, **options)
        together = ji.activation_patching_batch(tiny, plan, metric=wanted, **pairs)
        for i, result in list(enumerate(together))[1:]:
            alone = ji.activation_patching(
                tiny,
                plan,
                clean=pairs["clean"][i],
                corrupted=pairs["corrupted"][i],
                metric=wanted[i],
            )
            np.testing.assert_allclose(result.patched, alone.patched, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(result.clean, alone.clean, rtol=1e-10, atol=1e-12)


def test_an_alignment_says_which_position_is_which(tiny, utterances):
    clean, corrupted = utterances
    longer = ji.Utterance(clean.mel, jnp.concatenate([clean.tokens[:3], clean.tokens]))
    alignment = [0, 1, 2, 6, 7, 8, 9]
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site=["resid_mid", "cross_pattern"])
    runs = {"clean": longer, "corrupted": corrupted}
    wanted = [ji.metrics.kl(None), ji.metrics.log_prob(3)]
    minimal, looped = (
        ji.activation_patching(
            tiny,
            plan,
            metric=wanted,
            **runs,
            options=ji.SweepOptions(method=method, alignment=alignment),
        )
        for method in ("minimal", "reference")
    )
    np.testing.assert_allclose(minimal.patched, looped.patched, rtol=MOST, atol=MOST)
    states = ji.encode(tiny, clean.mel).states
    acts = ji.decode(tiny, longer.tokens, states, sites=["resid_mid"]).acts
    moved = ji.DecoderActivations(resid_mid=acts.resid_mid[:, jnp.asarray(alignment)])
    edit = ji.At(ji.Interchange(moved), 1, 5, 6, site="resid_mid")
    own = ji.encode(tiny, corrupted.mel).states
    logits = ji.decode(tiny, corrupted.tokens, own, edit=edit).logits[-1]
    expected = logits[3] - jax.nn.logsumexp(logits)
    np.testing.assert_allclose(minimal.patched[1, 0, 1, 5], expected, rtol=1e-10)
    for wrong in ([0, 1], [0, 1, 2, 6, 7, 8, 10]):
        options = ji.SweepOptions(alignment=wrong)
        with pytest.raises(ji.InputError, match="alignment"):
            ji.activation_patching(tiny, plan, metric=wanted, **runs, options=options)
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site="pattern")
    options = ji.SweepOptions(alignment=alignment)
    with pytest.raises(ji.InputError, match="different length cannot be interchanged"):
        ji.activation_patching(tiny, plan, metric=wanted, **runs, options=options)


def test_a_knocked_out_query_without_other_keys_attends_to_nothing(tiny, utterances):
    clean, _ = utterances
    edit = ji.At(ji.Knockout(0, 3), layer=0, start=0, stop=7, site="pattern")
    states = ji.encode(tiny, clean.mel).states
    pattern = ji.decode(tiny, clean.tokens, states, edit=edit, sites=["pattern"]).acts.pattern[0]
    np.testing.assert_array_equal(pattern[:, :, :3], 0)
    np.testing.assert_array_equal(pattern[:, :3], 0)
    np.testing.assert_allclose(pattern[:, 3:].sum(-1), 1, rtol=1e-12)


def test_knocking_out_equals_masking_the_scores(tiny, utterances, golden):
    clean, _ = utterances
    states = ji.encode(tiny, clean.mel).states

    def mask(site, layer, value):
        if site != "attn_scores":
            return value
        hidden = jnp.zeros(value.shape, bool).at[:, 4:, 1:3].set(True)
        return jnp.where(hidden & (layer == 1), -jnp.inf, value)

    edit = ji.At(ji.Knockout(1, 3), layer=1, start=4, stop=7, site="pattern")
    masked, knocked = (ji.decode(tiny, clean.tokens, states, edit=e).logits for e in (mask, edit))
    np.testing.assert_allclose(knocked, masked, rtol=1e-10)
