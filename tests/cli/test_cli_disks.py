"""Disks that are full or read-only, and folders that vanish, at ten moments of each long command.

A moment is one of the command's attempts to write below its --out. The command ends with one
sentence and leaves nothing half-written, and the same command then ends as if nothing had happened.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import xarray
from safetensors.numpy import load_file, save_file

from helpers.files import contents, tiny_folder

MOMENTS = 10
FAULTS = "full", "read_only", "removed"
DEFAULT = "sweep", "removed"
"""The case that finds most; the others take minutes."""

MODEL = "--model", "model"
PAIR = "0.wav", "noise", "--text", "ab", "--metric", "logit_diff", "--csv", *MODEL
FOLDER, FILE = "disk/out", "disk/out/texts.json"

GOES_ON = {
    "extract": ["clips.tsv", "--site", "encoder.resid_post:mean", "--no-random", *MODEL],
    "sweep": ["clips.tsv", "--text", "text", "--metric", "log_prob", *MODEL],
    "tuned-lens": ["clips.tsv", "--steps", "2", "--batch-size", "2", *MODEL],
}
"""Commands that go on with what is done of their --out, and empty it first with --overwrite."""

WRITES_AT_THE_END = {
    "ablate": ["0.wav", "--text", "ab", "--site", "decoder.mlp_out@0", "--csv", *MODEL],
    "ablate-text": ["clips.tsv", "--site", "decoder.mlp_out@0", "--max-new-tokens", "2", *MODEL],
    "aggregate": ["swept", "--csv"],
    "attribution": [*PAIR, "--exact"],
    "demo": [],
    "encoder-lens": ["0.wav", "--max-new-tokens", "2", "--csv", *MODEL],
    "lens": ["0.wav", "--text", "ab", "--attribution", "--csv", *MODEL],
    "patch": [*PAIR],
    "probe": ["activations.zarr", "--target", "speaker", "--folds", "3", "--csv"],
    "similarity": ["activations.zarr", "--csv"],
    "study": ["repetition", "clips.tsv", "clips.tsv", "--max-new-tokens", "16", *MODEL],
    "transcribe": ["0.wav", *MODEL],
}
"""Commands whose results appear when all of them are there."""

COMMANDS = GOES_ON | WRITES_AT_THE_END

_ACTIVATIONS = ["extract", "clips.tsv", "--site", "encoder.resid_post:mean", "--no-random"]
_ACTIVATIONS += ["--snr", "10", "--snr", "0", "--out", "activations.zarr", *MODEL]
BEFORE = {
    "aggregate": ["sweep", "clips.tsv", "--text", "text", "--out", "swept", *MODEL],
    "probe": _ACTIVATIONS,
    "similarity": _ACTIVATIONS,
}
"""Commands that make what others read."""


class Disk:
    """Watches what is written below a folder, and spoils one attempt and, perhaps, those after it.

    Attributes:
        folder: the folder.
        attempts: how many attempts there have been to write below it.
        moment: number of the attempt that is spoiled.
        spoil: what is done then; `None` to spoil nothing.
    """

    def __init__(self):
        self.folder, self.attempts, self.moment, self.spoil = None, 0, -1, None
        # Threads that write may outlive the command: none spoils anything behind its end.
        self.lock, self.own = threading.Lock(), threading.local()
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if event not in ("open", "os.mkdir") or getattr(self.own, "spoils", False):
            return
        writes = event == "os.mkdir" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = arguments[0]
        if not writes or not isinstance(path, str | os.PathLike):
            return
        with self.lock:
            if self.folder is None or self.folder not in Path(path).absolute().parents:
                return
            self.attempts += 1
            if self.spoil is not None and self.attempts > self.moment:
                self.own.spoils = True
                try:
                    self.spoil(first=self.attempts == self.moment + 1)
                finally:
                    self.own.spoils = False

    @contextlib.contextmanager
    def watched(self, folder, moment=-1, spoil=None):
        self.folder, self.attempts, self.moment, self.spoil = folder, 0, moment, spoil
        try:
            yield
        finally:
            with self.lock:
                self.folder = None


@pytest.fixture(scope="module")
def disk():
    return Disk()


@pytest.fixture
def place(tmp_path, tiny_tokenizer):
    """The tiny model, three short clips, and a small disk of their own for results if possible."""
    tiny_folder(tmp_path, tiny_tokenizer, 3)
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / "disk")]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    yield tmp_path / "disk", mounted
    if mounted:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def spoilers(folder, mounted):
    """What happens to a disk: it fills up, is mounted read-only, or loses the folder of results."""

    def full(first):
        if not mounted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with contextlib.suppress(OSError), (folder / "other").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def read_only(first):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def removed(first):
        # Moved first: a thread that writes meanwhile would keep parts of it from being removed.
        if first and (folder / "out").exists():
            (folder / "out").rename(folder / "removed")
            shutil.rmtree(folder / "removed")

    return {"full": full, "read_only": read_only, "removed": removed}


def marks(command, by_default):
    """What runs by default is not slow; the demo needs the real model."""
    real = [pytest.mark.real] if command == "demo" else []
    return real if by_default else [*real, pytest.mark.slow]


def prepared(command, folder, invoke):
    """Make what a command reads; return the command as it is called."""
    if command in BEFORE:
        code, _, errors = invoke(*BEFORE[command])
        assert code == 0, errors
    if command == "study":
        says_one_letter(folder / "model" / "model.safetensors")
    out = FILE if command == "transcribe" else FOLDER
    return [command, *COMMANDS[command], "--out", out]


def says_one_letter(weights):
    """Change a model so that it writes one letter again and again."""
    changed = load_file(weights)
    embedding, letter = changed["model.decoder.embed_tokens.weight"], 1
    assert (embedding @ embedding[letter]).argmax() == letter
    changed["model.decoder.layer_norm.weight"][:] = 0
    changed["model.decoder.layer_norm.bias"][:] = 10 * embedding[letter]
    save_file(changed, weights)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        pytest.param(name, fault, marks=marks(name, (name, fault) == DEFAULT))
        for name in COMMANDS
        for fault in FAULTS
    ],
)
def test_the_same_command_ends_after_the_disk_is_mended(place, disk, invoke, command, fault):
    folder, mounted = place
    call = prepared(command, folder.parent, invoke)
    with disk.watched(folder):
        code, _, errors = invoke(*call)
    assert code == 0, errors
    total = disk.attempts
    assert total >= MOMENTS or command == "transcribe"
    expected = results(folder / "out")
    assert expected
    spoil = spoilers(folder, mounted)[fault]
    for moment in sorted({total * i // MOMENTS for i in range(MOMENTS)}):
        shutil.rmtree(folder / "out")
        with disk.watched(folder, moment, spoil):
            code, _, errors = invoke(*call)
        case = f"{command} {fault} at {moment} of {total}: {errors}"
        # Without its folder a command may be able to make it again.
        assert code == 2 or (fault == "removed" and code == 0), case
        check_one_sentence(code, errors, case)
        (folder / "other").unlink(missing_ok=True)
        assert not [path for path in folder.rglob("*") if is_half_written(path)], case
        if code == 2:
            code, _, errors = invoke(*call)
            assert code == 0, f"again, {case}then {errors}"
        found = results(folder / "out")
        assert found.keys() == expected.keys(), case
        assert all(same(found[name], expected[name]) for name in expected), case


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=marks(name, by_default=name == "encoder-lens"))
        for name in WRITES_AT_THE_END
    ],
)
def test_results_that_are_overwritten_stay_until_all_is_there(place, disk, invoke, command):
    folder, _ = place
    call = prepared(command, folder.parent, invoke)
    code, _, errors = invoke(*call)
    assert code == 0, errors
    # The demo always replaces what it wrote.
    again = call if command == "demo" else [*call, "--overwrite"]
    with disk.watched(folder):
        code, _, errors = invoke(*again)
    assert code == 0, errors
    total, before = disk.attempts, contents(folder / "out")
    spoil = spoilers(folder, mounted=False)["full"]
    for moment in (total // 2, total * 9 // 10):
        with disk.watched(folder, moment, spoil):
            code, _, errors = invoke(*again)
        case = f"{command} at {moment} of {total}: {errors}"
        assert code == 2, case
        check_one_sentence(code, errors, case)
        kept = contents(folder / "out")
        assert {name: kept.get(name) for name in before} == before, case
        assert not [path for path in folder.rglob("*") if is_half_written(path)], case
        # What a command goes on from is used up, so that the next attempt writes as much.
        code, _, errors = invoke(*again)
        assert code == 0, f"again, {case}then {errors}"
        before = contents(folder / "out")


def check_one_sentence(code, errors, case):
    assert errors.count("\n") == (code == 2), case
    assert errors.startswith("error: ") == (code == 2), case


def is_half_written(path):
    return path.name.startswith(".") or path.suffix == ".partial" or "orbax-checkpoint" in path.name


def results(out):
    """The stores and JSON files below a folder, by path."""
    stores = {path.parent for path in out.rglob("zarr.json")}
    files = [
        path
        for path in out.rglob("*.json")
        if not stores.intersection(path.parents) and "probes" not in path.parts
    ]
    return {path: json.loads(path.read_text()) for path in files} | {
        path: xarray.open_zarr(path, consolidated=False).load()
        for path in stores
        if path.parent not in stores
    }


def same(found, expected):
    return found.equals(expected) if isinstance(expected, xarray.Dataset) else found == expected
