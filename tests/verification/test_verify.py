"""The table of invariants holds here, and each row fails once the engine breaks what it says."""

import dataclasses
import math
from importlib import resources

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import jaxasr_interp as ji
from helpers.real import real_model
from jaxasr_interp.model import layers
from jaxasr_interp.model.sites import SITES, sweepable_sites
from jaxasr_interp.patching import methods, prepared
from jaxasr_interp.patching.contrast import find_contrast
from jaxasr_interp.patching.engine import inject as injecting
from jaxasr_interp.verification import invariants, verify
from jaxasr_interp.verification import sites as site_invariants
from jaxasr_interp.verification.invariants import Check

SOME_SITES = {
    "encoder": ["conv2_out", "v", "ln_final"],
    "decoder": ["embed", "resid_pre", "cross_z", "cross_k"],
}


def failing(checks) -> set[str]:
    return {check.name for check in checks if not check.passed}


def printed(checks) -> str:
    console = Console(width=160, record=True)
    console.print(verify.verify_table(checks))
    return console.export_text()


@pytest.fixture
def case(tiny, utterances):
    return verify.make_case(tiny, *utterances, cells=3)


@pytest.fixture
def broken(monkeypatch):
    """Break the engine: programs that were compiled before or are used after do not know of it."""

    def replace(module, name, make):
        jax.clear_caches()
        monkeypatch.setattr(module, name, make(getattr(module, name)))

    yield replace
    jax.clear_caches()


@pytest.mark.real
def test_text_becomes_the_tokens_that_the_model_writes(monkeypatch):
    tokenizer = real_model("base").tokenizer
    written = [*tokenizer.prompt(), *tokenizer.encode(" the talk"), *tokenizer.encode("in"), 50364]
    text, merges = verify.text_to_tokens(tokenizer, written)
    assert text.compares == "the transcript encoded again: 2 of 3 tokens differ"
    assert (text.error, text.passed) == (2 / 3, True)
    assert merges.compares == "50000 merges are those of the ids, 1 put back"
    assert (merges.error, merges.bound, merges.passed) == (0, 0, True)
    other = dataclasses.replace(tokenizer.merges, state="other")
    monkeypatch.setattr(ji.Tokenizer, "merges", other)
    _, merges = verify.text_to_tokens(tokenizer, written)
    assert "another build" in merges.compares
    assert (merges.error, merges.passed) == (1, True)


@pytest.mark.slow
def test_everything_holds_at_float64(tiny, utterances, monkeypatch):
    monkeypatch.setattr(site_invariants, "sweepable_sites", SOME_SITES.get)
    steps = []
    checks = verify.verify(tiny, *utterances, on_progress=lambda *step: steps.append(step))
    assert not failing(checks)
    assert max(check.error for check in checks if check.bound is not None) < 1e-9
    assert [done for done, _, _ in steps] == list(range(steps[0][1] + 1))
    for stack, sites in SOME_SITES.items():
        compared = [c.compares for c in checks if c.name == f"minimal = reference, {stack}"]
        kinds = ("interchange", "zero at α = 0.5")
        assert sorted(compared) == sorted(f"{site}, {kind}" for site in sites for kind in kinds)
    assert f"all {len(checks)} checks hold" in printed(checks)


@pytest.mark.parametrize("stack", SITES)
def test_every_site_is_in_one_group(case, stack, monkeypatch):
    monkeypatch.setattr(site_invariants, "_KEPT", 10_000)
    groups = site_invariants.site_groups(case, stack)
    assert sorted(site for sites in groups for site in sites) == sorted(sweepable_sites(stack))
    assert len(groups) == {"encoder": 9, "decoder": 3}[stack]
    for sites in groups:
        case.plan(stack=stack, site=sites)


@pytest.mark.parametrize("stack", SITES)
def test_every_site_of_the_engine_equals_whole_runs(case, stack):
    groups = site_invariants.site_groups(case, stack)
    checks = [check for sites in groups for check in site_invariants.minimal(case, stack, sites)]
    assert len(checks) == 2 * len(sweepable_sites(stack))
    assert not failing(checks)
    assert max(check.error for check in checks) < 1e-9


@pytest.mark.usefixtures("optimised")
def test_it_holds_at_float32(tiny32, golden):
    runs = [
        ji.Utterance(
            jnp.asarray(golden[f"mel_{x}"], jnp.float32), jnp.asarray(golden[f"tokens_{x}"])
        )
        for x in "ab"
    ]
    case = verify.make_case(tiny32, *runs, cells=3)
    checks = [
        *site_invariants.minimal(case, "decoder", ("cross_result",)),
        *site_invariants.identity(case, "encoder", ("ln_final",)),
        *invariants.causality(case),
    ]
    assert not failing(checks)
    assert 0 < max(check.error for check in checks) < 1e-4


def test_a_patch_that_loses_its_keys_is_found(case, broken):
    def forgetful(project):
        def lossy(block, resid):
            entry = project(block, resid)
            return dataclasses.replace(entry, k=jnp.zeros_like(entry.k))

        return lossy

    broken(injecting, "_project", forgetful)
    for stack, sites in (("encoder", ("z",)), ("decoder", ("resid_pre",))):
        assert failing(site_invariants.identity(case, stack, sites)) == {f"identity patch, {stack}"}
    assert [check.passed for check in invariants.methods(case)] == [True, False]
    assert failing(invariants.all_patch(case)) == {"all-patch = the other run"}


def test_a_patch_that_forgets_its_strength_is_found(case, broken):
    broken(injecting, "blend", lambda blend: lambda alpha, value, edited: edited)
    whole, half = site_invariants.minimal(case, "decoder", ("v",))
    assert whole.passed
    assert not half.passed


def test_attention_to_later_positions_is_found(case, broken):
    def blind(mix):
        return lambda self, tap, q, kv, mask=None: mix(self, tap, q, kv)

    broken(layers.Attention, "mix", blind)
    assert [check.passed for check in invariants.causality(case)] == [False, False]


def test_chunks_that_depend_on_their_size_are_found(case, broken):
    def misplaced(pack):
        def shifted(chunk, n_tokens, *, everywhere):
            packing = pack(chunk, n_tokens, everywhere=everywhere)
            wrong = 1 if chunk.where.shape[1] < n_tokens else 0
            return dataclasses.replace(packing, pos=packing.pos - wrong)

        return shifted

    broken(methods, "pack", misplaced)
    assert failing(invariants.chunking(case)) == {"chunked = whole"}


def test_a_batch_that_mixes_its_pairs_up_is_found(case, broken):
    def same(stack_metrics):
        return lambda lists, *others: stack_metrics([lists[0]] * len(lists), *others)

    broken(prepared, "stack_metrics", same)
    assert [check.passed for check in invariants.batch(case)] == [True, False]


def test_a_part_of_low_precision_is_found(case, broken, monkeypatch):
    def rough(gelu):
        def rounded(x):
            return gelu(x.astype(jnp.bfloat16)).astype(x.dtype) if x.dtype == "float32" else gelu(x)

        return rounded

    broken(layers, "gelu", rough)
    monkeypatch.setattr(invariants, "_rounds_products", lambda: True)
    single, half, default = invariants.precision(case)
    assert not single.passed
    assert half.bound is None
    assert default.bound is None
    assert default.compares.startswith("float32 by default and float64")
    assert default.error == pytest.approx(single.error, rel=1e-3)


def test_the_table_has_a_row_for_each_invariant_and_each_failure():
    checks = [
        Check("identity patch, decoder", "q", 1e-12, 1e-9),
        Check("identity patch, decoder", "k", 2e-12, 1e-9),
        Check("identity patch, decoder", "v", math.nan, 1e-9),
        Check("precision", "bfloat16 and float32", 0.03, None),
    ]
    rows = printed(checks).splitlines()
    assert "1 of 4 checks fail" in rows[0]
    assert "2, the worst: k" in rows[4]
    assert "2.0e-12" in rows[4]
    assert "FAILS" in rows[5]
    assert "reported" in rows[6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": 0}, "number of cells is 0"),
        ({"corrupted": "clean"}, "give runs that differ in it"),
        ({"corrupted": "short"}, "7 and 6 tokens"),
        ({"memory": 10}, "memory budget of 10 bytes is too small"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, utterances, change, message):
    clean, corrupted = utterances
    others = {"clean": clean, "short": ji.Utterance(clean.mel, clean.tokens[:6])}
    change = {name: others.get(value, value) for name, value in change.items()}
    with pytest.raises(ji.InputError, match=message):
        verify.verify(tiny, **({"clean": clean, "corrupted": corrupted} | change))


@pytest.mark.real
@pytest.mark.slow
def test_everything_holds_on_real_weights():
    model = real_model("tiny.en")
    clips = [resources.files("jaxasr_interp") / "data" / f"{x}.flac" for x in ("grass", "glass")]
    contrast = find_contrast(model, *(ji.load_audio(str(clip)) for clip in clips))
    checks = verify.verify(model, contrast.clean, contrast.corrupted, cells=1)
    print(printed(checks))
    assert not failing(checks)
    assert max(check.error for check in checks if "minimal" in check.name) < 1e-4
