"""Reading a folder of Hugging Face's: safetensors or torch's `.bin`, whole or in shards."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxasr_interp.checkpoint.names import strip_prefixes
from jaxasr_interp.checkpoint.stored import StoredTensor, Tensors, map_file
from jaxasr_interp.checkpoint.torch_file import read_torch
from jaxasr_interp.errors import InputError

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
TORCH = ("pytorch_model.bin.index.json", "pytorch_model.bin")
"""Names of the index of shards, and of a single file; the first that is there is read."""
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object; raise `InputError` if the file is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: expected a JSON object.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """Find the files that hold the weights in `folder`; none if there are none.

    Raises:
        InputError: a shard that the index names is missing, or points outside the folder.
    """
    for name in (*SAFETENSORS, *TORCH):
        path = folder / name
        if path.exists():
            return [path] if path.suffix != ".json" else _shards(path)
    return []


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index} has no weight_map from names of tensors to those of files.")
    names = sorted(set(shards.values()))
    bad = [n for n in names if Path(n).name != n or not (index.parent / n).is_file()]
    if bad or not names:
        raise InputError(f"{index} names shards that are not in the folder: {bad}.")
    return [index.parent / name for name in names]


def read_tensors(folder: Path) -> Tensors:
    """Find every tensor of a checkpoint folder.

    Args:
        folder: holds `model.safetensors` or `pytorch_model.bin`, or shards with their index.

    Returns:
        Tensors by name, none of them read; prefixes of wrappers are taken off, and `model.` is
        added where a bare `WhisperModel` was saved.

    Raises:
        InputError: a file is truncated or of another format, or two shards hold the same tensor.
    """
    tensors: dict[str, Any] = {}
    for path in weight_files(folder):
        part = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
        if twice := tensors.keys() & part.keys():
            raise InputError(f"{path} holds {min(twice)} a second time.")
        tensors |= part
    tensors = dict(strip_prefixes(tensors, folder))
    if not any(name.startswith("model.") for name in tensors):
        tensors = {f"model.{name}": value for name, value in tensors.items()}
    return tensors


def _torch(path: Path) -> dict[str, Any]:
    content = read_torch(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: expected a state dict.")
    return {str(name): value for name, value in content.items()}


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        # It checks that the tensors fill the file, each of the bytes that its shape takes.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}.") from None
    header.pop("__metadata__", None)
    unknown = {name: one["dtype"] for name, one in header.items() if one["dtype"] not in _DTYPES}
    if unknown:
        raise InputError(f"{path} holds {unknown}: expected floats ({', '.join(_DTYPES)}).")

    def tensor(shape: tuple[int, ...], dtype: Any, offset: int) -> StoredTensor:
        return StoredTensor(shape, np.dtype(dtype), lambda: map_file(path, offset, shape, dtype))

    return {
        name: tensor(tuple(one["shape"]), _DTYPES[one["dtype"]], 8 + size + one["data_offsets"][0])
        for name, one in header.items()
    }
