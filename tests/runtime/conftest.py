"""Fixtures: the tiny model with its clips, and an undisturbed sweep of them."""

import pytest

import jaxasr_interp as ji
from helpers.dataset_sweeps import N_CLIPS, swept
from helpers.files import contents, tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    return tiny_folder(tmp_path_factory.mktemp("clips"), tiny_tokenizer, N_CLIPS)


@pytest.fixture(scope="module")
def model(folder):
    return ji.load_model(folder / "model")


@pytest.fixture(scope="module")
def whole(model, folder, tmp_path_factory):
    """The files of one undisturbed sweep in this process."""
    out = tmp_path_factory.mktemp("whole")
    swept(model, folder, out)
    return contents(out)
