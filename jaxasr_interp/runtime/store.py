"""Writing results as JSON and Zarr, completely or not at all, with their provenance."""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxasr_interp._version import __version__
from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.atomic import at_once, beside, gathered, put
from jaxasr_interp.runtime.identity import digest
from jaxasr_interp.runtime.location import locate, reaching, write_files

if TYPE_CHECKING:
    import xarray

    from jaxasr_interp.model.whisper import Whisper

_CHECKSUM = "sha256"

command_line: ContextVar[str] = ContextVar("command_line", default="")
"""The command that runs, as it could be typed; empty where the library is used otherwise."""


def made_by() -> dict[str, str]:
    """Return the attribute of a store that says which command makes it, if one does."""
    command = command_line.get()
    return {"command": command} if command else {}


def provenance(model: "Whisper") -> dict[str, str]:
    """Return what a result depends on: model and hash, sizes, dtype, versions, device and time."""
    return {
        "model": model.source,
        "model_config": json.dumps(dataclasses.asdict(model.config)),
        "dtype": str(model.dtype),
        "jaxasr_interp_version": __version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def file_provenance(**files: str) -> dict[str, str]:
    """Return the name of each file that a result was made from, and the SHA-256 of its content.

    Args:
        files: paths by what they are; one that is no file (`noise`) has no SHA-256.
    """
    attributes = {}
    for name, path in files.items():
        attributes[name] = path
        if Path(path).is_file():
            attributes[f"{name}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return attributes


def reserve(path: Path, overwrite: bool, *, is_file: bool = False) -> None:
    """Make the folder that `path` will be written in.

    Call it before the work, so that no result is lost because its path is bad.

    Args:
        path: of a result.
        overwrite: whether what is there may be replaced.
        is_file: whether the result is a file, not a store or another folder.

    Raises:
        InputError: `path` exists and may not be replaced, or is a folder where a file will be
            written or the reverse; or nothing can be written to its folder.
    """
    if path.exists() and path.is_dir() == is_file:
        there, result = ("folder", "file") if is_file else ("file", "folder")
        raise InputError(f"{path} is a {there}, and the result a {result}: choose another --out.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another --out, or replace it with --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"Nothing can be written to {path.parent}: {error.strerror}.") from None


def save_dataset(
    dataset: "xarray.Dataset", path: Path, model: "Whisper", *, overwrite: bool = False
) -> Path:
    """Write a dataset as a Zarr store with its provenance.

    Args:
        dataset: arrays with named axes.
        path: of the store; it appears complete or not at all.
        model: the model that computed the results.
        overwrite: replace what is at `path`.

    Returns:
        The path.

    Raises:
        InputError: `path` exists.
    """
    return write_dataset(dataset.assign_attrs(provenance(model)), path, overwrite=overwrite)


def write_dataset(dataset: "xarray.Dataset", path: Path, *, overwrite: bool = False) -> Path:
    """Write a dataset as a Zarr store, completely or not at all.

    Raises:
        InputError: `path` exists, or cannot be written.
    """
    from zarr.storage import MemoryStore

    from jaxasr_interp.runtime import checked

    reserve(path, overwrite)
    dataset = dataset.assign_attrs(made_by() | checked.unsealed())
    for name in dataset.variables:
        if dataset[name].dtype.kind == "U":
            # Zarr has a standard for strings of variable length, but not for those of fixed length.
            dataset[name] = dataset[name].astype("T")
    buffers: dict[str, Any] = {}
    dataset.to_zarr(
        MemoryStore(buffers),
        mode="w",
        zarr_format=3,
        consolidated=False,
        write_empty_chunks=True,
        encoding={name: {"compressors": checked.codecs()} for name in dataset.variables},
    )
    with reaching(path), beside(path) as temporary:
        partial = temporary / "new"
        write_files(partial, checked.sealed_files(buffers))
        put(partial, path)
    return path


def open_dataset(path: str | Path) -> "xarray.Dataset":
    """Read a Zarr store that a command or `extract` wrote, and check every byte of what is read.

    Args:
        path: path of the store, or its URL.

    Returns:
        Its arrays with named axes; values are read when they are used.

    Raises:
        InputError: there is no such store, or it is incomplete or damaged. Damaged values raise
            it when they are used.
    """
    import xarray

    from jaxasr_interp.runtime import checked

    location = locate(path)
    checked.read_attributes(location)
    store: Any = checked.CheckedStore(location, read_only=True)
    return xarray.open_dataset(store, engine="zarr", consolidated=False, chunks=None)


@contextlib.contextmanager
def together(folder: Path) -> Iterator[None]:
    """Let all results that the block writes appear when it has ended or, if anything fails, none.

    What they replace stays until then. Work that goes on from files of its own is done before.

    Args:
        folder: the folder of the results.

    Raises:
        InputError: the results cannot be written.
    """
    with reaching(folder), gathered(folder):
        yield


@contextlib.contextmanager
def new_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which appears under its name only when the block has ended.

    Args:
        folder: path of the folder.
        overwrite: replace what is at `folder`.

    Raises:
        InputError: the folder exists, or cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists: choose a new folder to save in.")
    with reaching(folder), beside(folder) as temporary:
        partial = temporary / folder.name
        partial.mkdir()
        with at_once():
            yield partial
        put(partial, folder)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a file to write, which takes the place of `path` only when the block has ended.

    Raises:
        InputError: it cannot be written; then nothing is left of it.
    """
    with reaching(path), beside(path) as temporary:
        partial = temporary / path.name
        yield partial
        put(partial, path)


def write_arrays(path: Path, arrays: Any) -> None:
    """Write a tree of arrays as an Orbax checkpoint, in a folder of `new_folder`.

    Raises:
        OSError: it cannot be written.
    """
    import orbax.checkpoint as ocp

    # Orbax fails on a full disk in threads, with messages of their own.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    if size > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with orbax_errors(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, arrays)


@contextlib.contextmanager
def orbax_errors() -> Iterator[None]:
    """Turn any exception from writing by Orbax into an `OSError`, and do not log it.

    Each of its threads logs what it raises, with a traceback.
    """
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # What TensorStore says ends with its settings in brackets.
        raise OSError(str(error).partition(" [")[0]) from error
    finally:
        log.setLevel(level)


def sealed(description: Mapping[str, Any], content: Any) -> dict[str, Any]:
    """Return a description, to be stored as JSON beside arrays, with the checksum of both."""
    return {**description, _CHECKSUM: _checksum(description, content)}


def check_sealed(path: Path, description: Mapping[str, Any], content: Any) -> None:
    """Raise `InputError` unless what was read from `path` is what was written to it."""
    described = {key: value for key, value in description.items() if key != _CHECKSUM}
    if _CHECKSUM not in description:
        raise InputError(f"{path} holds no checksum: it is of an earlier version; make it again.")
    if description[_CHECKSUM] != _checksum(described, content):
        raise InputError(f"{path} is damaged: it is not what was written; make it again.")


def _checksum(description: Mapping[str, Any], content: Any) -> str:
    return digest([json.loads(json.dumps(description)), jax.tree.map(np.asarray, content)])


def write_json(path: Path, content: Any) -> Path:
    """Write `content` as JSON; the file appears complete or not at all."""
    with new_file(path) as partial:
        partial.write_text(to_json(content) + "\n", encoding="utf-8")
    return path


def to_json(content: Any) -> str:
    """Return `content` as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    match content:
        case float():
            return content if math.isfinite(content) else None
        case dict():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
        case _:
            return content
