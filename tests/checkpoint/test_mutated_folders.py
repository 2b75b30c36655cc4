"""Damaged checkpoint folders give a model or one sentence, and take little memory and time."""

import shutil
import subprocess
import sys

import pytest

import jaxasr_interp as ji
from helpers import mutating
from helpers.golden import GOLDEN


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """One folder for each kind of checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch_files = GOLDEN / "torch_files"
    settings = [GOLDEN / "tiny_random" / f"{n}.json" for n in ("config", "generation_config")]
    files = {
        "safetensors": [GOLDEN / "tiny_random" / "model.safetensors", *settings],
        "bin": [torch_files / "pytorch_model.bin", *settings],
        "shards": [*torch_files.glob("pytorch_model*-*"), *settings],
        "openai": [torch_files / "openai.pt"],
        "ctranslate2": [*(GOLDEN / "tiny_random_ct2" / "int8_float32").iterdir()],
    }
    files["shards"].append(torch_files / "pytorch_model.bin.index.json")
    for kind, paths in files.items():
        (folder / kind).mkdir()
        for path in [*paths, tiny_tokenizer.path]:
            shutil.copy(path, folder / kind)
    model = ji.load_model(folder / "safetensors")
    ji.save_model(model, folder / "saved")
    return folder


def load_damaged(folders, first, end):
    command = [sys.executable, mutating.__file__, str(folders), str(first), str(end)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("all loaded\n"), done.stdout[-2000:] + done.stderr[-4000:]


def test_damaged_folders_give_a_model_or_one_sentence(folders):
    load_damaged(folders, 0, 30)


@pytest.mark.slow
def test_many_more_damaged_folders(folders):
    load_damaged(folders, 30, 230)
