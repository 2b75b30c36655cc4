"""Extraction over many clips: cut off and gone on with, clips that are left out, the command."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import zarr

import jaxasr_interp as ji
from helpers.extracting import extract_with
from helpers.files import sound, tiny_folder, write_table
from helpers.golden import worst
from jaxasr_interp.cli import main
from jaxasr_interp.extraction.reductions import narrowed

SITES = ["encoder.resid_post:mean"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    return tiny_folder(tmp_path_factory.mktemp("clips"), tiny_tokenizer, 60)


@pytest.fixture
def rows(folder):
    return [
        {"path": str(folder / f"{i}.wav"), "text": "ab", "lang": "en", "speaker": str(i % 2)}
        for i in range(4)
    ]


def assert_same(one, other):
    """Two stores hold the same, bit by bit."""
    first, second = ji.open_activations(one), ji.open_activations(other)
    assert set(first.data_vars) == set(second.data_vars)
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=name)


def test_killed_and_called_again_gives_the_same_store(folder, tmp_path):
    out = tmp_path / "killed.zarr"
    command = [sys.executable, "-m", "jaxasr_interp", "extract", str(folder / "clips.tsv")]
    command += ["--model", str(folder / "model"), "--batch-size", "1", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    finished = out / "frames" / "c"
    deadline = time.monotonic() + 120
    while len(list(finished.glob("*"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    with pytest.raises(ji.InputError, match=r"killed.zarr is incomplete, with \d+ of 60 clips"):
        ji.open_activations(out)
    done = ji.open_activations(out, incomplete=True).sizes["clip"]
    kept = {path: path.stat().st_mtime_ns for path in (finished / str(i) for i in range(done))}
    assert 2 <= len(kept) < 60
    model, said = ji.load_model(folder / "model"), []
    again = ji.extract(
        model,
        folder / "clips.tsv",
        out,
        on_progress=lambda *now: said.append(now[:2]),
        options=ji.ExtractOptions(batch_size=1),
    )
    assert said == [(n, 60) for n in range(len(kept), 61)]
    assert (again.clips, again.done, again.problems) == (60, 60, ())
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    whole = ji.extract(
        model,
        folder / "clips.tsv",
        tmp_path / "whole.zarr",
        options=ji.ExtractOptions(batch_size=1),
    )
    assert_same(out, whole.path)
    # Nothing is left to do, and nothing is done.
    ji.extract(model, folder / "clips.tsv", out, options=ji.ExtractOptions(batch_size=1))
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_a_batch_cut_off_while_it_is_written_is_written_again(tiny32, rows, tmp_path):
    """Its arrays may be there, but as long as it is not done they do not count."""
    whole = ji.extract(
        tiny32, rows, tmp_path / "whole.zarr", sites=SITES, options=ji.ExtractOptions(batch_size=2)
    )
    torn = ji.extract(
        tiny32, rows, tmp_path / "torn.zarr", sites=SITES, options=ji.ExtractOptions(batch_size=2)
    )
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_group(torn.path, mode="r+")["done"][2:] = False
    (torn.path / "problem" / "c" / "1").unlink()
    chunk = torn.path / "encoder.resid_post.mean" / "c" / "1" / "0" / "0"
    assert chunk.is_file()
    chunk.write_bytes(b"torn")
    stray, fresh = (torn.path / "frames" / "c" / f"1.{i}.partial" for i in range(2))
    stray.write_bytes(b"torn")
    os.utime(stray, (0, 0))
    fresh.write_bytes(b"another process writes this now")
    assert ji.open_activations(torn.path, incomplete=True).sizes["clip"] == 2
    ji.extract(tiny32, rows, torn.path, sites=SITES, options=ji.ExtractOptions(batch_size=2))
    assert_same(whole.path, torn.path)
    assert not stray.exists()
    assert fresh.exists()


def test_other_work_does_not_go_on_in_the_same_store(tiny32, rows, tmp_path):
    out = tmp_path / "a.zarr"
    ji.extract(tiny32, rows, out, sites=SITES, options=ji.ExtractOptions(batch_size=2))
    for changed, what in (
        ({"sites": ["encoder.ln_final:mean"]}, "sites"),
        ({"dtype": "float16"}, "dtype"),
        ({"batch_size": 4}, "batch_size"),
        ({"random_seed": 1}, "random_seed"),
        ({"limit": 3}, "clips, audio"),
    ):
        with pytest.raises(ji.InputError, match=rf"another extraction \({what} differs?\)"):
            extract_with(tiny32, rows, out, **{"sites": SITES, "batch_size": 2} | changed)
    with pytest.raises(ji.InputError, match="clips differs"):
        ji.extract(
            tiny32,
            [{**rows[0], "speaker": "2"}, *rows[1:]],
            out,
            sites=SITES,
            options=ji.ExtractOptions(batch_size=2),
        )
    with pytest.raises(ji.InputError, match="model differs"):
        ji.extract(
            ji.random_model(tiny32, 3),
            rows,
            out,
            sites=SITES,
            options=ji.ExtractOptions(batch_size=2),
        )
    ji.extract(
        tiny32, rows[:2], out, sites=SITES, overwrite=True, options=ji.ExtractOptions(batch_size=2)
    )
    assert ji.open_activations(out).sizes["clip"] == 2
    (tmp_path / "notes").mkdir()
    for overwrite in (False, True):
        with pytest.raises(ji.InputError, match="no store of an extraction"):
            ji.extract(tiny32, rows, tmp_path / "notes", sites=SITES, overwrite=overwrite)
    with pytest.raises(ji.InputError, match="no store of an extraction"):
        ji.open_activations(tmp_path / "notes")


def test_clips_that_cannot_be_read_are_left_out(tiny32, rows, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    soundfile.write(tmp_path / "long.wav", sound(0, 4000), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    bad = [{**rows[0], "path": str(tmp_path / f"{name}.wav")} for name in ("bad", "long", "empty")]
    missing = {**rows[0], "path": str(tmp_path / "missing.wav")}
    too_long = {**rows[1], "text": "abcdefghijklmnopqrstuvw"}
    clips = [rows[0], bad[0], rows[1], bad[1], bad[2], missing, too_long, rows[2]]
    sites = [*SITES, "decoder.ln_final:end"]
    done = ji.extract(
        tiny32,
        clips,
        tmp_path / "a.zarr",
        sites=sites,
        options=ji.ExtractOptions(text="text", batch_size=4),
    )
    assert (done.clips, done.done) == (8, 8)
    assert [path for path, _ in done.problems] == [clips[i]["path"] for i in (1, 3, 4, 5, 6)]
    for (_, problem), words in zip(
        done.problems,
        ("is not audio that can be read", "0.2 s long", "no samples", "no audio file", "29 tokens"),
        strict=True,
    ):
        assert words in problem
    stored = ji.open_activations(done.path)
    good = ji.open_activations(
        ji.extract(
            tiny32,
            rows[:3],
            tmp_path / "b.zarr",
            sites=sites,
            options=ji.ExtractOptions(text="text", batch_size=4),
        ).path
    )
    for name in good.data_vars:
        if "coder." in name:
            assert worst(stored[name].values, good[name].values) < 1e-6
    assert stored.path.values.tolist() == good.path.values.tolist()


def test_requests_that_a_clip_cannot_meet_leave_it_out(tiny32, rows, tmp_path):
    rows[1]["speaker"] = "ab"
    done = ji.extract(
        tiny32,
        rows[:3],
        tmp_path / "a.zarr",
        sites=["decoder.ln_final:word=speaker"],
        options=ji.ExtractOptions(text="text", batch_size=4),
    )
    assert [problem for _, problem in done.problems] == [
        "The word '0' (column speaker) is not in the text."
    ] * 2
    # 500 samples are two frames.
    done = ji.extract(
        tiny32,
        rows[:1],
        tmp_path / "b.zarr",
        sites=["encoder.ln_final:at=2"],
        options=ji.ExtractOptions(batch_size=4),
    )
    assert len(done.problems) == 1


def test_values_beyond_float16_are_refused(tiny32, rows, tmp_path):
    small = ji.extract(
        tiny32,
        rows,
        tmp_path / "half.zarr",
        sites=SITES,
        options=ji.ExtractOptions(batch_size=2, dtype="float16"),
    )
    stored = ji.open_activations(small.path)["encoder.resid_post.mean"]
    assert stored.dtype == np.float16
    full = ji.extract(
        tiny32, rows, tmp_path / "full.zarr", sites=SITES, options=ji.ExtractOptions(batch_size=2)
    )
    assert worst(stored.values, ji.open_activations(full.path)[stored.name].values) < 1e-3
    tiny32.encoder.pos_embed[...] = tiny32.encoder.pos_embed[...] * 1e6
    with pytest.raises(ji.InputError, match="beyond float16: store it as float32"):
        ji.extract(
            tiny32,
            rows,
            tmp_path / "large.zarr",
            sites=SITES,
            options=ji.ExtractOptions(batch_size=2, dtype="float16"),
        )
    with pytest.raises(ji.InputError, match="not stored as 'int8'"):
        ji.extract(tiny32, rows, tmp_path / "small.zarr", options=ji.ExtractOptions(dtype="int8"))
    # What is infinite already stays what it is.
    assert np.isinf(narrowed(np.array([np.inf, 1.0]), "x", "float16"))[0]


def test_the_command_reports_and_refuses(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["extract", *map(str, arguments), "--model", str(folder / "model")])
        return (end.value.code or 0, *capsys.readouterr())

    table = folder / "reported.tsv"
    first = {"path": "0.wav", "text": "ab", "kind": "a"}
    write_table(table, [first, {**first, "path": "none.wav"}, {**first, "kind": "b"}])
    site = ("--site", "encoder.ln_final:mean")
    code, out, err = call(table, *site, "--where", "kind=a", "--snr", "0", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["clips"], report["done"], len(report["problems"])) == (4, 4, 2)
    assert "left out: none.wav: There is no audio file" in err
    assert ji.open_activations("runs/activations.zarr").snr.values.tolist() == ["clean", "0"]
    given = ("--site", "decoder.ln_final:end", "--where", "kind=b", "--text", "text")
    code, out, err = call(table, *given, "--out", "runs/given.zarr")
    assert code == 0, err
    assert "the decoder was given the column text: 1 clips" in out
    code, out, err = call(table, *given[:-2], "--out", "runs/own.zarr")
    assert "the decoder was given what the model itself writes: 1 clips" in out
    for arguments, sentence in (
        (("--where", "kind"), "COLUMN=VALUE"),
        (("--site", "encoder.ln_final:median"), "how positions are reduced"),
        (("--limit", "1"), "another extraction"),
    ):
        code, _, err = call(table, *site, *arguments)
        assert code == 2
        assert sentence in err
        assert len(err.splitlines()) == 1
