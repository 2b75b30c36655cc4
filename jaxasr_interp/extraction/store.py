"""The activation store: a Zarr group with one slot for each clip, filled batch by batch.

A batch's `done` is written after its arrays, and every chunk is written atomically, so that
interrupted work resumes with the first batch that is not done. Every byte is checked when it is
read (`runtime.checked`).
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.identity import check_identity
from jaxasr_interp.runtime.store import reserve

if TYPE_CHECKING:
    import zarr

_IDENTITY = "extraction"
_LARGEST_CHUNK = 1 << 25


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of the store.

    Attributes:
        axes: names of the axes after `clip`.
        shape: sizes of these axes.
        dtype: dtype of the values; `"T"` for text.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class ActivationStore:
    """A store that is being filled.

    Args:
        path: path of the store.
        batch_size: number of clips in a batch.
    """

    def __init__(self, path: Path, batch_size: int):
        import zarr

        from jaxasr_interp.runtime.checked import CheckedStore

        self.path, self.batch_size = path, batch_size
        self._group = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
        self._checked = zarr.open_group(CheckedStore(path, read_only=True), mode="r")

    @property
    def done(self) -> np.ndarray:
        """Whether each clip is done."""
        return self._read("done")

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Path of every clip that was left out, and the reason."""
        paths, problems = self._read("path"), self._read("problem")
        left_out = np.flatnonzero(problems != "")
        return [(str(paths[i]), str(problems[i])) for i in left_out]

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Fill the slots of one batch, and then mark them as done."""
        import zarr

        # Empty chunks are written too, so that a missing chunk is known to be lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in {**arrays, "done": np.ones(self.batch_size, bool)}.items():
                array = cast("zarr.Array", self._group[name])
                stop = min(start + self.batch_size, array.shape[0])
                array[start:stop] = values[: stop - start]

    def _read(self, name: str) -> np.ndarray:
        return np.asarray(cast("zarr.Array", self._checked[name])[...])


def open_store(
    path: Path,
    *,
    batch_size: int,
    variables: Mapping[str, Variable],
    labels: Mapping[str, Sequence[str]],
    coordinates: Mapping[str, Sequence[int] | Sequence[str]],
    identity: Mapping[str, Any],
    attributes: Mapping[str, Any],
    overwrite: bool,
) -> ActivationStore:
    """Make a store, or open the unfinished one of the same extraction.

    Args:
        path: path of the store.
        batch_size: number of clips in a batch.
        variables: arrays that will be written.
        labels: text of each clip, by column.
        coordinates: coordinates of axes, by name.
        identity: hashes of everything that the numbers depend on.
        attributes: further attributes of the store.
        overwrite: replace an existing store.

    Raises:
        InputError: `path` holds the store of another extraction, or no activation store.
    """
    if path.exists() and not overwrite:
        check_identity(path, read_identity(path), identity, "extraction")
        for torn in path.rglob("*.partial"):
            torn.unlink()
        return ActivationStore(path, batch_size)
    if path.exists() and not _is_activation_store(path):
        raise InputError(f"{path} is no activation store: choose another --out.")
    reserve(path, overwrite)
    fresh = path.with_name(f".{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _make(
        fresh,
        batch_size,
        variables,
        labels,
        coordinates,
        {**attributes, _IDENTITY: json.dumps(identity)},
    )
    if path.exists():
        shutil.rmtree(path)
    fresh.rename(path)
    return ActivationStore(path, batch_size)


def _make(
    path: Path,
    batch_size: int,
    variables: Mapping[str, Variable],
    labels: Mapping[str, Sequence[str]],
    coordinates: Mapping[str, Sequence[int] | Sequence[str]],
    attributes: Mapping[str, Any],
) -> None:
    import zarr

    from jaxasr_interp.runtime.checked import codecs, seal, unsealed

    n_clips = len(next(iter(labels.values())))
    given = {name: (np.asarray(values, "T"), ("clip",)) for name, values in labels.items()}
    for name, values in coordinates.items():
        given[name] = np.asarray(values, "T" if isinstance(values[0], str) else None), (name,)
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.create_group(path, zarr_format=3, attributes={**attributes, **unsealed()})
        for name, (data, axes) in given.items():
            group.create_array(name, data=data, dimension_names=axes, compressors=codecs())
        for name, variable in {**variables, "done": Variable((), (), "bool")}.items():
            array = group.create_array(
                name,
                shape=(n_clips, *variable.shape),
                chunks=_chunks(min(batch_size, n_clips), variable),
                dtype=np.dtypes.StringDType() if variable.dtype == "T" else variable.dtype,
                fill_value=_EMPTY[np.dtype(variable.dtype).kind],
                dimension_names=("clip", *variable.axes),
                compressors=codecs(),
            )
            if name == "done":
                array[...] = False
    seal(path)


_EMPTY = {"f": np.nan, "i": 0, "b": False, "T": ""}


def _chunks(n_clips: int, variable: Variable) -> tuple[int, ...]:
    """Return the chunk shape: a batch's clips, in single layers if all would be too large."""
    if variable.dtype == "T" or variable.axes[:1] != ("layer",):
        return (n_clips, *variable.shape)
    whole = n_clips * int(np.prod(variable.shape)) * np.dtype(variable.dtype).itemsize
    return (n_clips, variable.shape[0] if whole <= _LARGEST_CHUNK else 1, *variable.shape[1:])


def read_identity(path: Path) -> dict[str, Any]:
    """Read the hashes of everything that the numbers of a store depend on.

    Raises:
        InputError: `path` holds no activation store, or a damaged one.
    """
    from jaxasr_interp.runtime.checked import read_attributes

    if not _is_activation_store(path):
        raise InputError(f"{path} is no activation store: make one with extract.")
    return json.loads(read_attributes(path)[_IDENTITY])


def _is_activation_store(path: Path) -> bool:
    """Tell whether `path` holds an activation store, finished or not."""
    try:
        return f'"{_IDENTITY}"'.encode() in (path / "zarr.json").read_bytes()
    except OSError:
        return False
