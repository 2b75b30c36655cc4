"""Reading a folder of Hugging Face safetensors: one file, or shards with an index."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr_interp.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object; raise `InputError` if the file is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: expected a JSON object.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in `folder`.

    Raises:
        InputError: a shard that the index names is missing, or points outside the folder.
    """
    if not (folder / INDEX).exists():
        return [folder / SINGLE]
    names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    bad = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if bad or not names:
        raise InputError(f"{folder / INDEX} names shards that are not in the folder: {bad}.")
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Read every tensor of a checkpoint folder.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Returns:
        Arrays by name; the `model.` prefix is added where a bare `WhisperModel` was saved.

    Raises:
        InputError: a file is truncated or not safetensors, or two shards hold the same tensor.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, np.ndarray] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in tensors:
                        raise InputError(f"{path} holds {name} a second time.")
                    tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}.") from None
    if not any(name.startswith("model.") for name in tensors):
        tensors = {f"model.{name}": value for name, value in tensors.items()}
    return tensors
