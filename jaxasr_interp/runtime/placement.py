"""Where a model's parameters lie: copies of it on devices, or each copy divided among several."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.devices import MODEL, make_mesh, mesh_of
from jaxasr_interp.runtime.memory import device_memory
from jaxasr_interp.runtime.transforms import host_only

_BY_OUTPUT, _BY_INPUT = {"query", "key", "value", "up"}, {"out", "down"}


@host_only()
def replicate(
    model: Whisper, devices: int | None = None, *, tensor_parallel: int | None = None
) -> Whisper:
    """Place a model on several devices of this process, so that sweeps with it use all of them.

    A sweep of several pairs spreads them over the copies of the model; if they cannot be divided
    evenly, as a single one cannot, it spreads the patches. The numbers are those of one device, but
    for rounding where devices share a copy.

    Args:
        model: from `load_model`.
        devices: number of devices; by default all.
        tensor_parallel: number of devices that share a copy of the model; by default as few as hold
            it in half of their memory.

    Returns:
        The model with its parameters on the devices; the same model if there is only one.

    Raises:
        InputError: there are no such number of devices, or they cannot share copies like that.
    """
    local = jax.local_devices()
    if devices is not None and not 1 <= devices <= len(local):
        raise InputError(
            f"The number of devices is {devices}: this process has {len(local)}, choose 1 to "
            f"{len(local)}."
        )
    chosen = local[:devices]
    sharing = _devices_of_copy(model, len(chosen), tensor_parallel)
    if len(chosen) == 1 and mesh_of(model) is None:
        return model
    return jax.device_put(model, shardings(model, make_mesh(chosen, sharing)))


def _devices_of_copy(model: Whisper, devices: int, given: int | None) -> int:
    """Choose how many devices share a copy of the model."""
    c = model.config
    divided = (devices, c.encoder_heads, c.decoder_heads, c.encoder_d_mlp, c.decoder_d_mlp)
    possible = [n for n in range(1, devices + 1) if not any(size % n for size in divided)]
    if given is not None and given not in possible:
        raise InputError(
            f"The tensor_parallel is {given}: it must divide the {devices} devices, the heads and "
            f"the hidden units, choose one of {', '.join(map(str, possible))}."
        )
    size, room = sum(leaf.nbytes for leaf in jax.tree.leaves(model)), device_memory() // 2
    return given or next((n for n in possible if size <= n * room), possible[-1])


def shardings(model: Whisper, mesh: Mesh) -> Any:
    """Say where each parameter of a model lies.

    A linear map that makes heads or hidden units is divided by its outputs, the one that takes them
    by its inputs; all else is in each device. So a sublayer needs one sum over the model's axis.

    Args:
        model: the model, which needs no values.
        mesh: from `make_mesh`.

    Returns:
        A sharding in place of each parameter.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        *_, linear, kind, _ = ("", "", *(key.name for key in path))
        axis = None
        if linear in _BY_OUTPUT:
            axis = leaf.ndim - 1
        elif linear in _BY_INPUT and kind == "kernel":
            axis = leaf.ndim - 2
        return NamedSharding(mesh, P(*(MODEL if i == axis else None for i in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(sharding, model)
