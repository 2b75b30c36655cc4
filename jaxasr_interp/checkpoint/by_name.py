"""Models that other processes load by their name."""

import dataclasses
import functools
from typing import Any

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper


@dataclasses.dataclass(frozen=True, eq=False)
class ModelByName:
    """A model of which only the name and the dtype are pickled.

    It is loaded again where it is unpickled, once for each process.

    Attributes:
        model: the model.
    """

    model: Whisper

    def __reduce__(self) -> tuple[Any, ...]:
        if self.model.name is None:
            raise InputError(
                f"The model ({self.model.source}) was not loaded by a name, so that workers cannot "
                "load it: save it with save_model, and load it from there."
            )
        return _load, (self.model.name, str(self.model.dtype))


@functools.lru_cache(maxsize=1)
def _load(name: str, dtype: str) -> ModelByName:
    return ModelByName(load_model(name, dtype))
