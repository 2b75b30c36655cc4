"""Attribution patching against derivatives of patched runs, and its agreement with exact sweeps."""

import dataclasses
import functools
import re
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.patches import OneOf, random_edits
from helpers.real import real_model
from helpers.sweeps import counted, plan_of
from jaxasr_interp.model.sites import SITES, head_axis, sweepable_sites
from jaxasr_interp.patching import attribution
from jaxasr_interp.patching.contrast import find_contrast
from jaxasr_interp.pytree import pytree_dataclass, static

STEP = 1e-4
MOST_CELLS = 324
HEADS = {"site": "cross_z", "heads": "each"}


def in_layers(stack):
    return [site for site in sweepable_sites(stack) if SITES[stack][site][0] == "layer"]


GROUPS = {
    "decoder": [site for site in in_layers("decoder") if site not in ("cross_k", "cross_v")],
    "decoder cross-attention": ["cross_k", "cross_v"],
    "decoder stem": ["embed", "pos_embed"],
    "encoder": in_layers("encoder"),
    "encoder ends": ["conv2_out", "pos_embed", "ln_final"],
}


@pytree_dataclass
class AnySite:
    """A patch at the site of that number: which one is data, so one program tests all."""

    edit: ji.Edit
    number: jax.Array
    cell: dict[str, jax.Array]
    alpha: jax.Array
    sites: tuple[str, ...] = static()

    def __call__(self, site, layer, value):
        if site not in self.sites:
            return value
        alpha = jnp.where(self.number == self.sites.index(site), self.alpha, 0.0)
        return ji.At(self.edit, alpha=alpha, site=site, **self.cell)(site, layer, value)


@functools.partial(jax.jit, static_argnames="stack")
def run_each(model, run, edit, metrics, numbers, cells, alphas, *, stack):
    """The metrics under each of some patches, each in a run of its own."""
    states = ji.encode(model, run.mel).states

    def metrics_of(number, cell, alpha):
        at, heard = AnySite(edit, number, cell, alpha, tuple(sweepable_sites(stack))), states
        if stack == "encoder":
            heard = ji.encode(model, run.mel, edit=at).states
        of_decoder = at if stack == "decoder" else ji.identity
        logits = ji.decode(model, run.tokens, heard, edit=of_decoder).logits
        rows = [logits[jnp.asarray(one.rows)] for one in metrics]
        return jnp.stack([one(x, x) for one, x in zip(metrics, rows, strict=True)])

    return jax.vmap(metrics_of)(numbers, cells, alphas)


@pytest.fixture
def metrics(golden):
    target, other = int(golden["t"]), int(golden["u"])
    return [
        ji.metrics.logit_diff(target, other),
        ji.metrics.log_prob(target, pos=4),
        ji.metrics.cross_entropy(golden["tokens_a"][4:], 3),
    ]


def sweep_both(model, utterances, metric, options, method="minimal", edit=None, **given):
    """The approximate sweep, and the exact one."""
    clean, corrupted = utterances
    plan = plan_of(model, tokens=corrupted.tokens, **options)
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric, "edit": edit}
    approximate, exact = ji.AttributionOptions(**given), ji.SweepOptions(method=method, **given)
    return (
        ji.attribution_patching(model, plan, **runs, options=approximate),
        ji.activation_patching(model, plan, **runs, options=exact),
    )


@pytest.mark.parametrize("group", GROUPS)
def test_every_effect_is_a_derivative_of_the_patched_run(tiny, utterances, metrics, group):
    clean, corrupted = utterances
    stack, sites = group.split()[0], GROUPS[group]
    plan = ji.plan_sweep(
        tiny,
        tokens=corrupted.tokens,
        stack=stack,
        site=sites,
        heads="each" if any(head_axis(site) is not None for site in sites) else None,
        positions=[(0, 2), (3, 6), (6, 7)],
        options=ji.PlanOptions(alpha=[1.0, -0.5]),
    )
    result = ji.attribution_patching(tiny, plan, clean=clean, corrupted=corrupted, metric=metrics)
    enc = ji.encode(tiny, clean.mel, sites="all")
    dec = ji.decode(tiny, clean.tokens, enc.states, sites="all")
    edit = ji.Interchange(enc.acts if stack == "encoder" else dec.acts)
    # All cells of strength 1, repeated up to the same number for every plan: one program.
    cells, half = plan.cells(), plan.size // 2
    chosen = np.resize(np.arange(half), MOST_CELLS)
    all_sites = sweepable_sites(stack)
    numbers = [all_sites.index(plan.components[i][0]) for i in cells["component"][chosen]]
    where = {name: jnp.asarray(cells[name][chosen]) for name in ("layer", "head", "start", "stop")}
    above, below = (
        run_each(
            tiny,
            corrupted,
            edit,
            tuple(metrics),
            jnp.asarray(numbers),
            where,
            jnp.full(MOST_CELLS, step),
            stack=stack,
        )
        for step in (STEP, -STEP)
    )
    expected = np.asarray((above - below) / (2 * STEP)).T[:, :half]
    effects = (result.patched.reshape(3, -1) - result.corrupted[:, None]).reshape(3, 2, -1)
    np.testing.assert_allclose(effects[:, 0], expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(effects[:, 1], -0.5 * expected, rtol=1e-5, atol=1e-8)
    by_component = np.abs(expected).reshape(3, len(plan.components), -1).max((0, 2))
    idle = [
        name for name, most in zip(plan.component_names, by_component, strict=True) if most < 1e-6
    ]
    assert idle in ([], ["pos_embed"]), "only position embeddings are alike in both runs"


def weak_effects(result):
    """From strengths of ±`STEP`, the derivative in the strength."""
    return (result.patched[:, 0] - result.patched[:, 1]) / (2 * STEP)


@pytest.mark.parametrize(("stack", "site"), [("decoder", "pattern"), ("encoder", "z")])
def test_every_kind_of_patch_is_the_limit_of_weak_exact_ones(
    tiny, utterances, metrics, stack, site
):
    kinds = random_edits(tiny, site, stack, utterances[0])
    options = {"stack": stack, "site": site, "heads": "each", "alpha": [STEP, -STEP], "window": 2}
    for number in range(len(kinds)):
        given = {
            "direction": ("clean_to_corrupted", "corrupted_to_clean")[number % 2],
            "edit": OneOf(kinds, jnp.asarray(number, jnp.int32)),
        }
        ours, exact = sweep_both(tiny, utterances, metrics, options, "reference", **given)
        np.testing.assert_array_equal(ours.clean, exact.clean)
        np.testing.assert_array_equal(ours.corrupted, exact.corrupted)
        np.testing.assert_allclose(weak_effects(ours), weak_effects(exact), rtol=1e-5, atol=1e-8)
        assert np.abs(weak_effects(exact)).max() > 1e-3, "nothing was tested"
    assert (ours.method, exact.method) == ("attribution", "exact")
    assert ours.to_dataset().attrs["method"] == "attribution"
    assert ours.recovered.shape == exact.recovered.shape


def test_runs_of_unequal_length_are_compared_through_the_alignment(tiny, utterances, metrics):
    clean, corrupted = utterances
    longer = ji.Utterance(clean.mel, jnp.concatenate([clean.tokens, clean.tokens[:2]]))
    options = HEADS | {"alpha": [STEP, -STEP]}
    given = {"alignment": [0, 1, 2, 4, 5, 7, 8]}
    ours, exact = sweep_both(tiny, (longer, corrupted), metrics, options, "reference", **given)
    np.testing.assert_allclose(weak_effects(ours), weak_effects(exact), rtol=1e-5, atol=1e-8)


def test_the_last_rows_effect_is_what_the_final_norm_and_unembedding_make_of_it(
    tiny, utterances, golden
):
    clean, corrupted = utterances
    target, other = int(golden["t"]), int(golden["u"])
    plan = ji.plan_sweep(
        tiny, tokens=corrupted.tokens, site="resid_post", layers=[-1], positions=[-1]
    )
    metric = ji.metrics.logit_diff(target, other)
    ours = ji.attribution_patching(tiny, plan, clean=clean, corrupted=corrupted, metric=metric)
    here, there = (
        np.asarray(ji.decode(tiny, run.tokens, ji.encode(tiny, run.mel).states).acts.resid_post)
        for run in (corrupted, clean)
    )
    x, change = here[-1, -1], there[-1, -1] - here[-1, -1]
    std = np.sqrt(x.var() + 1e-5)
    normed = (x - x.mean()) / std
    moved = (change - change.mean() - normed * (normed * change).mean()) / std
    embed = np.asarray(tiny.decoder.embed[...])
    expected = (
        moved * np.asarray(tiny.decoder.final_norm.scale[...]) @ (embed[target] - embed[other])
    )
    assert ours.patched.item() - ours.corrupted.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("stack", "site", "size"), [("decoder", "cross_z", 7), ("encoder", "z", 12)]
)
def test_integrated_effects_of_all_positions_and_heads_add_up(
    tiny, utterances, metrics, stack, site, size
):
    clean, corrupted = utterances
    runs = {"clean": clean, "corrupted": corrupted, "metric": metrics}
    where = {"tokens": corrupted.tokens, "stack": stack, "site": site}
    plan = ji.plan_sweep(tiny, heads="each", **where, options=ji.PlanOptions(window=1))
    before, done = attribution.slopes_of._cache_size(), []
    ours = ji.attribution_patching(
        tiny, plan, **runs, on_progress=counted(done), options=ji.AttributionOptions(steps=50)
    )
    assert attribution.slopes_of._cache_size() == before + 1
    assert (len(done), done[-1]) == (len(plan.layers), plan.runs)
    assert ours.method == "integrated gradients, 50 steps"
    whole = ji.plan_sweep(tiny, positions=[(0, size)], **where)
    exact = ji.activation_patching(tiny, whole, **runs).patched[..., 0] - ours.corrupted[:, None]
    total = (ours.patched - ours.corrupted[:, None, None, None]).sum((1, 3))
    assert np.abs(total - exact).max() < 1e-3 * np.abs(exact).max()


def test_only_the_chosen_cells_are_filled(tiny, utterances, metrics):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, **HEADS)
    runs = {"clean": clean, "corrupted": corrupted, "metric": metrics}
    chosen = np.array([3, 25, 8, 40])
    for steps in (1, 2):
        whole, some = (
            ji.attribution_patching(
                tiny, one, **runs, options=ji.AttributionOptions(steps=steps)
            ).patched.reshape(3, -1)
            for one in (plan, plan.select(chosen))
        )
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(some[0])), np.sort(chosen))
        np.testing.assert_array_equal(some[:, chosen], whole[:, chosen])


def test_the_memory_budget_decides_how_many_steps_run_at_once(tiny, utterances, metrics):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, **HEADS)
    runs = {"clean": clean, "corrupted": corrupted, "metric": metrics}
    with pytest.raises(ji.InputError, match="too small: the runs and one backward pass") as error:
        ji.attribution_patching(tiny, dataclasses.replace(plan, memory=1), **runs)
    least = dataclasses.replace(plan, memory=int(re.search(r"take (\d+)", str(error.value))[1]))
    ample, tight = (
        ji.attribution_patching(tiny, one, **runs, options=ji.AttributionOptions(steps=2)).patched
        for one in (plan, least)
    )
    np.testing.assert_allclose(ample, tight, rtol=1e-12)


def test_the_largest_effects_are_verified_exactly(tiny, utterances, metrics):
    clean, corrupted = utterances
    ours, exact = sweep_both(tiny, utterances, metrics, HEADS)
    runs = {"clean": clean, "corrupted": corrupted, "metric": metrics}
    checked = ji.verify_top(tiny, ours, 9, **runs)
    effects = np.abs(ours.patched[0] - ours.corrupted[0]).reshape(-1)
    largest = np.sort(np.argsort(-effects)[:9])
    rows = [result.patched.reshape(3, -1) for result in (checked, exact)]
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(rows[0][0])), largest)
    np.testing.assert_allclose(rows[0][:, largest], rows[1][:, largest], rtol=1e-12)
    assert checked.method == "exact"
    few = ji.agreement(checked, ours, top=3)
    assert (few.cells, few.top) == (9, 3)
    with pytest.raises(ji.InputError, match="cells to verify is 0"):
        ji.verify_top(tiny, ours, 0, **runs)


def by_hand(plan, effects, metrics=("kl",), **fields):
    base = np.array([10.0])
    patched = base[:, None] + np.array([effects])
    return ji.SweepResult(plan, metrics, patched[:, None], np.array([3.0]), base, **fields)


def test_agreement_of_a_case_worked_by_hand(tiny, golden):
    plan = ji.plan_sweep(tiny, tokens=golden["tokens_a"], layers=[0], positions=[0, 1, 2, 3, 4])
    # Ranks 4, 2½, 2½, 1, 0 and 3½, 3½, 2, 1, 0; the largest two are cells 0 and 4, and 0 and 1.
    exact = by_hand(plan, [3.0, 1.0, 1.0, 1e-15, -5.0])
    approximate = by_hand(plan, [2.0, 2.0, 1.0, 0.0, -1.0])
    result = ji.agreement(exact, approximate, top=2)
    assert result.rank_correlation[0] == pytest.approx(8.75 / 9.5)
    assert result.overlap[0] == 0.5
    assert str(result) == (
        "kl: rank correlation 0.921 over 5 cells, 1 of the 2 largest effects found"
    )
    assert ji.agreement(exact, exact).rank_correlation[0] == pytest.approx(1)
    assert ji.agreement(exact, exact).top == 5
    nothing = by_hand(plan, [1e-15, 0.0, -1e-15, 0.0, 0.0])
    assert np.isnan(ji.agreement(exact, nothing).rank_correlation[0])
    for other, options, message in (
        (by_hand(plan, [0.0] * 5, direction="corrupted_to_clean"), {}, "different cells"),
        (by_hand(dataclasses.replace(plan, alphas=(0.5,)), [0.0] * 5), {}, "different cells"),
        (by_hand(plan, [0.0] * 5, ("entropy",)), {}, "same metrics"),
        (by_hand(plan, [np.nan] * 4 + [1.0]), {}, "share 1 cells"),
        (exact, {"top": 0}, "largest effects is 0"),
    ):
        with pytest.raises(ji.InputError, match=message):
            ji.agreement(exact, other, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": ji.AttributionOptions(steps=0)}, "number of steps is 0"),
        ({"metric": [ji.metrics.kl(), ji.metrics.rank(3)]}, "rank counts tokens"),
        ({"metric": []}, "no metric"),
        ({"options": ji.AttributionOptions(direction="sideways")}, "Unknown direction"),
        ({"options": ji.AttributionOptions(alignment=[0])}, "alignment"),
    ],
)
def test_impossible_requests_are_named_in_one_sentence(tiny, utterances, options, message):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens)
    runs = {"clean": clean, "corrupted": corrupted, "metric": ji.metrics.kl()}
    with pytest.raises(ji.InputError, match=message):
        ji.attribution_patching(tiny, plan, **(runs | options))


@pytest.mark.real
def test_attribution_finds_what_matters_in_real_speech():
    model = real_model("tiny.en")
    folder = resources.files("jaxasr_interp") / "data"
    contrast = find_contrast(
        model, *(ji.load_audio(folder / f"{word}.flac") for word in ("grass", "glass"))
    )
    metric = ji.metrics.logit_diff(contrast.target, contrast.other)
    ours, exact = sweep_both(model, (contrast.clean, contrast.corrupted), metric, HEADS)
    result = ji.agreement(exact, ours)
    print(f"tiny.en cross_z: {result}")
    assert result.rank_correlation[0] > 0.9
    assert result.overlap[0] >= 0.7
