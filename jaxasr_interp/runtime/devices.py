"""Many devices in one process: a mesh along whose first axis runs or patches are spread.

A model that is placed on several devices has all its parameters on each of them, and work with it
follows it there. Each device computes a part of its own, so no program exchanges values between
devices, and what a device holds and does is the same however many others there are.

A model too large for one device is divided along the mesh's second axis: some devices have a part
of the heads and of the MLPs' hidden units each, and together do what one does otherwise. They alone
exchange values: the sums of each sublayer's output (Shoeybi et al. 2019, arXiv 1909.08053).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasr_interp.model.whisper import Whisper

DATA, MODEL = "data", "model"
_ON_CPU, _ON_ACCELERATORS = 1, 4


def make_mesh(devices: Sequence[Any], tensor_parallel: int = 1) -> Mesh:
    """Make the mesh `[data, model]` of some devices, the second axis of the given size."""
    grid = np.asarray(devices).reshape(-1, tensor_parallel)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_of(model: Whisper) -> Mesh | None:
    """Return the mesh on which `replicate` placed a model; `None` if it is on one device."""
    sharding = jax.tree.leaves(model)[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None


def mesh_for(model: Whisper, examples: int) -> Mesh | None:
    """Return the mesh of a model, if so many examples can be divided evenly along its data axis."""
    mesh = mesh_of(model)
    return None if mesh is None or examples % mesh.shape[DATA] else mesh


def batch_size(model: Whisper, given: int | None) -> int:
    """Return the number of examples that run together: as many on each of the model's devices.

    Args:
        model: the model.
        given: the least number; by default one that suits the devices.
    """
    devices = parts_of(mesh_of(model))
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


def parts_of(mesh: Mesh | None) -> int:
    """Return the number of parts into which examples are divided on a mesh."""
    return 1 if mesh is None else mesh.shape[DATA]


def divide[Tree](mesh: Mesh | None, tree: Tree) -> Tree:
    """Give each device its part of the leading axis of every array; without a mesh do nothing."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P(DATA)))


def on_parts(mesh: Mesh | None, f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make `f(shared, examples)` run on every device with its part of the examples.

    Args:
        mesh: the devices; without one `f` is returned as it is.
        f: a function that does the same for every example along the leading axis.
    """
    if mesh is None:
        return f
    return _shard_map(f, mesh, (P(), P(DATA)))


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Devices that run one program at the same time, each with arguments of its own.

    Attributes:
        mesh: the devices; without one there is a single lane, and programs run as they are.
        divided: whether the devices have a part of the runs each, and the same chunks: one lane.
            Otherwise they all have the same runs, and each chunks of its own.
    """

    mesh: Mesh | None
    divided: bool = False

    def __len__(self) -> int:
        return 1 if self.divided else parts_of(self.mesh)

    def give[Tree](self, values: Sequence[Tree]) -> Tree:
        """Make one argument of the lanes' own values; lanes for which there are none get the last.

        Args:
            values: one for each lane, of equal shapes.
        """
        if self.mesh is None or self.divided:
            (value,) = values
            return value
        # One transfer fetches all of them.
        fetched = jax.device_get([*values, *[values[-1]] * (len(self) - len(values))])
        return jax.tree.map(lambda *leaves: np.stack(leaves), *fetched)

    def take(self, value: jax.Array) -> list[np.ndarray]:
        """Return each lane's result."""
        single = self.mesh is None or self.divided
        return [np.asarray(value)] if single else list(np.asarray(value))

    def run(
        self,
        program: Callable[..., Any],
        *arguments: Any,
        own: tuple[int, ...],
        runs: tuple[int, ...],
        **static: Any,
    ) -> Any:
        """Run a jitted program in every lane.

        Args:
            program: the program; what it returns has an axis for the runs at the front.
            arguments: its arguments.
            own: which of them, by number, come from `give` or from an earlier `run`; all lanes
                share the others.
            runs: which of them have an axis for the runs at the front.
            static: its static arguments.

        Returns:
            The results, which are arguments of the lanes' own.
        """
        if self.mesh is None:
            return program(*arguments, **static)
        parts = runs if self.divided else own
        return _run_lanes(arguments, program, self.mesh, parts, self.divided, tuple(static.items()))


@functools.partial(jax.jit, static_argnames=("program", "mesh", "parts", "divided", "static"))
def _run_lanes(
    arguments: tuple[Any, ...],
    program: Callable[..., Any],
    mesh: Mesh,
    parts: tuple[int, ...],
    divided: bool,
    static: tuple[tuple[str, Any], ...],
) -> Any:
    def of_runs(*given: Any) -> Any:
        return program(*given, **dict(static))

    def of_lane(*given: Any) -> Any:
        mine = [
            jax.tree.map(lambda leaf: leaf[0], one) if i in parts else one
            for i, one in enumerate(given)
        ]
        return jax.tree.map(lambda leaf: leaf[None], of_runs(*mine))

    specs = tuple(P(DATA) if i in parts else P() for i in range(len(arguments)))
    return _shard_map(of_runs if divided else of_lane, mesh, specs)(*arguments)


def _shard_map(f: Callable[..., Any], mesh: Mesh, specs: tuple[P, ...]) -> Callable[..., Any]:
    """Make `f` run on every part of the data; the compiler divides it along the model's axis.

    Without such an axis the compiler has nothing to divide: it takes kernels only then.
    """
    mapped = {DATA} if mesh.shape[MODEL] > 1 else {DATA, MODEL}
    return jax.shard_map(
        f, mesh=mesh, in_specs=specs, out_specs=P(DATA), axis_names=mapped, check_vma=False
    )
