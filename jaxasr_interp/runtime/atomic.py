"""Files and folders that appear whole: written in a hidden folder beside, and then renamed."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

_PRESENT = "present"


class _Gathered:
    """What waits for the end of a block of `gathered`: the complete files and folders by path."""

    def __init__(self, temporary: Path):
        self.temporary = temporary
        self.complete: dict[Path, Path] = {}

    def add(self, partial: Path, path: Path) -> None:
        self.complete[path] = partial.rename(self.temporary / f"new{len(self.complete)}")


_gathered: ContextVar[_Gathered | None] = ContextVar("gathered", default=None)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a temporary folder on the disk of `path`, for `put`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        (Path(temporary) / _PRESENT).touch()
        yield Path(temporary)


def check_present(temporary: Path) -> None:
    """Raise `FileNotFoundError` if a folder of `beside` has been removed, and perhaps made again.

    What writes arrays makes the folders that it misses, so that only a part would be there.
    """
    if not (temporary / _PRESENT).exists():
        raise FileNotFoundError(errno.ENOENT, "It was removed while it was written", str(temporary))


def put(partial: Path, path: Path) -> None:
    """Give what is complete in a folder of `beside` its name, now or at the end of `gathered`.

    Raises:
        OSError: a folder is where a file would be, or the reverse; or it cannot be written.
    """
    check_present(partial.parent)
    if path.exists() and path.is_dir() != partial.is_dir():
        code = errno.EISDIR if path.is_dir() else errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(path))
    gathered = _gathered.get()
    if gathered is not None:
        gathered.add(partial, path)
    elif path.is_dir():
        _replace_all({path: partial}, partial.parent)
    else:
        partial.replace(path)


@contextlib.contextmanager
def gathered(folder: Path) -> Iterator[None]:
    """Let `put` wait for the end of the block, and then do all or, if anything fails, nothing.

    Args:
        folder: on the disk of all that is put.
    """
    with beside(folder / "results") as temporary:
        waiting = _Gathered(temporary)
        with _putting(waiting):
            yield
        check_present(temporary)
        _replace_all(waiting.complete, temporary)


def at_once() -> contextlib.AbstractContextManager[None]:
    """Let `put` not wait for the end of `gathered`: what it puts is part of a larger whole."""
    return _putting(None)


@contextlib.contextmanager
def _putting(how: _Gathered | None) -> Iterator[None]:
    before = _gathered.set(how)
    try:
        yield
    finally:
        _gathered.reset(before)


def _replace_all(complete: Mapping[Path, Path], temporary: Path) -> None:
    """Rename everything to its path, and keep what was there until all is done."""
    with contextlib.ExitStack() as undo:
        for number, (path, new) in enumerate(complete.items()):
            if path.exists():
                old = path.rename(temporary / f"old{number}")
                undo.callback(old.rename, path)
            new.rename(path)
            undo.callback(path.rename, new)
        undo.pop_all()
