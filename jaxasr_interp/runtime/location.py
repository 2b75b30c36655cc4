"""Where stores lie: a folder, or a URL of an object store such as S3, reached through fsspec."""

import contextlib
import re
import shutil
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.atomic import beside, check_present

if TYPE_CHECKING:
    from zarr.abc.store import Store

type Location = Path | str
"""The path of a folder, or a URL."""

ROOT = "zarr.json"
"""The key that a new store gets last: where it is, the store is whole."""

# Other processes write the same store, so what a folder holds is asked for every time.
_OPTIONS = {"use_listings_cache": False}


def locate(where: str | Path) -> Location:
    """Read where a store lies.

    Args:
        where: a path, or a URL such as `s3://bucket/path`, `gs://bucket/path`, `memory://name` or
            `file:///folder`.

    Returns:
        The path, or the URL if it names no local file.
    """
    if not isinstance(where, str) or not re.match(r"[a-z][a-z0-9+.-]*://", where):
        return Path(where)
    if where.startswith("file://"):
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(where).path))
    return where.rstrip("/")


def within(location: Location, name: str) -> Location:
    """Return the location of something inside."""
    return location / name if isinstance(location, Path) else f"{location}/{name}"


def zarr_store(location: Location, *, read_only: bool) -> "Store":
    """Give zarr's access to the keys of a store."""
    from zarr.storage import FsspecStore, LocalStore

    if isinstance(location, Path):
        return LocalStore(location, read_only=read_only)
    with reaching(location):
        return FsspecStore.from_url(location, storage_options=_OPTIONS, read_only=read_only)


def exists(location: Location) -> bool:
    """Tell whether something is there: any file or folder, or a whole store at a URL."""
    return location.exists() if isinstance(location, Path) else read_root(location) is not None


def read_root(location: Location) -> bytes | None:
    """Read the metadata of a store's group; `None` if there is no store."""
    if isinstance(location, Path):
        try:
            return (location / ROOT).read_bytes()
        except OSError:
            return None
    with reaching(location):
        files, path = _files(location)
        try:
            return files.cat_file(f"{path}/{ROOT}")
        except FileNotFoundError:
            return None


def read_metadata(location: Location) -> dict[str, bytes]:
    """Read the metadata of a store's group and of its arrays, by key."""
    if isinstance(location, Path):
        found = [location / ROOT, *location.glob(f"*/{ROOT}")]
        return {file.relative_to(location).as_posix(): file.read_bytes() for file in found}
    with reaching(location):
        files, path = _files(location)
        names = [str(name).rpartition("/")[2] for name in files.ls(path, detail=False)]
        keys = [ROOT, *(f"{name}/{ROOT}" for name in names if name and name != ROOT)]
        found = files.cat([f"{path}/{key}" for key in keys], on_error="omit")
        return {key: found[f"{path}/{key}"] for key in keys if f"{path}/{key}" in found}


def create(location: Location, content: Mapping[str, bytes]) -> None:
    """Write the files of a new store, which appears whole or not at all.

    If another process has made it meanwhile, that store stays as it is.

    Args:
        location: where nothing is yet.
        content: the files by key, `zarr.json` among them.

    Raises:
        InputError: it cannot be written, or other files lie at the URL.
    """
    with reaching(location):
        if isinstance(location, Path):
            _create_folder(location, content)
            return
        files, path = _files(location)
        # Two processes may be here at once: they write the same, and units only once the root is
        # there.
        kept = _keys(files, path)
        if ROOT in kept:
            return
        if not set(kept) <= set(content):
            raise InputError(f"{location} holds other files: choose another --out.")
        files.pipe({f"{path}/{key}": data for key, data in content.items() if key != ROOT})
        files.pipe_file(f"{path}/{ROOT}", content[ROOT])


def write_files(folder: Path, content: Mapping[str, bytes]) -> None:
    """Write files by their paths in a folder, and make the folders that they need."""
    for key, data in content.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)


def write_file(folder: Path, key: str, content: bytes | memoryview) -> None:
    """Write a file of a store that exists; it appears whole.

    Raises:
        FileNotFoundError: the store's folder has been removed. It is not made again: another thread
            may be about to say that it is gone.
    """
    for part in reversed(Path(key).parents[:-1]):
        (folder / part).mkdir(exist_ok=True)
    path = folder / key
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _create_folder(folder: Path, content: Mapping[str, bytes]) -> None:
    with beside(folder) as temporary:
        fresh = temporary / "new"
        write_files(fresh, content)
        try:
            check_present(temporary)
            fresh.replace(folder)
        except OSError:
            if not (folder / ROOT).exists():
                raise


def remove(location: Location, first: str) -> None:
    """Remove a store.

    Args:
        location: where it lies.
        first: the array that goes first. The root goes last, so that a store that is removed in
            part is known to be none that can be gone on with.
    """
    with reaching(location):
        if isinstance(location, Path):
            shutil.rmtree(location)
            return
        files, path = _files(location)
        order: list[list[str]] = [[], [], []]
        for key in _keys(files, path):
            part = 2 if key == ROOT else not key.startswith(f"{first}/")
            order[part].append(f"{path}/{key}")
        for names in filter(None, order):
            files.rm(names)


@contextlib.contextmanager
def reaching(location: Location) -> Iterator[None]:
    """Say in one sentence why a place cannot be read or written.

    Raises:
        InputError: the block raised anything; at a folder, an `OSError`.
    """
    # What the clients of object stores raise has no class in common.
    kinds = OSError if isinstance(location, Path) else Exception
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise failure(location, error) from None


def failure(location: Location, error: Exception) -> InputError:
    """Return the error that says why a place cannot be read or written."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    extra = "; pip install 'jaxasr-interp[cloud]'" if isinstance(error, ImportError) else ""
    return InputError(
        f"{location} cannot be read or written: {' '.join(reason.split()).rstrip('.')}{extra}. "
        "What is done stays; the same call goes on."
    )


def _files(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url, **_OPTIONS)
    return files, path.rstrip("/")


def _keys(files: Any, path: str) -> list[str]:
    """List all keys below a path; where there are none, a file system may give the path itself."""
    below = f"{path}/"
    return [name.removeprefix(below) for name in files.find(path) if name.startswith(below)]
