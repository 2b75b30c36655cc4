"""Propagating encoder patches: from their layer on, and only through the decoder at the very end.

Attention in the encoder looks both ways, so a patch changes every frame from its layer on: what is
saved are the layers before it, and in its own layer the queries, keys and values of all frames but
its own. A window of the *final* states is another matter: it changes only its own rows of the
cross-attention's keys and values, so all patches share the rest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.blocks import EncoderBlock
from jaxasr_interp.model.edits import untouched
from jaxasr_interp.model.encoder import Encoder
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.cells import Cells
from jaxasr_interp.patching.engine.inject import Entry, at_layer, stream_at, where_rows
from jaxasr_interp.patching.runs import BaseRun, for_each_run


@jax.jit
def propagate_frames(
    model: Whisper,
    bases: BaseRun,
    entries: Entry,
    enters: Int[Array, " layer"],
    cells: Cells,
    reads: Int[Array, "batch read"],
) -> Float[Array, "batch patch read d_model"]:
    """Carry changed frames through the encoder and decoder.

    Args:
        model: the model.
        bases: the runs that are patched.
        entries: from `inject`, for each run.
        enters: the layers that they enter (the number of layers: past the last).
        cells: the patches of one layer; all layers have the same.
        reads: positions that the metrics read of each run.

    Returns:
        For each run and patch, layer by layer, the decoder's last `resid_post` at the positions
        that are read.
    """

    def one(base: BaseRun, entries: Entry, reads: Array) -> Array:
        def of_layer(entering: tuple[Entry, Array]) -> Array:
            def patch(rows: Entry, start: Array, stop: Array) -> Array:
                states = _encode(model.encoder, base, rows, entering[1], start, stop)
                return model.decoder(base.tokens, states)[0][reads]

            return jax.vmap(patch)(entering[0], cells.start, cells.stop)

        read = jax.lax.map(of_layer, (entries, enters))
        return read.reshape(-1, *read.shape[2:])

    return for_each_run(one, bases, entries, reads)


def _encode(
    encoder: Encoder,
    base: BaseRun,
    rows: Entry,
    entry: Int[Array, ""],
    start: Int[Array, ""],
    stop: Int[Array, ""],
) -> Float[Array, "frame d_model"]:
    acts, blocks = base.encoder, encoder.blocks
    frames = jnp.arange(len(base.states), dtype=jnp.int32)
    offset = jnp.clip(frames - start, 0, len(rows.resid) - 1)
    inside = (frames >= start) & (frames < stop)

    def given(before: Array, changed: Array | None) -> Array:
        assert changed is not None
        return where_rows(inside, changed[offset], before)

    def entry_layer(resid: Array) -> Array:
        block: EncoderBlock = at_layer(blocks, entry)
        q, k, v = (
            given(at_layer(before, entry), changed)
            for before, changed in ((acts.q, rows.q), (acts.k, rows.k), (acts.v, rows.v))
        )
        kv = KeysValues(k.swapaxes(0, 1), v.swapaxes(0, 1))
        return block.finish(untouched(), resid, block.attn.attend(untouched(), q, kv))

    def whole_layer(layer: Array, resid: Array) -> Array:
        block: EncoderBlock = at_layer(blocks, layer)
        return block(untouched(), resid)

    resid = given(stream_at(acts, entry), rows.resid)
    inner = entry < encoder.n_layers
    resid = jax.lax.cond(inner, entry_layer, lambda resid: resid, resid)
    resid = jax.lax.fori_loop(entry + 1, encoder.n_layers, whole_layer, resid)
    return encoder.final_norm(resid)
