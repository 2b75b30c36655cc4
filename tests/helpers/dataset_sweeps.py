"""Small data-set sweeps: of the tiny model on generated clips, here and in other processes."""

import os
import subprocess
import sys
import time

from jaxasr_interp.patching.dataset import sweep_dataset
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.runtime.runner import RunOptions

N_CLIPS = 20
OPTIONS = DatasetOptions(text="text")
SHARING = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
"""The environment of other processes: most programs are compiled in one of them."""

_PROGRAM = """
import sys
from pathlib import Path
import jaxasr_interp as ji
from jaxasr_interp.patching.dataset import sweep_dataset
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.runtime.runner import RunOptions, Share
folder, out, share, scheduler = sys.argv[1:]
run = RunOptions(share=Share.parse(share), scheduler=scheduler or None)
model = ji.load_model(Path(folder, "model"))
print("ready", flush=True)
sys.stdin.readline()
options = DatasetOptions(text="text")
done = sweep_dataset(model, Path(folder, "clips.tsv"), out, options=options, run=run)
print(done.done)
"""


def swept(model, folder, out, *, on_progress=None, **run):
    """Sweep the clips of a folder, on one device as other processes do."""
    return sweep_dataset(
        model,
        folder / "clips.tsv",
        out,
        options=OPTIONS,
        run=RunOptions(**{"devices": 1} | run),
        on_progress=on_progress,
    )


def process(*arguments):
    """Start a Python process that says on its standard output how it goes."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=SHARING,
    )


def sweeping(folder, out, *, share="1/1", scheduler=""):
    """Start a process that loads the model, and sweeps once `go` is called with it."""
    return process("-c", _PROGRAM, str(folder), str(out), share, scheduler)


def go(started):
    """Let a process of `sweeping` begin."""
    said = started.stdout.readline()
    if said != "ready\n":
        started.kill()
        raise AssertionError(said + started.stdout.read())
    started.stdin.write("\n")
    started.stdin.flush()


def end(started):
    """End a process, and release its pipes."""
    started.kill()
    started.wait()
    started.stdin.close()
    started.stdout.close()


def wait_until(met, seconds=120):
    """Wait until a condition is met."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)
