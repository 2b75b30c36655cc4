"""A Zarr group with one slot for each row of a table, filled unit by unit.

The store is a folder or lies at a URL (`runtime.location`). Units of work write their rows' slots
in any order, and several processes may make and write one store. A row's `done` is written after
its other values, and every chunk is written atomically, so that interrupted work resumes with the
units that are not done. Two processes that compute one unit write the same bytes. Every byte is
checked when it is read (`runtime.checked`).
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Shaped

from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.identity import check_identity
from jaxasr_interp.runtime.location import (
    ROOT,
    Location,
    create,
    exists,
    reaching,
    read_root,
    remove,
)
from jaxasr_interp.runtime.store import made_by

if TYPE_CHECKING:
    import zarr

_EMPTY_CHUNKS: Any = {"write_empty_chunks": True}
_LARGEST_CHUNK = 1 << 25
_SECONDS_TO_WRITE = 60


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of the store.

    Attributes:
        axes: names of the axes after the rows' axis.
        shape: sizes of these axes.
        dtype: dtype of the values; `"T"` for text.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrays of a store.

    Attributes:
        kind: kind of work whose results it holds, such as `"extraction"`.
        rows: number of rows.
        rows_per_chunk: number of rows that share a chunk; no two units write one chunk.
        variables: arrays that the units write.
        known: arrays that are written when the store is made, with the names of their axes.
        attributes: attributes of the store.
    """

    kind: str
    rows: int
    rows_per_chunk: int
    variables: Mapping[str, Variable]
    known: Mapping[str, tuple[tuple[str, ...], Shaped[np.ndarray, "..."]]]
    attributes: Mapping[str, Any]


class SlotStore:
    """A store that is being filled; see `open_slots`.

    Args:
        path: path of the store, or its URL.
    """

    def __init__(self, path: Location):
        import zarr

        from jaxasr_interp.runtime.checked import CheckedStore, SteadyStore

        self.path = path
        with reaching(path):
            checked = CheckedStore(path, read_only=True)
            try:
                read = zarr.open_group(checked, mode="r", use_consolidated=False)
                written = zarr.open_group(SteadyStore(path), mode="r+", use_consolidated=False)
            except FileNotFoundError:
                # What opens it to write makes its folder if that is missing.
                self._check_present()
                raise
        self._arrays = functools.cache(lambda name: self._array(read, name))
        self._slots = functools.cache(lambda name: _with_empty_chunks(self._array(written, name)))

    @property
    def done(self) -> Bool[np.ndarray, " row"]:
        """Whether each row is done."""
        return self.read("done")

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Path of every clip that was left out, and the reason; of rows that are done."""
        done = np.flatnonzero(self.done)
        paths = self.read("path")[done]
        problems = np.asarray(self._arrays("problem").oindex[done])
        left_out = np.flatnonzero(problems != "")
        return [(str(paths[i]), str(problems[i])) for i in left_out]

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """Read an array."""
        return np.asarray(self._arrays(name)[...])

    def is_done(self, rows: Sequence[int]) -> bool:
        """Tell whether some rows are done by now; another process may have written them."""
        return all(np.all(self._arrays("done")[start:stop]) for start, stop in _runs(rows))

    def write(
        self, rows: Sequence[int], arrays: Mapping[str, Shaped[np.ndarray, "row ..."]]
    ) -> None:
        """Fill the slots of some rows, and then mark them as done.

        Args:
            rows: numbers of the rows.
            arrays: values of the rows in the same order; further values are left out.

        Raises:
            InputError: they cannot be written, or the store has been removed.
        """
        written = {**arrays, "done": np.ones(len(rows), bool)}
        self._check_present()
        try:
            for name, values in written.items():
                array, first = self._slots(name), 0
                for start, stop in _runs(rows):
                    array[start:stop] = values[first : first + stop - start]
                    first += stop - start
        finally:
            self._check_present()

    def _array(self, group: "zarr.Group", name: str) -> "zarr.Array":
        try:
            return cast("zarr.Array", group[name])
        except KeyError:
            self._check_present()
            raise InputError(f"{self.path} is damaged: it has no {name}; make it again.") from None

    def _check_present(self) -> None:
        """Raise `InputError` if the store has been removed."""
        if isinstance(self.path, Path) and not (self.path / ROOT).exists():
            raise InputError(
                f"{self.path} was removed while it was written: the same call begins anew."
            )

    def tidy(self) -> None:
        """Remove files that processes which were killed have left half-written."""
        # At a URL nothing is half-written.
        for torn in self.path.rglob("*.partial") if isinstance(self.path, Path) else ():
            # What another process writes now may get its name meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - torn.stat().st_mtime > _SECONDS_TO_WRITE:
                    torn.unlink()


def open_slots(
    path: Location,
    layout: Layout,
    identity: Mapping[str, str],
    *,
    overwrite: bool = False,
    must_exist: bool = False,
) -> SlotStore:
    """Make a store, or open the one of the same work.

    Args:
        path: path of the store, or its URL.
        layout: its arrays.
        identity: hashes of everything that the numbers depend on.
        overwrite: replace an existing store.
        must_exist: only open what is there.

    Raises:
        InputError: `path` holds the store of other work, or no such store.
    """
    from jaxasr_interp.runtime.checked import DONE

    there = exists(path)
    if must_exist and not there:
        raise InputError(f"There is no Zarr store at {path}.")
    if overwrite or not there:
        if there and not _holds(path, layout.kind):
            raise InputError(f"{path} is no store of {_a(layout.kind)}: choose another --out.")
        content = _make(layout, identity)
        if there:
            remove(path, DONE)
        create(path, content)
    check_identity(path, read_identity(path, layout.kind), identity, layout.kind)
    return SlotStore(path)


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Group consecutive numbers, in the order in which they come, into `(start, stop)`."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and runs[-1][1] == row:
            runs[-1] = runs[-1][0], row + 1
        else:
            runs.append((row, row + 1))
    return runs


def read_identity(path: Location, kind: str) -> dict[str, str]:
    """Read the hashes of everything that the numbers of a store depend on.

    Raises:
        InputError: `path` holds no store of this kind of work, or a damaged one.
    """
    from jaxasr_interp.runtime.checked import read_attributes

    if not _holds(path, kind):
        raise InputError(f"{path} is no store of {_a(kind)}.")
    return json.loads(read_attributes(path)[kind])


def _holds(path: Location, kind: str) -> bool:
    """Tell whether `path` holds a store of this kind of work, finished or not."""
    return f'"{kind}"'.encode() in (read_root(path) or b"")


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _make(layout: Layout, identity: Mapping[str, str]) -> dict[str, bytes]:
    """Make the files of a new store, by key; only its known arrays have chunks."""
    import zarr
    from zarr.storage import MemoryStore

    from jaxasr_interp.runtime.checked import DONE, codecs, sealed_files, unsealed

    buffers: dict[str, Any] = {}
    kept = {layout.kind: json.dumps(identity)}
    attributes = {**layout.attributes, **made_by(), **kept, **unsealed()}
    group = zarr.create_group(MemoryStore(buffers), zarr_format=3, attributes=attributes)
    for name, (axes, data) in layout.known.items():
        group.create_array(
            name, data=data, dimension_names=axes, compressors=codecs(), config=_EMPTY_CHUNKS
        )
    for name, variable in {**layout.variables, DONE: Variable((), (), "bool")}.items():
        group.create_array(
            name,
            shape=(layout.rows, *variable.shape),
            chunks=_chunks(min(layout.rows_per_chunk, layout.rows), variable),
            dtype=np.dtypes.StringDType() if variable.dtype == "T" else variable.dtype,
            fill_value=_EMPTY[np.dtype(variable.dtype).kind],
            dimension_names=("clip", *variable.axes),
            compressors=codecs(),
        )
    return sealed_files(buffers)


def _with_empty_chunks(array: Any) -> "zarr.Array":
    """Return an array that writes all chunks, so that a missing one is known to be lost.

    The setting is the array's own: zarr's settings are shared by all threads.
    """
    import zarr

    return zarr.Array(zarr.AsyncArray(array.metadata, array.store_path, _EMPTY_CHUNKS))


_EMPTY = {"f": np.nan, "i": 0, "b": False, "T": ""}


def _chunks(n_rows: int, variable: Variable) -> tuple[int, ...]:
    """Return the chunk shape: some rows, in single layers if all would be too large."""
    if variable.dtype == "T" or variable.axes[:1] != ("layer",):
        return (n_rows, *variable.shape)
    whole = n_rows * int(np.prod(variable.shape)) * np.dtype(variable.dtype).itemsize
    return (n_rows, variable.shape[0] if whole <= _LARGEST_CHUNK else 1, *variable.shape[1:])
