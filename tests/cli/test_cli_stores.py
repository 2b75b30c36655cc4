"""What a command says in its store about itself, and the table that it writes beside it."""

import json

import numpy as np
import pandas
import pytest

import jaxasr_interp as ji
from helpers.files import tiny_folder
from jaxasr_interp.speech.clips import VanishedError, find_clips

EXTRACT = ["clips.csv", "--site", "encoder.resid_post:mean", "--seed", "3", "--where", "kind=a b"]


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    rows = (f"{i}.wav,ab,{kind}" for i, kind in enumerate(["a", "a b", "a b", "a b"]))
    tiny_folder(tmp_path, tiny_tokenizer, 4)
    (tmp_path / "clips.csv").write_text("\n".join(["path,text,kind", *rows]) + "\n")
    return tmp_path


def test_a_store_says_which_command_made_it_and_goes_on_under_another(folder, invoke):
    (folder / "2.wav").unlink()
    code, _, errors = invoke("extract", *EXTRACT, "--model", "model", "--out", "a.zarr")
    assert code == 0, errors
    dataset = ji.open_activations(folder / "a.zarr")
    assert dataset.attrs["command"] == (
        "jaxasr-interp extract clips.csv --site encoder.resid_post:mean --seed 3 "
        "--where 'kind=a b' --model model --out a.zarr"
    )
    assert json.loads(dataset.attrs["options"])["random_seed"] == 3
    # The numbers of a clip and of a layer are kept when some are chosen.
    assert dataset["clip"].values.tolist() == [0, 2]
    assert dataset.path.values.tolist() == ["1.wav", "3.wav"]
    some = dataset["encoder.resid_post.mean"].sel(clip=2, layer=1)
    assert str(some.path.values) == "3.wav"
    np.testing.assert_array_equal(some, dataset["encoder.resid_post.mean"].values[1, 1])
    # The same work under another command is done, and stays as it is.
    code, printed, errors = invoke(
        "--quiet",
        "extract",
        *EXTRACT,
        "--model",
        str(folder / "model"),
        "--out",
        "a.zarr",
        "--json",
    )
    assert code == 0, errors
    assert json.loads(printed)["done"] == 3
    assert ji.open_activations(folder / "a.zarr").attrs == dataset.attrs


def test_a_sweep_is_also_written_as_a_table(folder, invoke):
    command = ["patch", "0.wav", "noise:seed=5", "--text", "ab", "--model", "model", "--out", "out"]
    code, _, errors = invoke(*command, "--metric", "log_prob", "--metric", "kl", "--csv")
    assert code == 0, errors
    dataset = ji.open_dataset(folder / "out" / "sweep.zarr")
    assert dataset.attrs["seed"] == 5
    assert dataset.attrs["command"].endswith("--metric log_prob --metric kl --csv")
    table = pandas.read_csv(folder / "out" / "sweep.csv", keep_default_na=False, na_values=[""])
    assert len(table) == dataset.patched.size
    assert {"metric", "layer", "pos", "token", "patched", "recovered", "clean"} < {*table}
    for _, row in table.iterrows():
        cell = dataset.sel(metric=row.metric, layer=row.layer, pos=row.pos)
        np.testing.assert_allclose(row.patched, cell.patched, rtol=1e-6)
        assert row.token == str(cell.token.values)


def test_a_clip_that_vanishes_is_no_clip_that_cannot_be_read(folder):
    clips = find_clips(folder / "clips.csv")
    assert clips.digest(0)
    (folder / "0.wav").rename(folder / "elsewhere.wav")
    with pytest.raises(VanishedError, match=r"0\.wav is gone: bring it back"):
        clips.read(0)
    (folder / "1.wav").unlink()
    with pytest.raises(ji.InputError, match="There is no audio file") as error:
        find_clips(folder / "clips.csv").read(1)
    assert not isinstance(error.value, VanishedError)
