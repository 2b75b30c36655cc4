"""Work on the copies of a model: each device, or group of devices, computes parts of its own.

This suits work whose parts take different time, such as transcripts, or whose results should not
depend on the number of devices: a part runs on one copy as it would run alone.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.devices import MODEL, make_mesh, mesh_of, parts_of


def copies(model: Whisper) -> list[Whisper]:
    """Return the copies of a model that `replicate` placed, each on devices of its own.

    Args:
        model: the model; if it is on one device, it is its only copy.

    Returns:
        Models that share the parameters' memory with it.
    """
    mesh = mesh_of(model)
    if mesh is None or parts_of(mesh) == 1:
        return [model]
    return [_copy(model, mesh, number) for number in range(parts_of(mesh))]


def _copy(model: Whisper, mesh: Mesh, number: int) -> Whisper:
    devices = mesh.devices[number].tolist()
    own = make_mesh(devices, mesh.shape[MODEL])

    def taken(leaf: jax.Array) -> jax.Array:
        shards = {shard.device: shard.data for shard in leaf.addressable_shards}
        if len(devices) == 1:
            return shards[devices[0]]
        assert isinstance(leaf.sharding, NamedSharding)
        return jax.make_array_from_single_device_arrays(
            leaf.shape, NamedSharding(own, leaf.sharding.spec), [shards[one] for one in devices]
        )

    return jax.tree.map(taken, model)


def move_to[Tree](model: Whisper, tree: Tree) -> Tree:
    """Put arrays on the devices of a model's copy; what was one array stays one."""
    mesh = mesh_of(model)
    first = jax.tree.leaves(model)[0].sharding
    sharding = first if mesh is None else NamedSharding(mesh, P())
    moved: dict[int, Any] = {}

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if id(leaf) not in moved:
            moved[id(leaf)] = jax.device_put(leaf, sharding)
        return moved[id(leaf)]

    return jax.tree.map(one, tree)


def side_by_side[Copy, Part, Result](
    each: Sequence[Copy], run: Callable[[Copy, Part], Result], parts: Iterable[Part]
) -> list[Result]:
    """Run every part of some work on one of several copies, whichever is free.

    Args:
        each: the copies.
        run: runs a part on a copy; called in a thread for each copy if there are several.
        parts: the parts; the next one is taken when a copy is free.

    Returns:
        The results, in the order of the parts.
    """
    if len(each) == 1:
        return [run(each[0], part) for part in parts]
    numbered, results = enumerate(parts), {}
    taking, stopped = threading.Lock(), threading.Event()
    # A thread does not know by itself in which precision the caller computes.
    wide, precision = jax.config.read("jax_enable_x64"), jax.config.jax_default_matmul_precision

    def take() -> tuple[int, Part] | None:
        with taking:
            return None if stopped.is_set() else next(numbered, None)

    def work(copy: Copy) -> None:
        with jax.enable_x64(wide), jax.default_matmul_precision(precision):
            while (taken := take()) is not None:
                number, part = taken
                results[number] = run(copy, part)

    with ThreadPoolExecutor(len(each)) as pool:
        try:
            for done in as_completed([pool.submit(work, copy) for copy in each]):
                done.result()
        finally:
            stopped.set()
    return [results[number] for number in range(len(results))]
