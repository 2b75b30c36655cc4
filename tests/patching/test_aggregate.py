"""Summaries of data-set sweeps: against means by hand, and intervals against a closed form."""

import dataclasses
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import xarray

import jaxasr_interp as ji
from helpers.datasets import make_folder
from helpers.files import PNG, write_table
from jaxasr_interp.patching.aggregate import _averages, top_cells
from jaxasr_interp.patching.metrics import recovered

OPTIONS = ji.DatasetOptions(
    text="text", reference="column:corrupted", word="each", metrics=("log_prob", "kl")
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_tokenizer):
    folder = make_folder(tmp_path_factory.mktemp("dataset"), tiny_tokenizer)
    model = ji.load_model(folder / "model")
    out = folder / "out"
    ji.sweep_dataset(
        model,
        folder / "clips.tsv",
        out,
        sites=["decoder.resid_pre", "decoder.mlp_out"],
        options=OPTIONS,
        run=ji.RunOptions(devices=1),
    )
    return out


def test_means_are_those_by_hand(swept):
    summary = ji.aggregate(swept, metric="kl")
    dataset = ji.open_dataset(swept / "sweep.zarr")
    for group, name in enumerate(("prompt", "text", "last")):
        means = []
        for i in range(dataset.sizes["clip"]):
            one = dataset.isel(clip=i)
            share = recovered(
                one.patched.values[1][None],
                one.clean_metric.values[1:],
                one.corrupted_metric.values[1:],
            )[0]
            n, prompt = int(one.length), int(one.prompt)
            chosen = {"prompt": range(min(prompt, n - 1)), "text": range(prompt, n - 1)}
            places = list(chosen.get(name, [n - 1]))
            if places:
                means.append(share[..., places].mean(-1))
        expected = np.mean(means, axis=0)
        np.testing.assert_allclose(summary["mean"].values[group], expected, rtol=1e-5, atol=1e-7)
        assert int(summary["questions"][group]) == len(means)
    assert (summary["low"] <= summary["mean"] + 1e-9).all()
    assert (summary["mean"] <= summary["high"] + 1e-9).all()


def test_values_of_a_column_are_averaged_apart(swept):
    summary = ji.aggregate(swept, by="speaker")
    assert summary["value"].values.tolist() == ["even", "odd"]
    whole = ji.aggregate(swept)
    counts = summary["questions"].values
    np.testing.assert_array_equal(counts.sum(0), whole["questions"].values)
    weighted = (summary["mean"].values * counts[..., None, None]).sum(0)
    np.testing.assert_allclose(
        weighted / counts.sum(0)[:, None, None], whole["mean"].values, rtol=1e-6, atol=1e-9
    )


def test_values_are_averaged_apart_by_their_classes(swept):
    words = ji.aggregate(swept, by="asked_word")
    classes = {"b": "short", "c": "short", "d": "short", "ab": "long"}
    found = ji.aggregate(swept, by="asked_word", classes=classes)
    assert found["value"].values.tolist() == ["long", "other", "short"]
    number, mean = (words[name].values for name in ("questions", "mean"))
    for value in found["value"].values:
        own = [classes.get(word, "other") == value for word in words["value"].values]
        counts = found["questions"].sel(value=value).values
        np.testing.assert_array_equal(counts, number[own].sum(0))
        total = np.nansum(mean[own] * number[own][..., None, None], axis=0)
        some = counts > 0
        np.testing.assert_allclose(
            total[some] / counts[some][:, None, None],
            found["mean"].sel(value=value).values[some],
            rtol=1e-6,
            atol=1e-9,
        )
    with pytest.raises(ji.InputError, match="name the column with by"):
        ji.aggregate(swept, classes=classes)


def test_the_interval_of_a_mean_is_the_normal_one():
    """For many clips the bootstrap's interval is the mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).standard_normal((400, 1, 1))
    resampling = ji.Resampling(n_resamples=4000)
    found = _averages(values, np.arange(400), resampling)
    error = values.std() / math.sqrt(400)
    assert found["low"].item() == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found["high"].item() == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_clips_of_one_speaker_are_resampled_together():
    """Copies of a clip under one speaker say no more than the clip."""
    values = np.random.default_rng(1).standard_normal((30, 1, 2))
    alone = _averages(values, np.arange(30), ji.Resampling())
    copies = _averages(np.repeat(values, 5, axis=0), np.repeat(np.arange(30), 5), ji.Resampling())
    for name in ("mean", "low", "high"):
        np.testing.assert_allclose(copies[name], alone[name], rtol=1e-12)


def test_the_top_cells_come_first():
    mean = np.array([[[0.1, 0.9], [np.nan, 0.5]]])
    axes = ("group", "component", "layer")
    summary = xarray.Dataset(
        dict.fromkeys(("mean", "low", "high"), (axes, mean)) | {"questions": ("group", [3])},
        {"group": ["last"], "component": ["a", "b"], "layer": [0, 1]},
    )
    cells = top_cells(summary, 10)
    assert [cell["mean"] for cell in cells] == [0.9, 0.5, 0.1]
    assert cells[0] | {"mean": 0, "low": 0, "high": 0} == {
        "group": "last", "component": "a", "layer": 1, "mean": 0, "low": 0, "high": 0,
        "questions": 3,
    }  # fmt: skip


def test_the_command_writes_a_store_a_table_and_a_picture(swept, tmp_path, invoke):
    options = ("--out", tmp_path, "--top", 3, "--format", "png,svg")
    code, out, _ = invoke("aggregate", swept, "--by", "speaker", *options)
    assert code == 0
    assert out.count("%") >= 6
    assert (tmp_path / "aggregate_speaker.png").read_bytes().startswith(PNG)
    assert ET.parse(tmp_path / "aggregate_speaker.svg").getroot().tag.endswith("}svg")
    for ending in ("png", "svg"):
        assert f"{tmp_path / 'aggregate_speaker'}.{ending}" in out
    assert ji.open_dataset(tmp_path / "aggregate_speaker.zarr").sizes["value"] == 2
    words = write_table(tmp_path / "kinds.tsv", [{"value": "b", "class": "short"}])
    asked = ("--by", "asked_word", "--classes")
    code, out, _ = invoke("aggregate", swept, *asked, words, "--out", tmp_path)
    assert code == 0
    assert "short" in out
    summary = ji.open_dataset(tmp_path / "aggregate_asked_word_kinds.zarr")
    assert summary["value"].values.tolist() == ["other", "short"]
    for arguments, message in (
        ((*asked, swept.parent / "clips.tsv"), "has no column 'value': give columns value and"),
        (("--classes", words), "name the column with by"),
        (("--metric", "rank"), "no metric 'rank'"),
        (("--by", "age"), "no column 'age'"),
        (("--unit", "age"), "no column 'age'"),
        (("--level", "2"), "between 0 and 1"),
    ):
        code, _, errors = invoke("aggregate", swept, "--out", tmp_path / "other", *arguments)
        assert code == 2
        assert message in errors
    code, _, errors = invoke("aggregate", tmp_path)
    assert code == 2
    assert "no store of a data-set sweep" in errors


def test_resampling_is_checked():
    with pytest.raises(ji.InputError, match="resamples"):
        dataclasses.replace(ji.Resampling(), n_resamples=0)
