"""A data-set sweep that is killed at any moment and called again leaves the same bytes."""

import random
import signal
import subprocess
import sys
import time

import pytest

from helpers.datasets import make_folder
from helpers.files import contents

# Many questions of two lengths, as every process compiles the programs of each.
TEXTS = ("a b", "c d", "b a", "d c", "a c", "c a", "b d", "d b")


def wait_for_a_unit(process, out):
    """Wait until the process has written something new, or has ended."""
    chunks = out / "sweep.zarr" / "patched" / "c"
    before = len(list(chunks.glob("*")))
    while process.poll() is None and len(list(chunks.glob("*"))) == before:
        time.sleep(0.002)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills, tmp_path, tiny_tokenizer):
    folder = make_folder(tmp_path / "data", tiny_tokenizer, TEXTS)
    command = [sys.executable, "-m", "jaxasr_interp", "sweep", str(folder / "clips.tsv")]
    command += ["--model", str(folder / "model"), "--text", "text", "--word", "each", "--out"]
    # A store says which command made it: both have the same.
    undisturbed, out = (tmp_path / name / "out" for name in ("whole", "killed"))

    def start(out):
        out.parent.mkdir(exist_ok=True)
        return subprocess.Popen([*command, out.name], cwd=out.parent, stderr=subprocess.PIPE)

    whole = start(undisturbed)
    assert whole.wait() == 0, whole.stderr.read()
    whole.stderr.close()
    moments, killed = random.Random(0), 0
    while True:
        process = start(out)
        if killed < kills:
            wait_for_a_unit(process, out)
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
        code, errors = process.wait(), process.stderr.read().decode()
        process.stderr.close()
        if code == 0:
            break
        assert code == -signal.SIGKILL, errors
        killed += 1
    assert killed > 0
    for torn in out.rglob("*.partial"):
        torn.unlink()
    assert contents(undisturbed) == contents(out)
