"""The sweep as one program: a patch is an edit, and `vmap` over edits is the sweep."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.edits import Interchange
from jaxasr_interp.metrics import Metric
from jaxasr_interp.model import Decoder
from jaxasr_interp.patching.runs import Prepared, read_metrics


@functools.partial(jax.jit, static_argnames="site")
def run_chunk(
    decoder: Decoder,
    prepared: Prepared,
    cells: Int[Array, "patch 2"],
    metrics: tuple[Metric, ...],
    site: str,
) -> Float[Array, "patch metric"]:
    """Patch each (layer, position) of `cells` in a run of its own; read the metrics of all."""

    def patched(cell: Int[Array, "2"]) -> Float[Array, " metric"]:
        where = jnp.zeros(prepared.source.shape[:2], bool).at[cell[0], cell[1]].set(True)
        edit = Interchange(prepared.source, where, site)
        return read_metrics(
            decoder, prepared.tokens, prepared.cross, edit, metrics, prepared.clean_logits
        )

    return jax.vmap(patched)(cells)
