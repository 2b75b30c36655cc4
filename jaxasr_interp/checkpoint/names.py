"""The names of a state dict, without what training has put before them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr_interp.checkpoint.stored import StoredTensor, Tensors
from jaxasr_interp.errors import InputError

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""Of data-parallel training, `torch.compile` and PEFT."""


def strip_prefixes(state: Mapping[Any, Any], path: Path) -> Tensors:
    """Take off the prefixes of wrappers that all names have.

    Args:
        state: tensors by name.
        path: the file, for errors.

    Raises:
        InputError: the state dict holds something that is no tensor.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | StoredTensor):
            raise InputError(
                f"{path} holds a {type(value).__name__} named {name!r}: expected a state dict, "
                "tensors by name."
            )
    while wrapper := next(
        (w for w in _WRAPPERS if state and all(n.startswith(w) for n in state)), None
    ):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state
