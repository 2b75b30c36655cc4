"""Work on the copies of a model: the numbers of one device, wherever a part runs."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.by_hand import brief_clips
from helpers.dataset_sweeps import N_CLIPS, swept
from helpers.files import contents
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.where import At
from jaxasr_interp.runtime.copies import copies, move_to, side_by_side
from jaxasr_interp.runtime.devices import mesh_of


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_copies_have_devices_of_their_own_and_all_parameters(tiny, tensor_parallel):
    found = copies(ji.replicate(tiny, tensor_parallel=tensor_parallel))
    places = [{d for leaf in jax.tree.leaves(one) for d in leaf.devices()} for one in found]
    assert [len(place) for place in places] == [tensor_parallel] * (4 // tensor_parallel)
    assert set.union(*places) == set(jax.local_devices())
    for one in found:
        assert one.tokenizer is tiny.tokenizer
        assert (mesh_of(one) is None) == (tensor_parallel == 1)
        for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(tiny), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert copies(tiny) == [tiny]


def test_what_is_moved_stays_one_array(tiny):
    shared = jnp.ones(3)
    last = copies(ji.replicate(tiny))[-1]
    a, b, number = move_to(last, [shared, shared, 2.5])
    assert a is b
    assert a.devices() == {jax.local_devices()[3]}
    assert number == 2.5


def test_parts_run_side_by_side_in_the_callers_precision(x64):
    meeting = threading.Barrier(3, timeout=20)

    def run(copy, part):
        meeting.wait()
        wide = str(jnp.asarray(part / 3.0).dtype)
        return copy, (wide, jax.config.jax_default_matmul_precision)

    with jax.default_matmul_precision("highest"):
        found = side_by_side(["a", "b", "c"], run, range(3))
    assert sorted(copy for copy, _ in found) == ["a", "b", "c"]
    assert {precision for _, precision in found} == {("float64", "highest")}


def test_no_part_begins_after_one_has_failed():
    begun = []

    def run(copy, part):
        begun.append(part)
        if part == 1:
            raise ji.InputError("The part is wrong.")
        time.sleep(0.2)
        return part

    with pytest.raises(ji.InputError, match="The part is wrong"):
        side_by_side([0, 1], run, range(100))
    assert len(begun) < 6
    assert side_by_side([0, 1], lambda copy, part: part, range(5)) == list(range(5))


@pytest.mark.parametrize(("count", "rows"), [(5, 2), (1, 6)])
def test_rows_are_generated_on_all_devices(tiny, golden, count, rows):
    rng, mel = np.random.default_rng(0), golden["mel_a"]
    states = jnp.stack(
        [
            ji.encode(tiny, jnp.asarray(mel + rng.normal(size=mel.shape))).states
            for _ in range(count)
        ]
    )
    edits = [
        [
            ji.parse_edit(f"scale:decoder.mlp_out@{i % 3}:factor={i + 0.5}", tiny).decoder
            for i in range(rows)
        ]
        for _ in range(count)
    ]
    choice = ji.Choice(max_new_tokens=8, temperature=0.7, seed=3)
    one, four = (
        generate_rows(model, states, edits, choice=choice) for model in (tiny, ji.replicate(tiny))
    )
    for ours, theirs in zip(four, one, strict=True):
        assert [row.tokens for row in ours] == [row.tokens for row in theirs]
        np.testing.assert_allclose(
            np.concatenate([row.log_probs for row in ours]),
            np.concatenate([row.log_probs for row in theirs]),
            rtol=0,
            atol=1e-10,
        )


def test_an_encoder_lens_uses_all_devices(tiny, golden):
    mel = jnp.asarray(golden["mel_a"])
    one, four = (ji.encoder_lens(model, mel) for model in (tiny, ji.replicate(tiny)))
    assert one.texts == four.texts
    np.testing.assert_allclose(four.log_probs, one.log_probs, rtol=0, atol=1e-10)


def test_extraction_on_two_devices_gives_the_numbers_of_one(folder, model, tmp_path):
    sites = ["encoder.resid_post:mean", "decoder.resid_post:end"]
    options = ji.ExtractOptions(text="text", batch_size=3)
    for name, placed in (("one", model), ("two", ji.replicate(model, 2))):
        found = ji.extract(
            placed, folder / "clips.tsv", tmp_path / name, sites=sites, options=options
        )
        assert (found.done, found.problems) == (N_CLIPS, ())
    one, two = (ji.open_dataset(tmp_path / name) for name in ("one", "two"))
    assert set(one.variables) == set(two.variables)
    for name in set(one.variables):
        np.testing.assert_array_equal(one[name].values, two[name].values)


def test_text_sweeps_on_two_devices_equal_one(tiny, golden):
    clips = [
        ji.Clip(f"{name}{i}", (i + 1) / 4 * audio, "a b", "en")
        for i in range(3)
        for name, audio in zip(("tone", "noise"), brief_clips(), strict=True)
    ]

    def transcribed(model):
        """Also under an edit whose values are where the model is."""
        states = ji.encode(model, jnp.asarray(golden["mel_b"])).states
        acts = ji.decode(model, [1] * model.config.max_tokens, states, sites="mlp_out").acts
        held = Intervention("held", decoder=At(ji.Interchange(acts), 1, site="mlp_out"))
        edits = ["zero:decoder.mlp_out@0", "mix:encoder.resid_post@0:ref=noise", held]
        choice = ji.Choice(max_new_tokens=6)
        return ji.ablation_sweep(model, clips[:5], edits, choice=choice)

    one, two = map(transcribed, (tiny, ji.replicate(tiny, 2)))
    tokens = [[[row.tokens for row in rows] for rows in found.generated] for found in (one, two)]
    assert tokens[0] == tokens[1]


def test_probes_of_layers_are_fitted_on_all_devices(monkeypatch):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(6, 90, 5)).astype(np.float32) + np.eye(3, 5, dtype=np.float32)[y]
    options = ji.FitOptions(n_folds=3)
    whole = ji.fit_probes(x, y, options=options)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    used = set()
    place = jax.default_device

    def watched(device):
        used.add(device)
        return place(device)

    monkeypatch.setattr(jax, "default_device", watched)
    spread = ji.fit_probes(x, y, options=options)
    assert used == set(jax.local_devices())
    np.testing.assert_allclose(
        spread["target"].held_out.outputs, whole["target"].held_out.outputs, rtol=1e-4, atol=1e-4
    )


def test_a_data_set_finds_its_texts_on_all_devices(folder, model, tmp_path, whole):
    """The texts have the bytes of one device; the sweep its numbers (`test_devices`)."""
    swept(model, folder, tmp_path, devices=4)
    texts = {name: data for name, data in whole.items() if name.startswith("texts.zarr")}
    assert texts
    found = contents(tmp_path)
    assert {name: found[name] for name in texts} == texts
