"""Self-attention of the packed rows: each patch's rows see the base run before it, and its own.

There are two ways to the same numbers. By patch, every patch gets keys and values of all positions:
few FLOPs, in many small products. Joined, the rows of a slot attend to the base run's positions and
to all rows of the slot, most of them masked: one dense product for each head, as TPUs want them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.kernels.attention import attend
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.patching.engine.packing import Places


class ByPatch:
    """Each patch attends to keys and values of its own."""

    def __init__(self, places: Places):
        self.places = places

    def rows(
        self,
        q: Float[Array, "slot row head d_head"],
        before: KeysValues,
        own: KeysValues,
    ) -> Float[Array, "slot row head d_head"]:
        """`z` of every row.

        Args:
            q: queries of the rows.
            before: the base run's keys and values, positions first.
            own: those of the rows.
        """
        places, packing = self.places, self.places.packing
        z = self._mix(q[:, places.row], before, own, places.causal)
        return z[:, packing.patch, packing.pos]

    def reads(
        self,
        q: Float[Array, "slot patch read head d_head"],
        before: KeysValues,
        own: KeysValues,
        reads: Int[Array, " read"],
    ) -> Float[Array, "slot patch read head d_head"]:
        """`z` at the positions that are read of each patch."""
        return self._mix(q, before, own, self.places.causal[reads])

    def _mix(self, q: Array, before: KeysValues, own: KeysValues, mask: Array) -> Array:
        k, v = (self.places.spread(*pair) for pair in ((before.k, own.k), (before.v, own.v)))
        return jax.vmap(jax.vmap(lambda q, k, v: attend(q, k, v, mask)))(q, k, v)


class Joined:
    """All rows of a slot attend to the same keys and values, each to those that it may see."""

    def __init__(self, places: Places):
        self.places = places
        packing = places.packing
        pos, patch = packing.pos, packing.patch
        row = jnp.arange(len(pos), dtype=jnp.int32)
        # Rows that only fill the chunk up repeat another's place.
        self.there = row == packing.first[patch] + pos - packing.start[patch]
        self.mask = self._visible(patch, pos)

    def rows(
        self,
        q: Float[Array, "slot row head d_head"],
        before: KeysValues,
        own: KeysValues,
    ) -> Float[Array, "slot row head d_head"]:
        """See `ByPatch.rows`."""
        return self._mix(q, before, own, self.mask)

    def reads(
        self,
        q: Float[Array, "slot patch read head d_head"],
        before: KeysValues,
        own: KeysValues,
        reads: Int[Array, " read"],
    ) -> Float[Array, "slot patch read head d_head"]:
        """See `ByPatch.reads`."""
        n_patches, n_reads = q.shape[1:3]
        patch = jnp.repeat(jnp.arange(n_patches, dtype=jnp.int32), n_reads)
        mask = self._visible(patch, jnp.tile(reads, n_patches))
        flat = q.reshape(len(q), -1, *q.shape[3:])
        return self._mix(flat, before, own, mask).reshape(q.shape)

    def _visible(
        self, patch: Int[Array, " query"], pos: Int[Array, " query"]
    ) -> Bool[Array, "query key"]:
        """Which of the base run's positions, then which rows, queries of some patches see."""
        packing = self.places.packing
        positions = jnp.arange(len(self.places.causal), dtype=jnp.int32)
        until = jnp.minimum(packing.start[patch] - 1, pos)
        before = positions[None, :] <= until[:, None]
        own = (packing.patch[None, :] == patch[:, None]) & (packing.pos[None, :] <= pos[:, None])
        return jnp.concatenate([before, own & self.there[None, :]], axis=1)

    def _mix(self, q: Array, before: KeysValues, own: KeysValues, mask: Array) -> Array:
        def join(before: Array, own: Array) -> Array:
            shared = jnp.broadcast_to(before, (len(own), *before.shape))
            return jnp.concatenate([shared, own], axis=1).swapaxes(1, 2)

        k, v = join(before.k, own.k), join(before.v, own.v)
        return jax.vmap(lambda q, k, v: attend(q, k, v, mask))(q, k, v)
