"""The sweep against torch's hooks, against the plain loop, and its invariants."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import jaxasr_interp as ji
from helpers.sweeps import counted, plan_of
from jaxasr_interp.patching import methods
from jaxasr_interp.patching.cost import decoder_flops
from jaxasr_interp.patching.engine import decoder as engine
from jaxasr_interp.patching.engine import readout as reading
from jaxasr_interp.runtime.store import save_dataset


@pytest.fixture
def metrics(golden):
    target, other = int(golden["t"]), int(golden["u"])
    return [
        ji.metrics.log_prob(target),
        ji.metrics.logit_diff(target, other),
        ji.metrics.kl(),
    ]


def sweep(model, utterances, metric, method="minimal", **plan):
    clean, corrupted = utterances
    plan = plan_of(model, tokens=corrupted.tokens, **plan)
    return ji.activation_patching(
        model,
        plan,
        clean=clean,
        corrupted=corrupted,
        metric=metric,
        options=ji.SweepOptions(method=method),
    )


@pytest.mark.parametrize("method", ["minimal", "vmap", "reference"])
def test_the_sweep_equals_torch_hooks(tiny, utterances, metrics, golden, method):
    result = sweep(tiny, utterances, metrics, method)
    for i, name in enumerate(result.metrics):
        np.testing.assert_allclose(
            result.patched[i], golden[f"sweep/resid_pre/{name}"], rtol=1e-10, atol=1e-12
        )
        assert result.clean[i] == pytest.approx(golden[f"sweep/clean/{name}"], abs=1e-12)
        assert result.corrupted[i] == pytest.approx(golden[f"sweep/corrupted/{name}"], abs=1e-12)


def test_a_run_patched_with_itself_does_not_change(tiny, utterances, metrics):
    clean, _ = utterances
    result = sweep(tiny, (clean, clean), metrics)
    expected = np.broadcast_to(result.corrupted[:, None, None], result.patched.shape)
    np.testing.assert_allclose(result.patched, expected, rtol=1e-12, atol=1e-14)
    assert np.isnan(result.recovered).all()


def test_patching_the_last_position_after_the_last_layer_restores_the_clean_run(
    tiny, utterances, metrics
):
    result = sweep(tiny, utterances, metrics, site="resid_post", layers=[-1], positions=[-1])
    np.testing.assert_allclose(result.recovered, 1.0, rtol=1e-9)


def test_positions_behind_the_metric_change_nothing(tiny, utterances):
    result = sweep(tiny, utterances, ji.metrics.log_prob(3, pos=3))
    expected = np.broadcast_to(result.corrupted[0], result.patched[0, :, 4:].shape)
    np.testing.assert_allclose(result.patched[0, :, 4:], expected, rtol=1e-12)
    assert np.abs(result.patched[0, :, :4] - result.corrupted[0]).max() > 1e-3


def test_a_users_function_is_a_metric(tiny, utterances):
    spread = ji.metrics.custom(lambda logits: logits.max() - logits.min(), "spread")
    minimal, looped = (sweep(tiny, utterances, spread, m) for m in ("minimal", "reference"))
    assert minimal.metrics == ("spread",)
    np.testing.assert_allclose(minimal.patched, looped.patched, rtol=1e-10)


def test_chunks_equal_the_whole_in_one_program(tiny, utterances, metrics):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site=["resid_mid", "attn_out"])
    least = dataclasses.replace(plan, memory=one_patch_memory(tiny, plan))
    assert len(least.chunks()) > len(plan.chunks())
    results, traces = [], []
    for one in (plan, least):
        before = engine.propagate_rows._cache_size()
        done = []
        results.append(
            ji.activation_patching(
                tiny,
                one,
                clean=clean,
                corrupted=corrupted,
                metric=metrics,
                on_progress=counted(done),
            )
        )
        traces.append(engine.propagate_rows._cache_size() - before)
        assert done[-1] == plan.runs
        assert done == sorted(done)
    np.testing.assert_allclose(results[0].patched, results[1].patched, rtol=1e-12)
    assert max(traces) <= 1


def test_a_sweep_that_is_cut_off_goes_on_from_its_file(tiny, utterances, metrics, tmp_path):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site=["resid_mid", "attn_out"])
    plan = dataclasses.replace(plan, memory=one_patch_memory(tiny, plan))
    runs = {"clean": clean, "corrupted": corrupted, "metric": metrics}
    whole = ji.activation_patching(tiny, plan, **runs)
    path, seen = tmp_path / "sweep.npz", []

    def stop_at_20(done, total, phase):
        seen.append(done)
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ji.activation_patching(
            tiny, plan, **runs, on_progress=stop_at_20, options=ji.SweepOptions(resume=path)
        )
    first = len(seen)
    resumed = ji.activation_patching(
        tiny, plan, **runs, on_progress=counted(seen), options=ji.SweepOptions(resume=path)
    )
    assert seen[first] > seen[first - 1] >= 20
    np.testing.assert_array_equal(resumed.patched, whole.patched)
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.npz"]
    with pytest.raises(ji.InputError, match=r"is of another sweep \(corrupted differs\)"):
        ji.activation_patching(
            tiny, plan, **runs | {"corrupted": clean}, options=ji.SweepOptions(resume=path)
        )
    path.write_bytes(b"nonsense")
    with pytest.raises(ji.InputError, match="is no unfinished sweep"):
        ji.activation_patching(tiny, plan, **runs, options=ji.SweepOptions(resume=path))


def test_running_out_of_memory_makes_the_chunks_smaller(tiny, utterances, metrics, monkeypatch):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens)
    plan = dataclasses.replace(plan, memory=4 * one_patch_memory(tiny, plan))
    runs = {"clean": clean, "corrupted": corrupted, "metric": metrics}
    whole = ji.activation_patching(tiny, plan, **runs)
    sizes, propagate = [], methods.propagate_rows

    def limited(decoder, bases, entries, *rest, **static):
        sizes.append(entries.resid.shape[2])
        if sizes[-1] > sizes[0] // 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return propagate(decoder, bases, entries, *rest, **static)

    monkeypatch.setattr(methods, "propagate_rows", limited)
    small = ji.activation_patching(tiny, plan, **runs)
    assert sizes[-1] <= sizes[0] // 2
    np.testing.assert_allclose(small.patched, whole.patched, rtol=1e-12)


def one_patch_memory(model, plan) -> int:
    """The smallest budget, which the error names."""
    with pytest.raises(ji.InputError, match="too small") as error:
        dataclasses.replace(plan, memory=1).chunks()
    return int(re.search(r"take (\d+)", str(error.value))[1])


def test_changing_the_tokens_does_not_trace_again(tiny, utterances):
    sweep(tiny, utterances, ji.metrics.log_prob(3))
    before = reading.unembed_and_read._cache_size(), engine.propagate_rows._cache_size()
    sweep(tiny, utterances, ji.metrics.log_prob(4))
    assert (reading.unembed_and_read._cache_size(), engine.propagate_rows._cache_size()) == before


def test_the_plan_says_what_it_costs(tiny, golden):
    plan = ji.plan_sweep(tiny, tokens=golden["tokens_a"], layers=[0, -1], positions=[2, 3, 4])
    assert plan.layers == (0, 2)
    assert plan.runs == 6
    assert "2 layers × 3 positions = 6 patched runs of 7 tokens" in str(plan)
    assert plan.flops < plan.naive_flops


@pytest.mark.parametrize("method", ["minimal", "vmap"])
def test_chunks_cover_every_cell_once(tiny, golden, method):
    plan = ji.plan_sweep(
        tiny,
        tokens=golden["tokens_a"],
        site=["z", "mlp_out"],
        heads="each",
        options=ji.PlanOptions(alpha=[1, 0.5]),
    )
    tight = dataclasses.replace(plan, memory=one_patch_memory(tiny, plan) + 5000)
    for one in (plan, tight):
        chunks = one.chunks(method)
        where = np.concatenate([chunk.where.ravel() for chunk in chunks])
        np.testing.assert_array_equal(np.sort(where), np.arange(one.runs))
        assert len({(chunk.size, chunk.rows) for chunk in chunks if chunk.site == "z"}) == 1


def test_results_have_the_axes_that_were_asked_for(tiny, utterances):
    metric = ji.metrics.kl()
    plain = sweep(tiny, utterances, metric)
    assert plain.patched.shape == (1, 3, 7)
    rich = sweep(
        tiny, utterances, metric, site=["z", "attn_out"], heads=[1], alpha=[0.5, 1], layers=[1, 2]
    )
    assert rich.plan.axes == {"alpha": 2, "component": 2, "layer": 2, "pos": 7}
    assert rich.plan.component_names == ("z.1", "attn_out")
    dataset = rich.to_dataset()
    alone = sweep(tiny, utterances, metric, site="z", heads=[1], layers=[2])
    picked = dataset.patched.sel(component="z.1", alpha=1.0, layer=2, metric="kl")
    np.testing.assert_allclose(picked, alone.patched[0, 0], rtol=1e-12)


def count_flops(jaxpr) -> int:
    """Twice the multiply-adds of every dot in a traced program, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = int(np.prod([left[axis] for axis in contracted]))
            total += 2 * inner * int(np.prod(equation.outvars[0].aval.shape))
        times = equation.params.get("length", 1)
        for parameter in equation.params.values():
            inner_jaxpr = getattr(parameter, "jaxpr", parameter)
            total += times * count_flops(inner_jaxpr) if hasattr(inner_jaxpr, "eqns") else 0
    return total


def test_the_plan_counts_the_flops_of_the_traced_program(tiny32, golden):
    def resid(decoder, tokens, cross):
        return decoder(tokens, cross)[0]

    tokens = jnp.asarray(golden["tokens_a"])
    cross = tiny32.decoder.cross_keys_values(jnp.zeros((12, 16)))
    traced = jax.jit(resid).trace(tiny32.decoder, tokens, cross).jaxpr
    # The per-head results are traced too, and dropped by the compiler where nobody reads them.
    results = 3 * 2 * (2 * 7 * 16 * 16)
    assert count_flops(traced.jaxpr) - results == decoder_flops(tiny32.config, 7)


def test_results_carry_named_axes_and_provenance(tiny, utterances, metrics, tmp_path):
    result = sweep(tiny, utterances, metrics)
    labels = [str(token) for token in utterances[1].tokens]
    path = save_dataset(result.to_dataset(labels), tmp_path / "sweep.zarr", tiny)
    stored = xarray.open_zarr(path, consolidated=False)
    assert stored.patched.dims == ("metric", "layer", "pos")
    assert list(stored.metric.values) == ["log_prob", "logit_diff", "kl"]
    assert list(stored.token.values) == labels
    np.testing.assert_array_equal(stored.patched, result.patched)
    assert stored.attrs["dtype"] == "float64"
    assert "sha256:" in stored.attrs["model"]
    with pytest.raises(ji.InputError, match="exists"):
        save_dataset(result.to_dataset(), path, tiny)
    save_dataset(result.to_dataset(), path, tiny, overwrite=True)
    assert "token" not in xarray.open_zarr(path, consolidated=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.zarr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "resid"}, "has no site 'resid'"),
        ({"site": "logits"}, "do not patch the decoder's 'logits'"),
        ({"site": "attn_scores"}, "do not patch the decoder's 'attn_scores'"),
        ({"stack": "encoder", "site": "conv1_out"}, "do not patch the encoder's 'conv1_out'"),
        ({"site": []}, "set of sites is empty"),
        ({"site": ["z", "z"]}, "named twice"),
        ({"site": ["z", "cross_k"]}, "do not share layers and positions"),
        ({"site": ["z", "embed"]}, "do not share layers and positions"),
        ({"stack": "middle"}, "Unknown stack"),
        ({"site": "embed", "layers": [0]}, "outside the layers"),
        ({"heads": "each"}, "has heads"),
        ({"site": "z", "heads": [2]}, "There is no head 2"),
        ({"site": "z", "heads": "most"}, "expected 'each'"),
        ({"alpha": []}, "each once"),
        ({"alpha": [1, 1]}, "each once"),
        ({"alpha": float("nan")}, "finite"),
        ({"window": 0}, "window is 0"),
        ({"positions": "word:cat"}, "no word 'cat'"),
        ({"positions": "0.1s"}, "is a time"),
        ({"positions": "a:b"}, "cannot be read"),
        ({"positions": [(5, 3)]}, "no window from 5 up to 3"),
        ({"positions": "0:6:0"}, "step in '0:6:0' is 0"),
        ({"layers": []}, "set of layers is empty"),
        ({"layers": [3]}, "There is no layer 3"),
        ({"positions": []}, "set of positions is empty"),
        ({"positions": [7]}, "There is no position 7"),
        ({"positions": [1, -6]}, "named twice"),
        ({"memory": 10}, "memory budget of 10 bytes is too small"),
        ({"tokens": []}, "expected one sequence"),
    ],
)
def test_impossible_plans_are_named_in_one_sentence(tiny, golden, options, message):
    with pytest.raises(ji.InputError, match=message):
        plan_of(tiny, **({"tokens": golden["tokens_a"]} | options))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ([], "no metric"),
        (ji.metrics.log_prob(48), "the vocabulary has 48"),
        (ji.metrics.log_prob(3, pos=7), "reads position 7"),
        ([ji.metrics.log_prob(3), ji.metrics.log_prob(4)], "have the same name"),
        (ji.metrics.custom(lambda logits: logits[0], "row"), "expected a single number"),
    ],
)
def test_impossible_metrics_are_named_in_one_sentence(tiny, utterances, metric, message):
    with pytest.raises(ji.InputError, match=message):
        sweep(tiny, utterances, metric)


@pytest.mark.parametrize(
    "edit",
    [
        lambda site, layer, value: value.mean(0),
        lambda site, layer, value: value[:, :1],
        lambda site, layer, value: value.astype(jnp.float32),
        lambda site, layer, value: 0.0,
    ],
)
@pytest.mark.parametrize("method", ["minimal", "reference"])
def test_an_edit_of_another_shape_is_refused(tiny, utterances, edit, method):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=clean.tokens)
    runs = {"clean": clean, "corrupted": corrupted, "metric": ji.metrics.kl()}
    with pytest.raises(ji.InputError, match="an edit keeps shape and dtype"):
        ji.activation_patching(
            tiny, plan, **runs, edit=edit, options=ji.SweepOptions(method=method)
        )


def test_what_would_do_nothing_is_refused(tiny, tiny32, utterances):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=clean.tokens)
    runs = {"clean": clean, "corrupted": corrupted, "metric": ji.metrics.kl()}
    edit = ji.At(ji.Zero(), 1, 0, 7, site="z")
    with pytest.raises(ji.InputError, match="it would do nothing"):
        ji.activation_patching(tiny, plan, **runs, edit=edit)
    edit = ji.At(ji.Zero(), 5)
    with pytest.raises(ji.InputError, match="acts at layer 5 of 'resid_pre': the decoder has 3"):
        ji.activation_patching(tiny, plan, **runs, edit=edit)
    with pytest.raises(ji.InputError, match="There is no layer 5"):
        ji.activation_patching(tiny, dataclasses.replace(plan, layers=(1, 5)), **runs)
    with pytest.raises(ji.InputError, match="made for another model"):
        ji.activation_patching(tiny32, plan, **runs)


def test_another_models_values_are_not_resumed(tiny, utterances, tmp_path):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=clean.tokens, layers=[0])
    runs = {"clean": clean, "corrupted": corrupted, "metric": ji.metrics.kl()}
    ji.activation_patching(
        tiny, plan, **runs, options=ji.SweepOptions(resume=str(tmp_path / "sweep.npz"))
    )
    other = jax.tree.map(lambda x: x * 1.01, tiny)
    with pytest.raises(ji.InputError, match=r"another sweep \(model differs\)"):
        ji.activation_patching(
            other, plan, **runs, options=ji.SweepOptions(resume=tmp_path / "sweep.npz")
        )
    with pytest.raises(ji.InputError, match="in a folder that exists"):
        ji.activation_patching(
            tiny, plan, **runs, options=ji.SweepOptions(resume=tmp_path / "absent" / "sweep.npz")
        )


def test_runs_of_unequal_length_need_an_alignment(tiny, utterances):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=clean.tokens)
    shorter = ji.Utterance(clean.mel, clean.tokens[:-1])
    with pytest.raises(ji.InputError, match="give an alignment"):
        ji.activation_patching(
            tiny, plan, clean=shorter, corrupted=corrupted, metric=ji.metrics.kl()
        )


def test_an_unknown_method_is_refused(tiny, utterances):
    with pytest.raises(ji.InputError, match="Unknown method 'magic'"):
        sweep(tiny, utterances, ji.metrics.kl(), method="magic")
