"""Packing the rows that a layer's patches change: (patch, position ≥ start), and no others.

The set is known before anything runs, so that everything row-wise is one dense product over all
patches; only the dots of self-attention need each patch's keys and values by themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.patching.chunks import Chunk
from jaxasr_interp.patching.engine.inject import where_rows
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Packing:
    """Which (patch, position) each packed row of a layer is.

    Attributes:
        start: each patch's first changed position.
        stop: the position after its last one that is given; later ones only feel it.
        first: its first packed row.
        patch: each row's patch.
        pos: each row's position.
    """

    start: Int[Array, " patch"]
    stop: Int[Array, " patch"]
    first: Int[Array, " patch"]
    patch: Int[Array, " row"]
    pos: Int[Array, " row"]


def pack(chunk: Chunk, n_tokens: int, *, everywhere: bool) -> Packing:
    """Lay out a chunk's rows; those of the patches that only fill it up stay idle.

    Args:
        chunk: the patches.
        n_tokens: length of the runs.
        everywhere: whether the patches give every position (else those of their windows).
    """
    start, stop = chunk.places["start"], chunk.places["stop"]
    if everywhere:
        start, stop = np.zeros_like(start), np.full_like(stop, n_tokens)
    lengths = np.where(np.arange(len(start)) < chunk.where.shape[1], n_tokens - start, 0)
    first = np.cumsum(lengths) - lengths
    patch = np.repeat(np.arange(len(start)), lengths)
    pos = np.arange(len(patch)) - first[patch] + start[patch]
    idle = (0, chunk.rows - len(patch))
    arrays = (start, stop, first, np.pad(patch, idle), np.pad(pos, idle))
    return Packing(*jax.device_put([array.astype(np.int32) for array in arrays]))


class Places:
    """Where each patch's positions are found among its layer's packed rows."""

    def __init__(self, packing: Packing, n_tokens: int):
        self.packing = packing
        pos = jnp.arange(n_tokens, dtype=jnp.int32)
        self.causal = pos[None, :] <= pos[:, None]
        last_row = len(packing.pos) - 1
        self.row = packing.first[:, None] + pos[None, :] - packing.start[:, None]
        self.row = jnp.clip(self.row, 0, last_row)
        changed = pos[None, :] >= packing.start[:, None]
        self._source = jnp.where(changed, n_tokens + self.row, pos[None, :])

    def spread(
        self, base: Float[Array, "pos head d_head"], rows: Float[Array, "slot row head d_head"]
    ) -> Float[Array, "slot patch head pos d_head"]:
        """Each patch's keys or values: the base run's before its start, then its own."""
        base = jnp.broadcast_to(base, (len(rows), *base.shape))
        return jnp.concatenate([base, rows], axis=1)[:, self._source].swapaxes(2, 3)

    def packed(
        self, before: Float[Array, "pos *rest"], rows: Float[Array, "patch given *rest"]
    ) -> Float[Array, "row *rest"]:
        """Packed rows: the patch's where it gives them, else the base run's."""
        packing = self.packing
        offset = jnp.clip(packing.pos - packing.start[packing.patch], 0, rows.shape[1] - 1)
        inside = packing.pos < packing.stop[packing.patch]
        return where_rows(inside, rows[packing.patch, offset], before[packing.pos])
