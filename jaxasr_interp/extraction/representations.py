"""Reading the activations of a store as rows of features, a few clips at a time.

A row is a clip, or one position of a clip if the variable keeps positions. Its features are the
axes of one position: `d_model`, or `head` and `d_head`. Positions after the speech are NaN and left
out.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError

if TYPE_CHECKING:
    import xarray

_FEATURES = ("head", "d_head", "d_model", "d_mlp", "n_mels", "mel_feature")
_BLOCK_BYTES = 1 << 28


def layers_of(dataset: "xarray.Dataset", name: str) -> list[int]:
    """List the layers of a variable, from 0; one without the axis `layer` has one layer.

    Raises:
        InputError: there is no such variable, or it holds no activations.
    """
    _check(dataset, name)
    sizes = dataset[name].sizes
    return list(range(next((sizes[axis] for axis in sizes if is_axis(axis, "layer")), 1)))


def features_of(dataset: "xarray.Dataset", name: str) -> int:
    """Count the features of a row of one layer."""
    sizes = dataset[name].sizes
    return math.prod(sizes[axis] for axis in sizes if is_axis(axis, *_FEATURES))


def row_axes(dataset: "xarray.Dataset", name: str) -> dict[str, int]:
    """Return the axes of a variable's rows and their sizes: clips, and positions if it has them."""
    _check(dataset, name)
    sizes = dataset[name].sizes
    return {str(axis): sizes[axis] for axis in sizes if not is_axis(axis, "layer", *_FEATURES)}


def row_blocks(
    dataset: "xarray.Dataset", layers: Sequence[tuple[str, Sequence[int]]]
) -> Iterator[tuple[int, list[Float[np.ndarray, "rows layer feature"]]]]:
    """Read some layers of variables, one block of clips after the other.

    The mean of the first block is subtracted from all rows. Statistics that ignore the mean do not
    change by that, but sums over rows far from 0 would be less exact.

    Args:
        dataset: an activation store, from `open_activations`.
        layers: variables with the same rows, and the layers of each variable.

    Yields:
        The number of clips in the block, and each variable's rows that are known in all variables,
        in float64. Blocks are as large as fits in 256 MB, for any number of clips.
    """
    size = max(1, _BLOCK_BYTES // sum(_bytes_of_clip(dataset, *one) for one in layers))
    origins = None
    for start in range(0, dataset.sizes["clip"], size):
        block = dataset.isel(clip=slice(start, start + size))
        arrays = [_rows(block, name, chosen) for name, chosen in layers]
        known = np.logical_and.reduce([~np.isnan(x).any((1, 2)) for x in arrays])
        arrays = [x[known] for x in arrays]
        if origins is None and known.any():
            origins = [x.mean(0) for x in arrays]
        yield block.sizes["clip"], [x - o for x, o in zip(arrays, origins or arrays, strict=True)]


def _rows(
    dataset: "xarray.Dataset", name: str, layers: Sequence[int]
) -> Float[np.ndarray, "rows layer feature"]:
    array = dataset[name]
    axis = next((axis for axis in array.dims if is_axis(axis, "layer")), None)
    chosen = array.expand_dims("layer") if axis is None else array.isel({axis: list(layers)})
    features = [axis for axis in array.dims if is_axis(axis, *_FEATURES)]
    ordered = chosen.transpose(*row_axes(dataset, name), axis or "layer", *features)
    sizes = (-1, len(layers), features_of(dataset, name))
    return ordered.values.astype(np.float64).reshape(sizes)


def _bytes_of_clip(dataset: "xarray.Dataset", name: str, layers: Sequence[int]) -> int:
    positions = [n for axis, n in row_axes(dataset, name).items() if axis != "clip"]
    return 8 * len(layers) * features_of(dataset, name) * math.prod(positions)


def is_axis(axis: Hashable, *names: str) -> bool:
    """Tell whether an axis has one of these names, with or without the stack's name before it."""
    return str(axis).removeprefix("encoder_").removeprefix("decoder_") in names


def _check(dataset: "xarray.Dataset", name: str) -> None:
    if name not in dataset:
        known = ", ".join(str(key) for key in dataset if "." in str(key))
        raise InputError(f"The store has no {name!r}: choose one of {known}.")
    array = dataset[name]
    if array.dims[:1] != ("clip",) or array.dtype.kind != "f":
        raise InputError(f"{name} holds no activations of clips: choose another variable.")
