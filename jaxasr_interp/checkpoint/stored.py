"""Tensors that stay in their file until they are read, one at a time."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of which only shape and dtype are known until `np.asarray` reads it.

    Attributes:
        shape: its shape.
        dtype: type of its values.
        read: returns the values; the memory that they take is free when they are let go.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        return values if dtype is None else values.astype(dtype)


type Tensors = Mapping[str, np.ndarray | StoredTensor]


def map_file(path: Path, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Map a part of a file into memory; its pages are given back with the array."""
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)


class FileBytes:
    """The bytes of one file or of several end to end; a slice of them is read when it is taken.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        sizes = [path.stat().st_size for path in self.paths]
        self._starts = (0, *itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, piece: slice) -> np.ndarray:
        start, stop, _ = piece.indices(len(self))
        parts = [
            map_file(
                path, max(start, first) - first, (min(stop, last) - max(start, first),), np.uint8
            )
            for path, (first, last) in zip(
                self.paths, itertools.pairwise(self._starts), strict=True
            )
            if max(start, first) < min(stop, last)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
