"""What a sweep has computed so far, on disk: one that is cut off goes on from there."""

import dataclasses
import json
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching.inputs import Prepared
from jaxasr_interp.runtime.identity import check_identity, identify

_SECONDS_BETWEEN_WRITES = 10


@dataclasses.dataclass
class Partial:
    """A sweep's values and which of its cells they cover.

    Attributes:
        values: every metric of every cell of each pair; NaN where it is not known.
        done: which cells are known.
        path: file that keeps them, if any.
        identity: what the values depend on, by part.
        written: when the file was last written, in seconds of a monotonic clock.
    """

    values: Float[np.ndarray, "batch cell metric"]
    done: Bool[np.ndarray, " cell"]
    path: Path | None
    identity: dict[str, str]
    written: float

    @classmethod
    def open(cls, prepared: Prepared, method: str, path: str | Path | None) -> "Partial":
        """Start afresh, or from what the file holds.

        Args:
            prepared: the sweep.
            method: how it is run.
            path: an `.npz` file that an earlier run of the same sweep wrote, or will be written.

        Returns:
            The values so far; cells that the plan leaves out count as done.

        Raises:
            InputError: the file is another sweep's, or cannot be read.
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
        """Write the file, whole or not at all, unless that was done a moment ago."""
        if self.path is None or not (
            now or time.monotonic() - self.written > _SECONDS_BETWEEN_WRITES
        ):
            return
        with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
            identity = json.dumps(self.identity)
            np.savez(file, values=self.values, done=self.done, identity=identity)
        Path(file.name).replace(self.path)
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
    except ValueError:  # That of an earlier version was no JSON.
        return {"version": ""}
