"""Reductions of one clip's activations over positions, on the device."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.request import Request
from jaxasr_interp.numerics import accumulation_dtype


def reduced(
    requests: Sequence[Request],
    where: Sequence[Int[Array, " _"]],
    acts: Mapping[str, Array],
) -> dict[str, Array]:
    """Reduce the activations of the requests whose sites are there, by the requests' names.

    Args:
        requests: requests for the stack of the activations.
        where: for each request the positions in the clip: see `reduce`.
        acts: activations of one clip, of one layer or outside the layers, by site.
    """
    return {
        request.name: reduce(request, acts[request.site], places)
        for request, places in zip(requests, where, strict=True)
        if request.site in acts
    }


def reduce(
    request: Request, value: Float[Array, "..."], where: Int[Array, " _"]
) -> Float[Array, "..."]:
    """Reduce the position axis of one activation, in float32 or wider.

    Args:
        request: request that names the reduction.
        value: activation with the axes `request.site_axes`, without `layer`.
        where: `(start, stop)`; for `end` and `at` the positions themselves.

    Returns:
        The reduced activation, with the axes `request.axes`, without `layer`.
    """
    axis = request.axis - request.site_axes.count("layer")
    wide = value.astype(accumulation_dtype(value.dtype))
    if request.reduction == "end":
        return jnp.take(wide, where[0], axis)
    if request.reduction == "at":
        return jnp.take(wide, where, axis)
    start, stop = where
    positions = jnp.arange(value.shape[axis], dtype=where.dtype)
    inside = (positions >= start) & (positions < stop)
    inside = inside.reshape([-1 if i == axis else 1 for i in range(value.ndim)])
    match request.reduction:
        case "max":
            return jnp.where(inside, wide, -jnp.inf).max(axis)
        case "mean" | "word":
            return jnp.where(inside, wide, 0.0).sum(axis) / (stop - start).astype(wide.dtype)
        case _:
            every = [slice(None, None, request.step if i == axis else 1) for i in range(value.ndim)]
            return jnp.where(inside, wide, jnp.nan)[tuple(every)]


def fit(
    value: Float[np.ndarray, "clip ..."], axes: Sequence[str], shape: Sequence[int]
) -> Float[np.ndarray, "clip ..."]:
    """Pad or cut activations of a batch to the store's shape; new values are NaN, or 0 on `key`."""
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True), start=1):
        missing = max(0, size - value.shape[i])
        widths = [(0, missing if j == i else 0) for j in range(value.ndim)]
        value = np.pad(value, widths, constant_values=0 if axis == "key" else np.nan)
    return value[(slice(None), *(slice(size) for size in shape))]


def narrowed(value: Float[np.ndarray, "..."], name: str, dtype: str) -> Float[np.ndarray, "..."]:
    """Cast values to the store's dtype.

    Raises:
        InputError: a value is too large for the dtype.
    """
    with np.errstate(over="ignore"):
        stored = value.astype(dtype)
    if (np.isinf(stored) & ~np.isinf(value)).any():
        raise InputError(
            f"{name} reaches {np.nanmax(np.abs(value)):.3g}, beyond {dtype}: store it as float32."
        )
    return stored
