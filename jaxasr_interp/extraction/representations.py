"""Activations of a store as rows of features, a few clips at a time.

A row is a clip, or a position of one where the variable keeps them; its features are the axes of
one position: `d_model`, or `head` and `d_head`. Positions beyond the speech are NaN and left out.
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
    """The layers of a variable, from 0; one without the axis `layer` counts as one layer.

    Raises:
        InputError: there is no such variable, or it holds no activations.
    """
    _check(dataset, name)
    sizes = dataset[name].sizes
    return list(range(next((sizes[axis] for axis in sizes if is_axis(axis, "layer")), 1)))


def features_of(dataset: "xarray.Dataset", name: str) -> int:
    """How many numbers a row of one layer has."""
    sizes = dataset[name].sizes
    return math.prod(sizes[axis] for axis in sizes if is_axis(axis, *_FEATURES))


def row_axes(dataset: "xarray.Dataset", name: str) -> dict[str, int]:
    """What a variable has a row for, and how many: clips, and positions where it keeps them."""
    _check(dataset, name)
    sizes = dataset[name].sizes
    return {str(axis): sizes[axis] for axis in sizes if not is_axis(axis, "layer", *_FEATURES)}


def row_blocks(
    dataset: "xarray.Dataset", layers: Sequence[tuple[str, Sequence[int]]]
) -> Iterator[tuple[int, list[Float[np.ndarray, "rows layer feature"]]]]:
    """Read some layers of variables, block after block of clips.

    Rows are counted from the mean of the first block: what is made of them does not depend on where
    they are counted from, but for the rounding of sums over rows far from 0.

    Args:
        dataset: an activation store, from `open_activations`.
        layers: variables with the same rows, and which layers of each.

    Yields:
        How many clips the block holds, and each variable's rows that are known in all of them, in
        float64. The blocks are as large as fits in 256 MB, whatever the number of clips.
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
    """Whether an axis is one of these; what differs between the stacks bears the stack's name."""
    return str(axis).removeprefix("encoder_").removeprefix("decoder_") in names


def _check(dataset: "xarray.Dataset", name: str) -> None:
    if name not in dataset:
        known = ", ".join(str(key) for key in dataset if "." in str(key))
        raise InputError(f"The store has no {name!r}: choose one of {known}.")
    array = dataset[name]
    if array.dims[:1] != ("clip",) or array.dtype.kind != "f":
        raise InputError(f"{name} holds no activations of clips: choose another variable.")
