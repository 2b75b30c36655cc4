"""Many devices in one process: a mesh with one axis, along which runs or patches are spread.

A model that is placed on several devices has all its parameters on each of them, and work with it
follows it there. Each device computes a part of its own, so no program exchanges values between
devices, and what a device holds and does is the same however many others there are.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper

AXIS = "device"
_ON_CPU, _ON_ACCELERATORS = 1, 4


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """Make the mesh of some devices."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicate(model: Whisper, devices: int | None = None) -> Whisper:
    """Place a model on several devices of this process, so that sweeps with it use all of them.

    A sweep of several pairs spreads them over the devices; if they cannot be divided evenly, as a
    single one cannot, it spreads the patches. The numbers are those of one device.

    Args:
        model: from `load_model`.
        devices: number of devices; by default all.

    Returns:
        The model with its parameters on each device; the same model if there is only one.

    Raises:
        InputError: there are no such number of devices.
    """
    local = jax.local_devices()
    if devices is not None and not 1 <= devices <= len(local):
        raise InputError(
            f"The number of devices is {devices}: this process has {len(local)}, choose 1 to "
            f"{len(local)}."
        )
    chosen = local[:devices]
    if len(chosen) == 1 and mesh_of(model) is None:
        return model
    return jax.device_put(model, NamedSharding(make_mesh(chosen), P()))


def mesh_of(model: Whisper) -> Mesh | None:
    """Return the mesh on which `replicate` placed a model; `None` if it is on one device."""
    sharding = jax.tree.leaves(model)[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None


def mesh_for(model: Whisper, examples: int) -> Mesh | None:
    """Return the mesh of a model, if so many examples can be divided evenly among its devices."""
    mesh = mesh_of(model)
    return None if mesh is None or examples % mesh.size else mesh


def batch_size(model: Whisper, given: int | None) -> int:
    """Return the number of examples that run together: as many on each of the model's devices.

    Args:
        model: the model.
        given: the least number; by default one that suits the devices.
    """
    mesh = mesh_of(model)
    devices = 1 if mesh is None else mesh.size
    return devices * examples_each(jax.default_backend(), devices, given)


def examples_each(platform: str, devices: int, given: int | None) -> int:
    """Return the number of examples that each of some devices runs together.

    Args:
        platform: kind of the devices.
        devices: number of the devices.
        given: see `batch_size`.
    """
    if given is not None:
        return -(-given // devices)
    return _ON_CPU if platform == "cpu" else _ON_ACCELERATORS


def divide[Tree](mesh: Mesh | None, tree: Tree) -> Tree:
    """Give each device its part of the leading axis of every array; without a mesh do nothing."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P(AXIS)))


def on_parts(mesh: Mesh | None, f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make `f(shared, examples)` run on every device with its part of the examples.

    Args:
        mesh: the devices; without one `f` is returned as it is.
        f: a function that does the same for every example along the leading axis.
    """
    if mesh is None:
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False)


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Devices that run one program at the same time, each with some arguments of its own.

    Attributes:
        mesh: the devices; without one there is a single lane, and programs run as they are.
    """

    mesh: Mesh | None

    def __len__(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    def give[Tree](self, values: Sequence[Tree]) -> Tree:
        """Make one argument of the lanes' own values; lanes for which there are none get the last.

        Args:
            values: one for each lane, of equal shapes.
        """
        if self.mesh is None:
            (value,) = values
            return value
        # One transfer fetches all of them.
        fetched = jax.device_get([*values, *[values[-1]] * (len(self) - len(values))])
        return jax.tree.map(lambda *leaves: np.stack(leaves), *fetched)

    def take(self, value: jax.Array) -> list[np.ndarray]:
        """Return each lane's result."""
        return [np.asarray(value)] if self.mesh is None else list(np.asarray(value))

    def run(
        self, program: Callable[..., Any], *arguments: Any, own: tuple[int, ...], **static: Any
    ) -> Any:
        """Run a jitted program in every lane.

        Args:
            program: the program.
            arguments: its arguments.
            own: which of them, by number, come from `give` or from an earlier `run`; all lanes
                share the others.
            static: its static arguments.

        Returns:
            The results, which are arguments of the lanes' own.
        """
        if self.mesh is None:
            return program(*arguments, **static)
        return _run_lanes(arguments, program, self.mesh, own, tuple(static.items()))


@functools.partial(jax.jit, static_argnames=("program", "mesh", "own", "static"))
def _run_lanes(
    arguments: tuple[Any, ...],
    program: Callable[..., Any],
    mesh: Mesh,
    own: tuple[int, ...],
    static: tuple[tuple[str, Any], ...],
) -> Any:
    def lane(*given: Any) -> Any:
        mine = [
            jax.tree.map(lambda leaf: leaf[0], one) if i in own else one
            for i, one in enumerate(given)
        ]
        return jax.tree.map(lambda leaf: leaf[None], program(*mine, **dict(static)))

    specs = tuple(P(AXIS) if i in own else P() for i in range(len(arguments)))
    run = jax.shard_map(lane, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
    return run(*arguments)
