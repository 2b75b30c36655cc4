"""Opening activation stores."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.representations import is_axis
from jaxasr_interp.runtime.location import locate
from jaxasr_interp.runtime.slot_store import read_identity
from jaxasr_interp.runtime.store import open_dataset

EXTRACTION = "extraction"
"""The kind of work whose results an activation store holds."""

if TYPE_CHECKING:
    import xarray


def open_activations(path: str | Path, *, incomplete: bool = False) -> "xarray.Dataset":
    """Open an activation store, without the clips that were left out.

    Args:
        path: path of the store, from `extract`, or its URL.
        incomplete: also open a store that is not finished, with the clips that are done.

    Returns:
        Activations by name, with the coordinates `clip` (number of the clip in the store), `path`
        and `layer` (`encoder_layer` and `decoder_layer` where the stacks differ), and the clips'
        columns; values are read, and checked, when they are used.

    Raises:
        InputError: there is no activation store at `path`, it is not finished, or it is damaged
            (raised now, or when the damaged values are used).
    """
    read_identity(locate(path), EXTRACTION)
    dataset = open_dataset(path)
    done = dataset.done.values
    if not (incomplete or done.all()):
        raise InputError(
            f"{path} is incomplete, with {done.sum()} of {len(done)} clips: call extract again as "
            "before, which goes on, or open it with incomplete=True."
        )
    layers = [axis for axis in map(str, dataset.sizes) if is_axis(axis, "layer")]
    numbers = {axis: np.arange(dataset.sizes[axis]) for axis in ("clip", *layers)}
    dataset = dataset.assign_coords(numbers).set_coords([*{"path"} & {*dataset}])
    dataset = dataset.isel(clip=np.flatnonzero(done))
    return dataset.isel(clip=np.flatnonzero(dataset.problem.values == ""))
