"""`patch`, `attribution` and `ablate` as a user runs them: stores, pictures, plans, going on."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray

import jaxasr_interp as ji
from helpers.files import GLASS, GRASS, PNG
from helpers.real import real_model
from jaxasr_interp.cli import sweeps


@pytest.mark.real
def test_patch_writes_a_store_and_pictures(tmp_path, invoke):
    options = ["--site", "decoder.cross_attn_out", "--out", tmp_path / "patch", "--json"]
    code, printed, errors = invoke("patch", GRASS, GLASS, *options)
    assert code == 0, errors
    printed = json.loads(printed)
    stored = xarray.open_zarr(tmp_path / "patch" / "sweep.zarr", consolidated=False)
    assert printed["data_vars"]["recovered"]["dims"] == ["metric", "layer", "pos"]
    assert stored.attrs["target"] == "grass"
    assert stored.attrs["other"] == "glass"
    assert str(stored.token[-1].values) == "the"
    best = float(stored.recovered.sel(metric="logit_diff").isel(layer=-1, pos=-1))
    assert 0.8 < best < 1.1
    for name in ("logit_diff", "log_prob", "kl"):
        assert (tmp_path / "patch" / f"{name}.png").read_bytes().startswith(PNG)


@pytest.mark.real
def test_a_plan_is_printed_and_nothing_written(tmp_path, invoke):
    out = tmp_path / "patch"
    options = ["--site", "decoder.z@0,2-3.each", "--site", "decoder.cross_z@0,2-3.each"]
    options += ["--alpha", "0.5,1", "--positions", "word:cut,-1", "--plan", "--out", out]
    code, printed, errors = invoke("patch", GRASS, GLASS, *options)
    assert code == 0, errors
    assert "2 strengths × 12 components × 3 layers × 2 positions" in printed
    assert re.search(r"about \d+\.\d s on this CPU", printed)
    options = ["--site", "encoder.resid_pre", "--window", "400ms:0.2s", "--plan"]
    _, printed, _ = invoke("patch", GRASS, GLASS, *options)
    assert "4 layers × 12 windows" in printed
    assert not out.exists()


@pytest.mark.real
def test_the_word_is_heard_where_it_is_said(tmp_path, invoke):
    options = ["--site", "encoder.resid_pre@0", "--metric", "logit_diff", "--out", tmp_path]
    options += ["--positions", "0:20,word:grass,1.6s..1.8s"]
    code, printed, errors = invoke("patch", GRASS, GLASS, *options)
    assert code == 0, errors
    stored = xarray.open_zarr(tmp_path / "sweep.zarr", consolidated=False)
    assert stored.recovered.dims == ("metric", "layer", "pos")
    early, word, onset = stored.recovered.values[0, 0, [0, 2, 3]]
    assert onset > 0.9
    assert abs(early) < 0.01 < word
    assert "grass." in str(stored.heard.values[2])
    assert 1.4 < float(stored.seconds[2]) < 1.8
    best = next(line for line in printed.splitlines() if line.startswith("│"))
    assert "1.60-1.80 s" in best
    assert "grass." in best
    assert (tmp_path / "logit_diff.png").read_bytes().startswith(PNG)


@pytest.mark.real
def test_one_clip_is_swept_against_a_reference_and_by_gradients(tmp_path, invoke):
    options = ["--word", "cut", "--site", "decoder.cross_attn_out", "--json"]
    options += ["--exact", "--verify-top", "3", "--out", tmp_path]
    code, printed, errors = invoke("attribution", GRASS, "silence", *options)
    assert code == 0, errors
    result = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["attrs"]["target"] == "cut"
    assert result["attrs"]["corrupted"] == "silence"
    assert result["coords"]["metric"]["data"] == ["log_prob", "kl", "cross_entropy"]
    values = {name: np.array(entry["data"], float) for name, entry in result["data_vars"].items()}
    verified = np.isfinite(values["verified"][0])
    assert verified.sum() == 3
    np.testing.assert_allclose(
        values["verified"][:, verified], values["patched"][:, verified], rtol=1e-4, atol=1e-5
    )
    assert values["approximate"].shape == values["patched"].shape
    assert (np.abs(values["rank_correlation"]) <= 1).all()
    assert values["clean"][0] > values["corrupted"][0]


@pytest.mark.real
def test_where_both_runs_are_one_there_is_nothing_to_recover(tmp_path, invoke):
    options = ["--site", "decoder.mlp_out@1", "--word", "grass", "--json", "--out", tmp_path]
    code, printed, errors = invoke("patch", GRASS, GRASS, *options)
    assert code == 0, errors
    for name in ("log_prob", "kl", "cross_entropy"):
        assert f"note: {name} is " in errors
    assert "in both runs, so that there is nothing to recover" in errors
    result = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert np.isfinite(np.array(result["data_vars"]["patched"]["data"], float)).all()
    assert set(np.ravel(result["data_vars"]["recovered"]["data"])) == {None}
    assert (tmp_path / "log_prob.png").read_bytes().startswith(PNG)


@pytest.mark.real
def test_a_store_says_what_was_heard_and_given(tmp_path, invoke):
    options = ["--site", "decoder.resid_pre@1", "--out", tmp_path]
    code, _, errors = invoke("attribution", GRASS, "noise:seed=7", *options)
    assert code == 0, errors
    attrs = ji.open_dataset(tmp_path / "sweep.zarr").attrs
    model = real_model("tiny.en")
    written = model.tokenizer.encode(" My brother went outside to cut the")
    assert attrs["clean"] == GRASS
    assert attrs["clean_sha256"] == hashlib.sha256(Path(GRASS).read_bytes()).hexdigest()
    assert (attrs["corrupted"], attrs["seed"], attrs["method"]) == ("noise", 7, "attribution")
    assert attrs["text"] == "My brother went outside to cut the grass."
    assert attrs["tokens"] == [*model.tokenizer.prompt(), *written]
    assert (attrs["prompt"], attrs["target"]) == (2, "grass")


@pytest.mark.real
def test_ablate_equals_an_edited_run(tmp_path, invoke):
    sites = ("attn_out@1,3", "cross_attn_out@1,3", "mlp_out@1,3", "z@1,3.each", "cross_z@1,3.each")
    options = [part for site in sites for part in ("--site", f"decoder.{site}")]
    code, printed, errors = invoke("ablate", GRASS, "--out", tmp_path, *options)
    assert code == 0, errors
    assert "change of cross_entropy in nats from" in " ".join(printed.split())
    stored = xarray.open_zarr(tmp_path / "ablation.zarr", consolidated=False, chunks=None)
    assert stored.change.dims == ("metric", "component", "layer", "pos")
    assert stored.sizes == {"metric": 2, "component": 15, "layer": 2, "pos": 1}
    model = real_model("tiny.en")
    mel = ji.log_mel_spectrogram(ji.load_audio(GRASS))
    states = ji.encode(model, mel).states
    text = model.tokenizer.encode(" My brother went outside to cut the grass.")
    tokens = [*model.tokenizer.prompt(), *text]
    targets = np.array([*text, model.tokenizer.end_of_text])
    for name, layer, edit in (
        ("mlp_out", 3, ji.At(ji.Zero(), 3, 0, 99, site="mlp_out")),
        ("cross_z.2", 1, ji.At(ji.Zero(), 1, 0, 99, head=2, site="cross_z")),
    ):
        losses = []
        for one in (ji.identity, edit):
            logits = np.asarray(ji.decode(model, tokens, states, edit=one).logits[1:], np.float64)
            log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            losses.append(-log_probs[np.arange(len(targets)), targets].mean())
        found = stored.change.sel(metric="cross_entropy", component=name, layer=layer)
        assert float(found.item()) == pytest.approx(losses[1] - losses[0], abs=2e-5)
    for name in ("cross_entropy", "kl_all"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)


@pytest.mark.real
def test_a_sweep_goes_on_where_it_was_cut_off(tmp_path, invoke, monkeypatch):
    swept = sweeps.activation_patching
    done = []

    def interrupted(*arguments, on_progress, **options):
        swept(*arguments, on_progress=lambda *now: done.append(now), **options)
        raise KeyboardInterrupt

    command = ["ablate", GRASS, "--site", "decoder.mlp_out", "--json"]
    command += ["--out", tmp_path]
    monkeypatch.setattr(sweeps, "activation_patching", interrupted)
    assert invoke(*command)[0] == 130
    assert [path.name for path in tmp_path.glob("*.*")] == ["unfinished.npz"]
    monkeypatch.setattr(sweeps, "activation_patching", swept)
    code, printed, errors = invoke(*command)
    assert code == 0, errors
    assert done[-1] == (4, 4, "patches")
    assert np.isfinite(np.array(json.loads(printed)["data_vars"]["change"]["data"])).all()
    assert not (tmp_path / "unfinished.npz").exists()
    assert (tmp_path / "ablation.zarr").exists()


@pytest.mark.real
@pytest.mark.parametrize(
    "options",
    [
        ["--kind", "mean", "--site", "decoder.mlp_out"],
        ["--kind", "mean", "--site", "encoder.mlp_out"],
        ["--kind", f"mean:ref={GLASS}", "--site", "decoder.cross_z@*.0"],
        ["--kind", f"mix:ref={GLASS}", "--site", "decoder.cross_attn_out", "--word", "grass"],
        ["--kind", "mix:ref=silence", "--site", "encoder.mlp_out", "--positions", "0:50"],
        ["--kind", "noise:std=2", "--site", "decoder.attn_out", "--positions", "2:5"],
        ["--kind", "scale:factor=0", "--site", "decoder.mlp_out", "--alpha", "0.5,1"],
        ["--kind", "add:vector={vector}", "--site", "decoder.mlp_out@2"],
        ["--kind", "knockout:keys=0.8s..2.2s", "--site", "decoder.cross_pattern"],
        ["--kind", "knockout:keys=0..2", "--site", "decoder.pattern@*.0"],
    ],
)
def test_every_kind_of_ablation_changes_the_run(tmp_path, invoke, options):
    np.save(tmp_path / "vector.npy", np.linspace(-1, 1, 384, dtype=np.float32))
    options = [option.format(vector=tmp_path / "vector.npy") for option in options]
    code, printed, errors = invoke("ablate", GRASS, "--json", "--out", tmp_path, *options)
    assert code == 0, errors
    change = np.array(json.loads(printed)["data_vars"]["change"]["data"], float)
    kl_all = change[1]
    assert np.isfinite(change).all()
    assert kl_all.min() > -1e-5
    assert kl_all.max() > 1e-2
