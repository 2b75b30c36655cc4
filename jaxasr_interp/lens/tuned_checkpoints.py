"""A tuned lens on disk: Orbax checkpoints of the maps and of the state of their training.

A checkpoint holds arrays and JSON. It is written atomically, and the one before it is then removed.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxasr_interp.errors import InputError
from jaxasr_interp.lens.tuned import Translators
from jaxasr_interp.runtime.identity import check_identity
from jaxasr_interp.runtime.location import failure
from jaxasr_interp.runtime.store import check_sealed, orbax_errors, sealed
from jaxasr_interp.runtime.transforms import host_only

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in the folder of the training."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        out: folder of the training.
        about: JSON description of the training, with `identity`, `model` and `steps`.
    """

    out: Path
    about: dict[str, Any]

    def step(self) -> int:
        """Return the number of steps before the last checkpoint, 0 if there is no checkpoint.

        Raises:
            InputError: the folder holds another training or a damaged one, or is not writable.
        """
        try:
            (self.out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Nothing can be written to {self.out}: {error.strerror}.") from None
        with _manager(self.out) as manager:
            step = manager.latest_step()
            if step is not None:
                with _readable(self.out):
                    kept = _about(manager).get("identity", {})
                check_identity(self.out, kept, self.about["identity"], "training")
        return step or 0

    def restore(self, translators: Translators, training: Any) -> tuple[Translators, Any]:
        """Read the last checkpoint into trees like these; raise `InputError` if it is damaged."""
        with _manager(self.out) as manager, _readable(self.out):
            kept = _arrays(manager, translators=translators, training=training)
            about = _about(manager)
            check_sealed(self.out, about, _content(kept["translators"]))
            check_sealed(self.out, about["training"], jax.tree.leaves(kept["training"]))
        return kept["translators"], kept["training"]

    def save(self, step: int, translators: Translators, training: Any) -> None:
        """Write the checkpoint after `step` steps.

        Raises:
            InputError: it cannot be written; the one before it stays.
        """
        import orbax.checkpoint as ocp

        about = self.about | {"training": sealed({"step": step}, jax.tree.leaves(training))}
        parts = ocp.args.Composite(
            translators=ocp.args.StandardSave(translators),
            training=ocp.args.StandardSave(training),
            about=ocp.args.JsonSave(sealed(about, _content(translators))),
        )
        with _writing(self.out), _manager(self.out) as manager:
            manager.save(step, args=parts)


@host_only()
def load_tuned_lens(out: str | Path) -> Translators:
    """Load the translators of a finished training.

    Args:
        out: folder that was given to `train_tuned_lens`.

    Returns:
        The translators.

    Raises:
        InputError: the folder holds no finished training, or a damaged one.
    """
    nothing = InputError(f"{out} holds no tuned lens: train one there first.")
    if not (Path(out) / CHECKPOINTS).is_dir():
        raise nothing
    with _manager(Path(out)) as manager:
        step = manager.latest_step()
        if step is None:
            raise nothing
        with _readable(Path(out)):
            about = _about(manager)
            last, like = about["steps"], _translators_like(about)
            kept = _arrays(manager, translators=like)["translators"]
            check_sealed(Path(out), about, _content(kept))
    if step != last:
        raise InputError(
            f"The tuned lens in {out} has done {step} of {last} steps: run its training again."
        )
    return kept


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn an error of writing a checkpoint into an `InputError`, and remove its rest."""
    try:
        with orbax_errors():
            yield
    except OSError as error:
        for torn in (out / CHECKPOINTS).glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(torn, ignore_errors=True)
        raise failure(out, error) from None


@contextlib.contextmanager
def _readable(out: Path) -> Iterator[None]:
    """Turn any exception from reading a damaged checkpoint into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"The tuned lens in {out} cannot be read: {reason}.") from None


def _content(translators: Translators) -> list[Array]:
    return [translators.weight, translators.bias]


def _translators_like(about: dict[str, Any]) -> Translators:
    layers, width, dtype = about["layers"], about["d_model"], jnp.dtype(about["dtype"])
    weight, bias = jnp.zeros((layers, width, width), dtype), jnp.zeros((layers, width), dtype)
    return Translators(weight, bias, about["model"])


def _about(manager: "ocp.CheckpointManager") -> dict[str, Any]:
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(about=ocp.args.JsonRestore())
    return manager.restore(manager.latest_step(), args=args)["about"]


def _arrays(manager: "ocp.CheckpointManager", **like: Any) -> Any:
    """Read parts of the last checkpoint, each with the structure, shapes and dtypes of `like`."""
    import orbax.checkpoint as ocp

    abstract = jax.eval_shape(lambda: like)
    parts = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    return manager.restore(manager.latest_step(), args=ocp.args.Composite(**parts))


def _manager(out: Path) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=False, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager((out / CHECKPOINTS).absolute(), options=options)
