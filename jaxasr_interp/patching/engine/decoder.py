"""Propagating changed decoder rows to the positions that are read, and nothing else.

Cross-attention keys and values are shared by all patches. Layers before the entry, and positions
before a patch, are the base run's. The rows that remain, (patch, position ≥ start), are packed
into one `[rows, d_model]` array, so all but the self-attention dots are dense row-wise products; in
the entry layer only the changed rows are projected, in the last one only keys, values and the rows
that are read. The entry layer is dynamic: one program serves all layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.blocks import DecoderBlock
from jaxasr_interp.model.edits import untouched
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.whisper import Decoder
from jaxasr_interp.patching.chunks import Chunk
from jaxasr_interp.patching.engine.inject import Entry, at_layer, stream_at, where_rows
from jaxasr_interp.patching.runs import BaseRun
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Packing:
    """Which (patch, position) each packed row is.

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
    start, stop = np.asarray(chunk.cells.start), np.asarray(chunk.cells.stop)
    if everywhere:
        start, stop = np.zeros_like(start), np.full_like(stop, n_tokens)
    lengths = np.where(np.arange(chunk.size) < len(chunk.where), n_tokens - start, 0)
    first = np.cumsum(lengths) - lengths
    patch = np.repeat(np.arange(chunk.size), lengths)
    pos = np.arange(len(patch)) - first[patch] + start[patch]
    idle = (0, chunk.rows - len(patch))
    arrays = (start, stop, first, np.pad(patch, idle), np.pad(pos, idle))
    return Packing(*(jnp.asarray(array.astype(np.int32)) for array in arrays))


@jax.jit
def propagate_rows(
    decoder: Decoder,
    bases: BaseRun,
    entries: Entry,
    entry: Int[Array, ""],
    packing: Packing,
    reads: Int[Array, "batch read"],
) -> Float[Array, "batch patch read d_model"]:
    """Carry changed rows from the entry layer to the positions that are read.

    Args:
        decoder: the decoder.
        bases: the runs that are patched.
        entries: from `inject`, for each run.
        entry: the layer that the rows enter (the number of layers: past the last).
        packing: where they go.
        reads: positions that the metrics read of each run.

    Returns:
        For each run and patch the last layer's `resid_post` at the positions that are read.
    """

    def one(base: BaseRun, entered: Entry, reads: Array) -> Array:
        return _propagate(decoder, base, entered, entry, packing, reads)

    return jax.vmap(one)(bases, entries, reads)


def _propagate(
    decoder: Decoder,
    base: BaseRun,
    entered: Entry,
    entry: Int[Array, ""],
    packing: Packing,
    reads: Int[Array, " read"],
) -> Float[Array, "patch read d_model"]:
    acts, last = base.decoder, decoder.n_layers - 1
    assert acts.k is not None
    assert acts.v is not None
    places = _Places(packing, len(base.tokens))
    blocks: DecoderBlock = decoder.blocks
    base_k, base_v = acts.k, acts.v

    def packed(before: Array, rows: Array) -> Array:
        """Packed rows: the patch's where it gives them, else the base run's."""
        offset = jnp.clip(packing.pos - packing.start[packing.patch], 0, rows.shape[1] - 1)
        inside = packing.pos < packing.stop[packing.patch]
        return where_rows(inside, rows[packing.patch, offset], before[packing.pos])

    def mix(block: DecoderBlock, layer: Array, q: Array, k: Array, v: Array, mask: Array) -> Array:
        """`z` of each patch's queries."""
        k, v = (places.spread(at_layer(x, layer), new) for x, new in ((base_k, k), (base_v, v)))
        return jax.vmap(lambda q, k, v: block.attn.mix(untouched(), q, KeysValues(k, v), mask))(
            q, k, v
        )

    def finish(layer: Array, resid: Array, q: Array, k: Array, v: Array) -> Array:
        block = at_layer(blocks, layer)
        z = mix(block, layer, q[places.row], k, v, places.causal)
        attn_out = block.attn.output(untouched(), z[packing.patch, packing.pos])
        return block.finish(untouched(), resid, attn_out, at_layer(base.cross, layer))

    def whole_layer(layer: Array, resid: Array) -> Array:
        q, kv = at_layer(blocks, layer).project(untouched(), resid)
        return finish(layer, resid, q, kv.k.swapaxes(0, 1), kv.v.swapaxes(0, 1))

    def last_layer(read: Array) -> Array:
        """The last layer of the rows that are read alone; all others give it keys and values."""
        layer = jnp.asarray(last, jnp.int32)
        block: DecoderBlock = at_layer(blocks, layer)
        new_k, new_v = jax.lax.cond(
            early, lambda: block.attn.keys_values(block.attn_norm(resid)), lambda: (k, v)
        )
        rows = read.reshape(-1, read.shape[-1])
        q = block.attn.queries(block.attn_norm(rows))
        q = q.reshape(*read.shape[:2], *q.shape[1:])
        z = mix(block, layer, q, new_k, new_v, places.causal[reads])
        attn_out = block.attn.output(untouched(), z.reshape(-1, *z.shape[2:]))
        finished = block.finish(untouched(), rows, attn_out, at_layer(base.cross, layer))
        return finished.reshape(read.shape)

    resid = packed(stream_at(acts, entry), entered.resid)
    q, k, v = (
        packed(at_layer(before, entry), rows)
        for before, rows in ((acts.q, entered.q), (acts.k, entered.k), (acts.v, entered.v))
    )
    early, past = entry < last, entry > last
    resid = jax.lax.cond(early, lambda: finish(entry, resid, q, k, v), lambda: resid)
    resid = jax.lax.fori_loop(entry + 1, last, whole_layer, resid)

    before = stream_at(acts, jnp.where(past, last + 1, last))[reads]
    changed = reads[None, :] >= packing.start[:, None]
    read = jnp.where(changed[..., None], resid[places.row[:, reads]], before[None])
    return jax.lax.cond(past, lambda read: read, last_layer, read)


class _Places:
    """Where each patch's positions are found among the packed rows."""

    def __init__(self, packing: Packing, n_tokens: int):
        pos = jnp.arange(n_tokens, dtype=jnp.int32)
        self.causal = pos[None, :] <= pos[:, None]
        last_row = len(packing.pos) - 1
        self.row = packing.first[:, None] + pos[None, :] - packing.start[:, None]
        self.row = jnp.clip(self.row, 0, last_row)
        changed = pos[None, :] >= packing.start[:, None]
        self._source = jnp.where(changed, n_tokens + self.row, pos[None, :])

    def spread(
        self, base: Float[Array, "pos head d_head"], rows: Float[Array, "row head d_head"]
    ) -> Float[Array, "patch head pos d_head"]:
        """Each patch's keys or values: the base run's before its start, then its own."""
        return jnp.concatenate([base, rows])[self._source].swapaxes(1, 2)
