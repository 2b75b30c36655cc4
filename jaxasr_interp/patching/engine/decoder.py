"""One pass up the decoder, which carries the changed rows of every patch to the positions read.

Cross-attention keys and values are shared by all patches. A layer's patches join the pass in the
layer that they enter, so layers before it are the base run's, as are positions before a patch. The
rows that remain, (patch, position ≥ start), are packed into `[layer, row, d_model]`, so that all
but the self-attention dots are dense row-wise products, and each layer's weights are read once for
all patches that have entered. In the last layer all rows need keys and values, and only the rows
that are read the rest.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.kernels.attention import attend
from jaxasr_interp.model.blocks import DecoderBlock
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.edits import untouched
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.patching.engine.inject import Entry, at_layer, stream_at
from jaxasr_interp.patching.engine.packing import Packing, Places
from jaxasr_interp.patching.engine.self_attention import ByPatch, Joined
from jaxasr_interp.patching.runs import BaseRun, for_each_run
from jaxasr_interp.patching.schedule import Schedule


@functools.partial(jax.jit, static_argnames="schedule")
def propagate_rows(
    decoder: Decoder,
    bases: BaseRun,
    entries: Entry,
    enters: Int[Array, " layer"],
    packing: Packing,
    reads: Int[Array, "batch read"],
    *,
    schedule: Schedule,
) -> Float[Array, "batch patch read d_model"]:
    """Carry changed rows from the layers that they enter to the positions that are read.

    Args:
        decoder: the decoder.
        bases: the runs that are patched.
        entries: from `inject`, for each run.
        enters: the layers that they enter, in ascending order (the number of layers: past the
            last).
        packing: where the rows of one layer's patches go.
        reads: positions that the metrics read of each run.
        schedule: how the pass goes through the layers.

    Returns:
        For each run and patch, layer by layer, the last layer's `resid_post` at the positions that
        are read.
    """

    def one(base: BaseRun, entries: Entry, reads: Array) -> Array:
        sweep = _Pass(decoder, base, entries, enters, packing, schedule.joined)
        read = sweep.run(reads, schedule)
        return read.reshape(-1, *read.shape[2:])

    return for_each_run(one, bases, entries, reads)


class _Pass:
    """One run's pass. Its rows are `[slot, row, d_model]`, with a slot for each entry layer."""

    def __init__(
        self,
        decoder: Decoder,
        base: BaseRun,
        entries: Entry,
        enters: Int[Array, " layer"],
        packing: Packing,
        joined: bool,
    ):
        self.blocks: DecoderBlock = decoder.blocks
        self.n_layers = decoder.n_layers
        self.last = jnp.asarray(decoder.n_layers - 1, jnp.int32)
        self.base, self.acts = base, base.decoder
        self.entries, self.enters, self.packing = entries, enters, packing
        self.places = Places(packing, len(base.tokens))
        self.attention = (Joined if joined else ByPatch)(self.places)

    def run(
        self, reads: Int[Array, " read"], schedule: Schedule
    ) -> Float[Array, "layer patch read d_model"]:
        """`resid_post` of the last layer at the positions that are read."""
        enters, last, slots = self.enters, self.n_layers - 1, len(self.enters)
        most = schedule.together

        def grow(layer: Array, rows: Array, known: int | None) -> Array:
            """A layer that rows enter; `known` is how many slots are run, if that is fixed."""
            rows = self._enter(layer, rows)
            if known is None:
                return self._layer(layer, rows, self._active(layer), most)
            return self._layer(layer, rows, known, min(most, known))

        resid = self.entries.resid
        shape = (-(-slots // most) * most, len(self.packing.pos), resid.shape[-1])
        rows = jnp.zeros(shape, resid.dtype)
        first, final = schedule.span or (enters[0], enters[-1])
        if schedule.segments:
            grown = min(final + 1, last)
            for start, stop, known in schedule.parts(last):
                rows = _loop(start, stop, functools.partial(grow, known=known), rows)
            n_last = slots
        else:
            grown = jnp.minimum(jnp.asarray(final, jnp.int32) + 1, last)
            rows = _loop(first, grown, functools.partial(grow, known=None), rows)
            n_last = self._active(self.last)
        rows = _loop(grown, last, lambda layer, rows: self._layer(layer, rows, slots, most), rows)
        rows = self._enter(self.last, rows)
        read = self._last_layer(rows, n_last, most, reads)[:slots]
        return jax.lax.cond(
            enters[-1] > last, lambda: read.at[-1].set(self._past(reads)), lambda: read
        )

    def _active(self, layer: Array) -> Array:
        """The number of slots whose rows enter `layer` or one before it."""
        return (self.enters <= layer).sum(dtype=jnp.int32)

    def _slot(self, layer: Array) -> tuple[Array, Array]:
        """The slot of the rows that enter a layer, and whether there are any."""
        slot = jnp.minimum((self.enters < layer).sum(dtype=jnp.int32), len(self.enters) - 1)
        return slot, self.enters[slot] == layer

    def _enter(self, layer: Array, rows: Array) -> Array:
        """Put the rows that enter a layer, if any do, in their slot."""
        slot, there = self._slot(layer)
        new = self.places.packed(stream_at(self.acts, layer), at_layer(self.entries.resid, slot))
        return rows.at[slot].set(jnp.where(there, new, rows[slot]))

    def _layer(self, layer: Array, rows: Array, n: Array | int, most: int) -> Array:
        """Run a layer on the first `n` slots, `most` at a time."""
        block: DecoderBlock = at_layer(self.blocks, layer)
        before = self._before(layer)

        def some(i: Array, rows: Array) -> Array:
            start = i * most
            resid = jax.lax.dynamic_slice_in_dim(rows, start, most)
            q, own = self._project(block, layer, start, resid)
            z = self.attention.rows(q, before, own)
            done = self._finish(block, layer, resid, z)
            return jax.lax.dynamic_update_slice_in_dim(rows, done, start, 0)

        return _loop(0, -(-n // most), some, rows)

    def _last_layer(
        self, rows: Array, n: Array | int, most: int, reads: Int[Array, " read"]
    ) -> Float[Array, "slot patch read d_model"]:
        """The last layer of the rows that are read alone; all others give it keys and values."""
        block: DecoderBlock = at_layer(self.blocks, self.last)
        stream, before = stream_at(self.acts, self.last), self._before(self.last)

        def some(i: Array, out: Array) -> Array:
            start = i * most
            resid = jax.lax.dynamic_slice_in_dim(rows, start, most)
            _, own = self._project(block, self.last, start, resid)
            read = self._read(resid, stream, reads)
            q = _like(read, block.attn.queries(block.attn_norm(_flat(read))))
            z = self.attention.reads(q, before, own, reads)
            done = self._finish(block, self.last, read, z)
            return jax.lax.dynamic_update_slice_in_dim(out, done, start, 0)

        read = (len(rows), len(self.packing.start), len(reads), rows.shape[-1])
        return _loop(0, -(-n // most), some, jnp.zeros(read, rows.dtype))

    def _past(self, reads: Int[Array, " read"]) -> Float[Array, "patch read d_model"]:
        """What is read under patches that enter no layer."""
        stream = stream_at(self.acts, self.last + 1)
        rows = self.places.packed(stream, self.entries.resid[-1])
        return self._read(rows[None], stream, reads)[0]

    def _read(self, rows: Array, before: Array, reads: Array) -> Array:
        """The residual stream at the positions that are read: the patch's, or the base run's."""
        changed = reads[None, :] >= self.packing.start[:, None]
        return jnp.where(changed[..., None], rows[:, self.places.row[:, reads]], before[reads])

    def _project(
        self, block: DecoderBlock, layer: Array, start: Array, resid: Array
    ) -> tuple[Float[Array, "slot row head d_head"], KeysValues]:
        """Queries, keys and values of the rows of some slots from `start` on.

        Where rows enter, they come with them: patches may give other keys than the rows' own.
        """
        slot, there = self._slot(layer)
        own = there & (jnp.arange(len(resid), dtype=jnp.int32) + start == slot)
        base = [at_layer(one, layer) for one in (self.acts.q, self.acts.k, self.acts.v)]

        def given() -> list[Array]:
            entry = at_layer(self.entries, slot)
            assert entry.k is not None
            rows = zip(base, (entry.q, entry.k, entry.v), strict=True)
            return [self.places.packed(before, changed)[None] for before, changed in rows]

        def projected() -> list[Array]:
            normed = block.attn_norm(_flat(resid))
            q, k, v = block.attn.queries(normed), *block.attn.keys_values(normed)
            return [_like(resid, x) for x in (q, k, v)]

        if self.entries.k is None:
            q, k, v = projected()
        elif len(resid) == 1:
            q, k, v = jax.lax.cond(own[0], given, projected)
        else:
            pairs = zip(given(), projected(), strict=True)
            q, k, v = (jnp.where(own[:, None, None, None], a, b) for a, b in pairs)
        return q, KeysValues(k, v)

    def _before(self, layer: Array) -> KeysValues:
        """The base run's keys and values, positions first."""
        return KeysValues(at_layer(self.acts.k, layer), at_layer(self.acts.v, layer))

    def _finish(self, block: DecoderBlock, layer: Array, resid: Array, z: Array) -> Array:
        """The rest of a layer, after self-attention."""
        attention, cross = block.cross_attn, at_layer(self.base.cross, layer)
        attn_out = block.attn.output(untouched(), z.reshape(-1, *z.shape[-2:]))
        resid_mid = _flat(resid) + attn_out
        q = attention.queries(block.cross_norm(resid_mid))
        cross_attn_out = attention.output(untouched(), attend(q, cross.k, cross.v))
        return block.finish_cross(untouched(), resid_mid, cross_attn_out).reshape(resid.shape)


def _loop(
    start: Array | int, stop: Array | int, body: Callable[[Array, Array], Array], rows: Array
) -> Array:
    """`lax.fori_loop` over layers, of known length where both ends are numbers."""
    first, end = (x if isinstance(x, jax.Array) else np.int32(x) for x in (start, stop))
    return jax.lax.fori_loop(first, end, body, rows)


def _flat(rows: Float[Array, "*place d_model"]) -> Float[Array, "rows d_model"]:
    return rows.reshape(-1, rows.shape[-1])


def _like(rows: Float[Array, "*place d_model"], flat: Float[Array, "rows *rest"]) -> Array:
    """Flat rows in the places of others."""
    return flat.reshape(*rows.shape[:-1], *flat.shape[1:])
