"""Reading torch's zip files: a pickle that describes the tensors, and one member for each storage.

The members are not compressed, so that every storage is mapped from the file when it is read.
"""

import dataclasses
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr_interp.checkpoint.stored import StoredTensor, map_file
from jaxasr_interp.checkpoint.torch_pickle import LARGEST, read_pickle
from jaxasr_interp.errors import InputError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_PICKLE = b"\x80"


@dataclasses.dataclass(frozen=True)
class _Storage:
    """One storage: where its elements lie in the file."""

    dtype: np.dtype
    count: int
    offset: int


def read_torch(path: Path) -> Any:
    """Read what `torch.save` wrote.

    Args:
        path: the file.

    Returns:
        Dictionaries, lists, texts and numbers, with a `StoredTensor` for each tensor.

    Raises:
        InputError: the file is no torch file or one of before torch 1.6, it is truncated or
            damaged, its pickle asks for anything but tables of tensors, or a tensor does not fit
            its storage.
    """
    members = _members(path)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(
            f"{path} holds no state dict: expected what torch.save writes of one, with a data.pkl."
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise InputError(f"{path} is a TorchScript program: save the state dict of its model.")
    if _content(path, members, f"{folder}byteorder", b"little") != b"little":
        raise InputError(f"{path} was written in big-endian order: save it anew as safetensors.")

    def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
        name = f"{folder}data/{key}"
        if name not in members:
            raise InputError(f"{path} is damaged: it lacks the storage {key!r}.")
        offset, size = members[name]
        if count * dtype.itemsize != size:
            raise InputError(
                f"{path} is damaged: storage {key!r} has {size} bytes where {count} elements of "
                f"{dtype} are said to be."
            )
        return _Storage(dtype, count, offset)

    def tensor(
        stored: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> StoredTensor:
        problem = "it names no storage" if not isinstance(stored, _Storage) else None
        problem = problem or _misfit(stored.count, offset, shape, strides)
        if problem is not None:
            raise InputError(f"{path} is damaged: in a tensor of shape {list(shape)}, {problem}.")
        return StoredTensor(
            shape, stored.dtype, lambda: _read(path, stored, offset, shape, strides)
        )

    pickled = _content(path, members, pickles[0], b"")
    return read_pickle(pickled, storage, tensor, str(path))


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Return offset and size of each member's bytes; refuse members that overlap or are packed."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = archive.infolist()
            spans = {}
            for info in infos:
                file.seek(info.header_offset)
                signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                packed = info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1
                if signature != b"PK\3\4" or packed or info.compress_size != info.file_size:
                    raise InputError(
                        f"{path} is no torch file: member {info.filename!r} is packed or damaged."
                    )
                start = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
                spans[info.filename] = start, info.file_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # A damaged archive raises many kinds of errors.
        if isinstance(error, InputError):
            raise
        raise InputError(_not_a_zip(path, error)) from None
    end, last = 0, path.stat().st_size
    for name, (start, size) in sorted(spans.items(), key=lambda item: item[1]):
        if start < end or start + size > last or len(spans) != len(infos):
            raise InputError(
                f"{path} is damaged: its member {name!r} overlaps another or lies outside the file."
            )
        end = start + size
    return spans


def _not_a_zip(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        old = file.read(1) == _PICKLE
    if old or tarfile.is_tarfile(path):
        return (
            f"{path} is in torch's format of before version 1.6, which is not read: save it anew "
            "with torch.save(torch.load(path, weights_only=True), path) in a recent torch."
        )
    return f"{path} is not a whole torch file ({error}): fetch the file again."


def _content(path: Path, members: dict[str, tuple[int, int]], name: str, default: bytes) -> bytes:
    if name not in members:
        return default
    offset, size = members[name]
    return map_file(path, offset, (min(size, LARGEST + 1),), np.uint8).tobytes()


def _misfit(
    count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> str | None:
    """Say why a view does not fit a storage of `count` elements, or shows one of them twice."""
    if len(shape) != len(strides):
        return f"there are {len(strides)} strides"
    if 0 in shape:
        return "nothing is stored"
    reach = 0
    for stride, size in sorted((t, s) for s, t in zip(shape, strides, strict=True) if s > 1):
        if stride <= reach:
            return f"strides {list(strides)} overlap"
        reach += stride * (size - 1)
    if offset + reach >= count:
        return f"strides {list(strides)} from {offset} on go beyond the {count} elements stored"
    return None


def _read(
    path: Path, stored: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    size = stored.dtype.itemsize
    reach = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    flat = map_file(path, stored.offset + offset * size, (reach,), stored.dtype)
    steps = [stride * size * (n > 1) for n, stride in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
