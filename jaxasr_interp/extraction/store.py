"""The activation store: a Zarr group with one slot a clip, filled batch by batch.

A batch's `done` is written after its arrays, and every chunk is written whole or not at all, so
work that is cut off at any moment goes on with the first batch that is not done.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.store import reserve

if TYPE_CHECKING:
    import xarray
    import zarr

_IDENTITY = "extraction"
_LARGEST_CHUNK = 1 << 25


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of the store.

    Attributes:
        axes: behind `clip`.
        shape: their sizes.
        dtype: of the values; `"T"` for text.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class ActivationStore:
    """A store that is being filled.

    Args:
        path: of the store.
        batch: clips that are written together.
    """

    def __init__(self, path: Path, batch: int):
        import zarr

        self.path, self.batch = path, batch
        self._group = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)

    @property
    def done(self) -> np.ndarray:
        """Which clips are."""
        return np.asarray(self._array("done")[...])

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Path of every clip that was left out, and why."""
        paths, problems = (np.asarray(self._array(name)[...]) for name in ("path", "problem"))
        left_out = np.flatnonzero(problems != "")
        return [(str(paths[i]), str(problems[i])) for i in left_out]

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Fill the slots of one batch, and then say that they are done."""
        stop = min(start + self.batch, self._array("done").shape[0])
        for name, values in {**arrays, "done": np.ones(self.batch, bool)}.items():
            self._array(name)[start:stop] = values[: stop - start]

    def _array(self, name: str) -> "zarr.Array":
        return cast("zarr.Array", self._group[name])


def open_store(
    path: Path,
    *,
    batch: int,
    variables: Mapping[str, Variable],
    labels: Mapping[str, Sequence[str]],
    coordinates: Mapping[str, Sequence[int] | Sequence[str]],
    identity: Mapping[str, Any],
    attributes: Mapping[str, Any],
    overwrite: bool,
) -> ActivationStore:
    """Make a store, or go on with the one that the same work began.

    Args:
        path: of the store.
        batch: clips that are written together.
        variables: what will be written.
        labels: text of each clip, by column.
        coordinates: of axes, by name.
        identity: what the numbers depend on.
        attributes: more about them.
        overwrite: make it anew, whatever is there.

    Raises:
        InputError: what is there is of other work, or no activation store.
    """
    if path.exists():
        existing = _identity(path)
        if existing is None:
            raise InputError(f"{path} is no activation store: choose another --out.")
        if existing == identity and not overwrite:
            for torn in path.rglob("*.partial"):
                torn.unlink()
            return ActivationStore(path, batch)
        if not overwrite:
            raise InputError(
                f"{path} is of another extraction ({_difference(existing, identity)} differs): "
                "choose another --out, or replace it with --overwrite."
            )
    reserve(path, overwrite)
    fresh = path.with_name(f".{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _make(
        fresh,
        batch,
        variables,
        labels,
        coordinates,
        {**attributes, _IDENTITY: json.dumps(identity)},
    )
    if path.exists():
        shutil.rmtree(path)
    fresh.rename(path)
    return ActivationStore(path, batch)


def _make(
    path: Path,
    batch: int,
    variables: Mapping[str, Variable],
    labels: Mapping[str, Sequence[str]],
    coordinates: Mapping[str, Sequence[int] | Sequence[str]],
    attributes: Mapping[str, Any],
) -> None:
    n_clips = len(next(iter(labels.values())))
    import zarr

    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    for name, values in labels.items():
        group.create_array(name, data=np.asarray(values, "T"), dimension_names=("clip",))
    for name, values in coordinates.items():
        data = np.asarray(values, "T" if isinstance(values[0], str) else None)
        group.create_array(name, data=data, dimension_names=(name,))
    for name, variable in {**variables, "done": Variable((), (), "bool")}.items():
        group.create_array(
            name,
            shape=(n_clips, *variable.shape),
            chunks=_chunks(min(batch, n_clips), variable),
            dtype=np.dtypes.StringDType() if variable.dtype == "T" else variable.dtype,
            fill_value=_EMPTY[np.dtype(variable.dtype).kind],
            dimension_names=("clip", *variable.axes),
        )


_EMPTY = {"f": np.nan, "i": 0, "b": False, "T": ""}


def _chunks(batch: int, variable: Variable) -> tuple[int, ...]:
    """A batch's clips, layer by layer where all layers are much to read at once."""
    if variable.dtype == "T" or variable.axes[:1] != ("layer",):
        return (batch, *variable.shape)
    whole = batch * int(np.prod(variable.shape)) * np.dtype(variable.dtype).itemsize
    return (batch, variable.shape[0] if whole <= _LARGEST_CHUNK else 1, *variable.shape[1:])


def _identity(path: Path) -> dict[str, Any] | None:
    """What the numbers of a store depend on; `None` if it is none."""
    try:
        attributes = json.loads((path / "zarr.json").read_text("utf-8"))["attributes"]
        return json.loads(attributes[_IDENTITY])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(existing: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    keys = {**existing, **identity}
    return ", ".join(key for key in keys if existing.get(key) != identity.get(key))


def open_activations(path: str | Path) -> "xarray.Dataset":
    """The clips of an activation store that are done and could be read.

    Args:
        path: of the store, from `extract`.

    Returns:
        Activations by name, and the clips' columns; values are read when they are used.

    Raises:
        InputError: there is no activation store at `path`.
    """
    import xarray

    if _identity(Path(path)) is None:
        raise InputError(f"{path} is no activation store: make one with extract.")
    dataset = xarray.open_dataset(path, engine="zarr", consolidated=False, chunks=None)
    usable = dataset.done.values & (dataset.problem.values == "")
    return dataset.isel(clip=np.flatnonzero(usable))
