"""Sweeps on several devices equal sweeps on one: data sets, batches of pairs, single pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.files import sound
from jaxasr_interp.patching.dataset import sweep_dataset
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.runtime import placement
from jaxasr_interp.runtime.devices import batch_size, mesh_of
from jaxasr_interp.runtime.runner import RunOptions

# Of one length, as each is a compilation.
TEXTS = ("abc def", "our dog", "his cat", "the elk", "big fox", "old emu")
MOST = {"float64": 1e-12, "float32": 1e-5}


@pytest.fixture
def rows(tmp_path):
    """Clips of different sound, the second of which cannot be read."""
    found = []
    for i, text in enumerate(TEXTS):
        path = tmp_path / f"{i}.wav"
        if i != 1:
            soundfile.write(path, sound(i, 3000 + 100 * i), 16000, subtype="FLOAT")
        found.append({"path": str(path), "text": text, "lang": "en"})
    return found


def swept(model, rows, out, sites, **run):
    """Every array of a data-set sweep."""
    options = DatasetOptions(text="text", metrics=("log_prob", "logit_diff", "kl"))
    result = sweep_dataset(model, rows, out, sites=sites, options=options, run=RunOptions(**run))
    assert result.done == result.questions == len(TEXTS) - 1
    return ji.open_dataset(result.path).load()


def assert_close(ours, theirs, dtype, clean="clean", corrupted="corrupted"):
    """Differences are measured against the largest effect."""
    effect = np.nanmax(np.abs(theirs.patched - theirs[corrupted]))
    for name in ("patched", clean, corrupted):
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert np.nanmax(np.abs(a - b)) <= MOST[dtype] * effect


@pytest.mark.parametrize(
    ("dtype", "site"),
    [
        ("float64", "decoder.z@*.each"),
        ("float64", "encoder.resid_pre"),
        ("float32", "decoder.resid_pre"),
    ],
)
def test_a_dataset_sweep_on_four_devices_equals_one(request, rows, tmp_path, dtype, site):
    model = request.getfixturevalue("tiny" if dtype == "float64" else "tiny32")
    one, four = (
        swept(model, rows, tmp_path / str(devices), [site], devices=devices) for devices in (1, 4)
    )
    assert one.patched.dtype == dtype
    assert_close(four, one, dtype, "clean_metric", "corrupted_metric")


@pytest.mark.parametrize(("given", "together"), [(None, 4), (1, 4), (3, 4), (8, 8)])
def test_batches_are_divided_evenly_among_the_devices(tiny, given, together):
    assert batch_size(ji.replicate(tiny), given) == together
    assert batch_size(tiny, given) == (given or 1)


def pairs(golden, count):
    rng, mel = np.random.default_rng(0), golden["mel_a"]
    runs = [
        ji.Utterance(jnp.asarray(mel + rng.normal(size=mel.shape)), jnp.asarray(golden["tokens_a"]))
        for _ in range(2 * count)
    ]
    return {"clean": runs[:count], "corrupted": runs[count:]}


PLANS = {
    "sites": {"site": ["z", "mlp_out"], "heads": "each"},
    "cross": {"site": "cross_k", "positions": [(0, 3), (4, 9), (11, 12)]},
    "encoder": {"stack": "encoder", "site": ["resid_pre", "z"], "positions": [(0, 3), (4, 9)]},
    "states": {"stack": "encoder", "site": "ln_final", "positions": [(0, 3), (4, 9)]},
}


@pytest.mark.parametrize(
    ("count", "kind", "tensor_parallel"),
    [
        *((1, kind, 1) for kind in ("sites", "encoder", "states")),
        (4, "cross", 1),
        (2, "sites", 2),
        *(
            pytest.param(*rest, marks=pytest.mark.slow)
            for rest in ((1, "cross", 1), (4, "states", 1), (1, "encoder", 2))
        ),
    ],
)
def test_pairs_on_four_devices_equal_one(tiny, golden, count, kind, tensor_parallel):
    runs = pairs(golden, count)
    metric = [[ji.metrics.log_prob(int(golden["t"])), ji.metrics.kl()]] * count
    plan = ji.plan_sweep(tiny, tokens=golden["tokens_a"], **PLANS[kind])
    one, four = (
        ji.activation_patching_batch(model, plan, **runs, metric=metric)
        for model in (tiny, ji.replicate(tiny, tensor_parallel=tensor_parallel))
    )
    for ours, theirs in zip(four, one, strict=True):
        assert_close(ours.to_dataset(), theirs.to_dataset(), "float64")


def test_a_model_is_placed_on_each_device(tiny):
    placed = ji.replicate(tiny, 2)
    mesh = mesh_of(placed)
    assert mesh is not None
    assert list(mesh.devices.flat) == jax.local_devices()[:2]
    assert placed.tokenizer is tiny.tokenizer
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(placed))
    assert ji.replicate(tiny, 1) is tiny
    with pytest.raises(ji.InputError, match="process has 4, choose 1 to 4"):
        ji.replicate(tiny, 5)


def test_devices_share_a_model_that_one_cannot_hold(tiny, monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny))
    monkeypatch.setattr(placement, "device_memory", lambda: 2 * size - 2)
    placed = ji.replicate(tiny)
    mesh = mesh_of(placed)
    assert mesh is not None
    assert dict(mesh.shape) == {"data": 2, "model": 2}
    held = [
        sum(leaf.addressable_shards[i].data.nbytes for leaf in jax.tree.leaves(placed))
        for i in range(4)
    ]
    assert max(held) == min(held) < 0.8 * size
    assert batch_size(placed, None) == 2
    with pytest.raises(ji.InputError, match=r"tensor_parallel is 3: .* choose one of 1, 2"):
        ji.replicate(tiny, tensor_parallel=3)
