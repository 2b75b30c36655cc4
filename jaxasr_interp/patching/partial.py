"""The values that a sweep has computed so far, on disk; an interrupted sweep resumes from them."""

import dataclasses
import json
import time
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching.prepared import Prepared
from jaxasr_interp.runtime.identity import check_identity, identify
from jaxasr_interp.runtime.store import new_file

_SECONDS_BETWEEN_WRITES = 10


@dataclasses.dataclass
class Partial:
    """A sweep's values and which of its cells they cover.

    Attributes:
        values: every metric of every cell of each pair; NaN where it is not known.
        done: whether each cell is known.
        path: file that keeps the values, if any.
        identity: hashes of everything that the values depend on, by name.
        written: time of the last write to the file, in seconds of a monotonic clock.
    """

    values: Float[np.ndarray, "batch cell metric"]
    done: Bool[np.ndarray, " cell"]
    path: Path | None
    identity: dict[str, str]
    written: float

    @classmethod
    def open(cls, prepared: Prepared, method: str, path: str | Path | None) -> "Partial":
        """Start a sweep, or resume it from a file.

        Args:
            prepared: the sweep.
            method: method of the sweep.
            path: an `.npz` file, which may exist from an earlier run of the same sweep.

        Returns:
            The values so far; cells that the plan leaves out count as done.

        Raises:
            InputError: the file belongs to another sweep, or cannot be read.
        """
        plan = prepared.plan
        shape = (prepared.utterances, plan.size, len(prepared.readout.metrics))
        values, done = (
            np.full(shape, np.nan, prepared.readout.clean_logits.dtype),
            np.zeros(plan.size, bool),
        )
        if plan.only is not None:
            done[:] = True
            done[list(plan.only)] = False
        if path is None:
            return cls(values, done, None, {}, 0.0)
        path = Path(path)
        if not path.parent.is_dir() or path.is_dir():
            raise InputError(f"Nothing can be kept at {path}: name a file in a folder that exists.")
        identity = _identity(prepared, method)
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as file:
                    kept = {name: file[name] for name in ("values", "done", "identity")}
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise InputError(f"{path} is no unfinished sweep: {error}.") from None
            check_identity(path, _read(kept["identity"]), identity, "sweep")
            values, done = kept["values"], kept["done"]
        return cls(values, done, path, identity, time.monotonic())

    def save(self, *, now: bool = False) -> None:
        """Write the file atomically; without `now`, only if the last write is 10 s ago."""
        if self.path is None or not (
            now or time.monotonic() - self.written > _SECONDS_BETWEEN_WRITES
        ):
            return
        with new_file(self.path) as partial, partial.open("wb") as file:
            identity = json.dumps(self.identity)
            np.savez(file, values=self.values, done=self.done, identity=identity)
        self.written = time.monotonic()


def _identity(prepared: Prepared, method: str) -> dict[str, str]:
    inputs = prepared.inputs
    return identify(
        model=prepared.model,
        plan=dataclasses.replace(prepared.plan, memory=0),
        clean=[(one.mel, one.tokens) for one in inputs.clean],
        corrupted=[(one.mel, one.tokens) for one in inputs.corrupted],
        metric=prepared.readout.metrics,
        edit=inputs.edit,
        direction=inputs.direction,
        alignment=inputs.alignment,
        method=method,
    )


def _read(identity: np.ndarray) -> dict[str, str]:
    try:
        return json.loads(str(identity))
    except ValueError:  # Earlier versions did not write JSON.
        return {"version": ""}
