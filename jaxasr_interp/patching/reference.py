"""The sweep the slow way: one unbatched decoder run for each patch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.edits import LayerIndex
from jaxasr_interp.metrics import Metric
from jaxasr_interp.model import Decoder
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.runs import Prepared, read_metrics


def patch_one_by_one(
    decoder: Decoder, plan: SweepPlan, prepared: Prepared, metrics: tuple[Metric, ...]
) -> Float[np.ndarray, "patch metric"]:
    """Run every cell of the plan on its own."""
    cells = [(layer, pos) for layer in plan.layers for pos in plan.positions]
    return np.stack([_patch(decoder, prepared, *cell, metrics, plan.site) for cell in cells])


@functools.partial(jax.jit, static_argnames="site")
def _patch(
    decoder: Decoder,
    prepared: Prepared,
    layer: int | Array,
    pos: int | Array,
    metrics: tuple[Metric, ...],
    site: str,
) -> Float[Array, " metric"]:
    def edit(at_site: str, at_layer: LayerIndex, value: Array) -> Array:
        if at_site != site:
            return value
        return jnp.where(at_layer == layer, value.at[pos].set(prepared.source[layer, pos]), value)

    return read_metrics(
        decoder, prepared.tokens, prepared.cross, edit, metrics, prepared.clean_logits
    )
