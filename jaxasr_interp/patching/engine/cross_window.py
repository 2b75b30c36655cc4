"""Patching windows of the final encoder states: only their cross keys and values are new.

Each query's softmax runs over [the shared keys with the window masked | the window's own], so no
patch needs keys and values of all frames, and the products with the shared ones are one dense
matrix product over the rows of all patches.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.kernels.attention import (
    attend_part,
    merge,
)
from jaxasr_interp.model.blocks import DecoderBlock
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.edits import Edit, apply_edit, untouched
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.patching.cells import Cells
from jaxasr_interp.patching.engine.inject import at_layer, patched_rows, window_rows
from jaxasr_interp.patching.runs import BaseRun, for_each_run
from jaxasr_interp.pytree import pytree_dataclass


@functools.partial(jax.jit, static_argnames="width")
def propagate_states(
    decoder: Decoder,
    bases: BaseRun,
    edits: Edit,
    cells: Cells,
    reads: Int[Array, "batch read"],
    *,
    width: int,
) -> Float[Array, "batch patch read d_model"]:
    """Patch windows of the final encoder states and run the decoder.

    Args:
        decoder: the decoder.
        bases: the runs that are patched.
        edits: what the patches do at full strength, for each run.
        cells: the patches.
        reads: positions that the metrics read of each run.
        width: frames of the widest patch.

    Returns:
        For each run the last layer's `resid_post` at the positions that are read.
    """

    def one(base: BaseRun, edit: Edit, reads: Array) -> Array:
        return _decode(decoder, base, _write(base, edit, cells, width), reads)

    return for_each_run(one, bases, edits, reads)


@pytree_dataclass
class _Windows:
    """The patched frames of the encoder states.

    Attributes:
        states: what each patch writes there.
        given: which of them are in the patch's window (windows may be of different width).
        replaced: which frames the patch replaces.
    """

    states: Float[Array, "patch row d_model"]
    given: Bool[Array, "patch row"]
    replaced: Bool[Array, "patch frame"]


def _write(base: BaseRun, edit: Edit, cells: Cells, width: int) -> _Windows:
    """What some patches of the final encoder states write."""
    frames = jnp.arange(len(base.states), dtype=jnp.int32)[None, :]
    rows = window_rows(cells, width, len(base.states))
    unclipped = cells.start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
    return _Windows(
        patched_rows(
            "ln_final", base.states, apply_edit(edit, "ln_final", None, base.states), cells, rows
        ),
        unclipped < cells.stop[:, None],
        (frames >= cells.start[:, None]) & (frames < cells.stop[:, None]),
    )


def _decode(
    decoder: Decoder, base: BaseRun, windows: _Windows, reads: Int[Array, " read"]
) -> Float[Array, "patch read d_model"]:
    last, n_tokens = decoder.n_layers - 1, len(base.tokens)
    pos = jnp.arange(n_tokens, dtype=jnp.int32)
    causal = pos[None, :] <= pos[:, None]

    def after_self_attention(layer: Array, resid_mid: Array) -> Array:
        block = at_layer(decoder.blocks, layer)
        z = _mix_windows(block, at_layer(base.cross, layer), windows, resid_mid)
        cross_attn_out = block.cross_attn.output(untouched(), _rows(z))
        resid = block.finish_cross(untouched(), _rows(resid_mid), cross_attn_out)
        return resid.reshape(resid_mid.shape)

    def self_attention(layer: Array, resid: Array, queries: Array) -> Array:
        """`resid_mid` of the positions `queries`."""
        block: DecoderBlock = at_layer(decoder.blocks, layer)

        def one(resid: Array) -> Array:
            normed = block.attn_norm(resid)
            k, v = (x.swapaxes(0, 1) for x in block.attn.keys_values(normed))
            q = block.attn.queries(normed[queries])
            return resid[queries] + block.attn.attend(
                untouched(), q, KeysValues(k, v), causal[queries]
            )

        return jax.vmap(one)(resid)

    def whole_layer(layer: Array, resid: Array) -> Array:
        return after_self_attention(layer, self_attention(layer, resid, pos))

    shape = (len(windows.states), *base.decoder.resid_mid.shape[1:])
    # Nothing before the first cross-attention has changed.
    resid = jnp.broadcast_to(base.decoder.resid_mid[0][None], shape)
    first = jnp.zeros((), jnp.int32)
    if last == 0:
        return after_self_attention(first, resid[:, reads])
    resid = after_self_attention(first, resid)
    resid = jax.lax.fori_loop(1, last, whole_layer, resid)
    end = jnp.asarray(last, jnp.int32)
    return after_self_attention(end, self_attention(end, resid, reads))


def _mix_windows(
    block: DecoderBlock,
    cross: KeysValues,
    windows: _Windows,
    resid_mid: Float[Array, "patch pos d_model"],
) -> Float[Array, "patch pos head d_head"]:
    """Cross-attention's `z` with each patch's own keys and values in its window."""
    attention, n_tokens = block.cross_attn, resid_mid.shape[1]
    q = attention.queries(block.cross_norm(_rows(resid_mid)))
    own_k, own_v = (
        x.reshape(*windows.states.shape[:2], *x.shape[1:]).swapaxes(1, 2)
        for x in attention.keys_values(_rows(windows.states))
    )
    z = q.reshape(*resid_mid.shape[:2], *q.shape[1:])

    def within(q: Array, k: Array, v: Array, given: Array) -> tuple[Array, Array]:
        return attend_part(q, k, v, jnp.broadcast_to(given, (n_tokens, len(given))))

    own = jax.vmap(within)(z, own_k, own_v, windows.given)
    around = jnp.repeat(~windows.replaced, n_tokens, axis=0)
    shared = attend_part(q, cross.k, cross.v, around)
    mixed, _ = merge(shared, (_rows(own[0]), _rows(own[1])))
    return mixed.reshape(z.shape)


def _rows(x: Float[Array, "patch row *rest"]) -> Float[Array, "rows *rest"]:
    return x.reshape(-1, *x.shape[2:])
