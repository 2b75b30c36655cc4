"""Disks that are full or read-only, and folders that vanish, at ten moments of each long command.

A moment is one of the command's attempts to write below its --out. The command ends with one
sentence and leaves nothing half-written, and the same command then ends as if nothing had happened.
"""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray

from helpers.files import tiny_folder

MOMENTS = 10
DEFAULT = "sweep", "removed"
"""The case that finds most; the others take minutes."""

COMMANDS = {
    "extract": ["clips.tsv", "--site", "encoder.resid_post:mean", "--no-random"],
    "sweep": ["clips.tsv", "--text", "text", "--metric", "log_prob"],
    "patch": ["0.wav", "noise", "--text", "ab", "--metric", "log_prob", "--csv"],
    "ablate-text": ["clips.tsv", "--site", "decoder.mlp_out@0", "--max-new-tokens", "2"],
    "tuned-lens": ["clips.tsv", "--steps", "2", "--batch-size", "2"],
}
STORES = {
    "extract": "disk/out",
    "sweep": "disk/out/sweep.zarr",
    "patch": "disk/out/sweep.zarr",
    "ablate-text": "disk/out/texts.zarr",
    "tuned-lens": "disk/out/tuned_lens.zarr",
}


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
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if self.folder is None or event not in ("open", "os.mkdir"):
            return
        writes = event == "os.mkdir" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = arguments[0]
        if not writes or not isinstance(path, str | os.PathLike):
            return
        if self.folder not in Path(path).absolute().parents:
            return
        self.attempts += 1
        if self.spoil is not None and self.attempts > self.moment:
            folder, self.folder = self.folder, None
            try:
                self.spoil(first=self.attempts == self.moment + 1)
            finally:
                self.folder = folder

    @contextlib.contextmanager
    def watched(self, folder, moment=-1, spoil=None):
        self.folder, self.attempts, self.moment, self.spoil = folder, 0, moment, spoil
        try:
            yield
        finally:
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
        if first:
            shutil.rmtree(folder / "out", ignore_errors=True)

    return {"full": full, "read_only": read_only, "removed": removed}


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        pytest.param(name, fault, marks=() if (name, fault) == DEFAULT else pytest.mark.slow)
        for name in COMMANDS
        for fault in ("full", "read_only", "removed")
    ],
)
def test_the_same_command_ends_after_the_disk_is_mended(
    place, disk, invoke, request, command, fault
):
    folder, mounted = place
    call = [command, *COMMANDS[command], "--model", "model", "--out", "disk/out"]
    with disk.watched(folder):
        code, _, errors = invoke(*call)
    assert code == 0, errors
    total = disk.attempts
    assert total >= MOMENTS
    expected = results(folder.parent / STORES[command])
    spoil = spoilers(folder, mounted)[fault]
    for moment in sorted({total * i // MOMENTS for i in range(MOMENTS)}):
        shutil.rmtree(folder / "out")
        with disk.watched(folder, moment, spoil):
            code, _, errors = invoke(*call)
        case = f"{command} {fault} at {moment} of {total}: {errors}"
        # Without its folder a command may be able to make it again.
        assert code == 2 or (fault == "removed" and code == 0), case
        assert errors.count("\n") == (code == 2), case
        assert errors.startswith("error: ") == (code == 2), case
        (folder / "other").unlink(missing_ok=True)
        assert not [path for path in folder.rglob("*") if is_half_written(path)], case
        if code == 2:
            code, _, errors = invoke(*call)
            assert code == 0, f"again, {case}then {errors}"
        assert results(folder.parent / STORES[command]).equals(expected), case


def is_half_written(path):
    return path.name.startswith(".") or path.suffix == ".partial" or "orbax-checkpoint" in path.name


def results(store):
    return xarray.open_zarr(store, consolidated=False).load()
