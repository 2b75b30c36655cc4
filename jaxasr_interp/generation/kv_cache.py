"""The decoder one position at a time, and what it remembers between positions.

Written for one row: one intervention on one clip. Where an edit takes values from a reference run,
a second decoder that hears the reference clip is given the same tokens, unedited, and goes in step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.blocks import DecoderBlock
from jaxasr_interp.model.edits import Edit, EditContext, Tap, identity
from jaxasr_interp.model.layers import KeysValues, write_rows
from jaxasr_interp.model.sites import DecoderActivations
from jaxasr_interp.model.whisper import Decoder
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class CrossKV:
    """Cross-attention keys and values of a clip, and of the reference clip if there is one."""

    clip: KeysValues
    reference: KeysValues | None


@pytree_dataclass
class KVCache:
    """Self-attention keys and values so far, layer by layer, of the run and its reference run."""

    run: list[KeysValues]
    reference: list[KeysValues] | None


def unstacked[Tree](tree: Tree, n: int) -> list[Tree]:
    """The layers of a stacked tree, each its own arrays: a loop that slices them copies them."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(n)]


def prefill(
    decoder: Decoder,
    prompt: Int[Array, " pos"],
    reads: tuple[Int[Array, ""], ...],
    cross: CrossKV,
    edit: Edit,
    capacity: int,
) -> tuple[list[Float[Array, " d_vocab"]], KVCache]:
    """Run the decoder over the first tokens.

    Args:
        decoder: the decoder.
        prompt: the tokens. Behind the real ones there may be padding, whose keys and values are
            overwritten before any later position may look at them.
        reads: positions whose logits are wanted.
        cross: of all layers, stacked.
        edit: called at every site.
        capacity: how many positions the cache has room for.

    Returns:
        The logits of those positions, and the cache.
    """
    positions = jnp.arange(len(prompt), dtype=jnp.int32)
    beside, beside_acts = None, None
    if cross.reference is not None:
        beside, beside_acts = decoder(prompt, cross.reference, patterns=True)
    context = EditContext(positions, beside_acts)
    resid, acts = decoder(prompt, cross.clip, edit, context=context)

    def remember(acts: DecoderActivations) -> list[KeysValues]:
        def padded(x: Array | None) -> Array:
            assert x is not None
            room = ((0, 0), (0, 0), (0, capacity - len(prompt)), (0, 0))
            return jnp.pad(x.swapaxes(1, 2), room)

        return unstacked(KeysValues(padded(acts.k), padded(acts.v)), decoder.n_layers)

    logits = [
        _logits(decoder, resid[at], None if beside is None else beside[at], edit, at)
        for at in reads
    ]
    return logits, KVCache(remember(acts), None if beside_acts is None else remember(beside_acts))


def decode_step(
    decoder: Decoder,
    blocks: list[DecoderBlock],
    token: Int[Array, ""],
    position: Int[Array, ""],
    cross: list[CrossKV],
    cache: KVCache,
    edit: Edit,
) -> tuple[Float[Array, " d_vocab"], KVCache]:
    """Run the decoder over the next token.

    Args:
        decoder: the decoder.
        blocks: its layers, unstacked.
        token: the token.
        position: its position.
        cross: layer by layer.
        cache: of the positions before.
        edit: called at every site, with values of one position.

    Returns:
        The logits of the token that follows, and the cache.
    """

    here = position[None]

    def run(
        edit: Edit,
        cross: list[KeysValues],
        past: list[KeysValues],
        context: EditContext,
        patterns: bool = False,
    ):
        tap = Tap(edit, None, context=context)
        pos_embed = jax.lax.dynamic_slice_in_dim(decoder.pos_embed[...], position, 1)
        resid = tap("embed", decoder.embed[...][token][None]) + tap("pos_embed", pos_embed)
        mask = jnp.arange(past[0].k.shape[-2], dtype=jnp.int32)[None, :] <= position
        now: list[KeysValues] = []
        layers: list[dict[str, Array]] = []
        for i, block in enumerate(blocks):

            def extend(new: KeysValues, i: int = i) -> KeysValues:
                # Without the barrier XLA writes the row into a copy once more for each reader.
                now.append(jax.lax.optimization_barrier(write_rows(past[i], new, position)))
                return now[i]

            layer_tap = Tap(edit, i, patterns, context)
            resid = block(layer_tap, resid, cross[i], mask, extend)
            layers.append(layer_tap.acts)
        acts: dict[str, Any] = tap.acts | {
            site: jnp.stack([layer[site] for layer in layers]) for site in layers[0]
        }
        return resid, now, DecoderActivations(**acts)

    beside, beside_now, beside_acts = None, None, None
    if cache.reference is not None:
        references = [one.reference for one in cross if one.reference is not None]
        resid, beside_now, beside_acts = run(
            identity, references, cache.reference, EditContext(here), patterns=True
        )
        beside = resid[0]
    context = EditContext(here, beside_acts)
    resid, now, _ = run(edit, [one.clip for one in cross], cache.run, context)
    return _logits(decoder, resid[0], beside, edit, position), KVCache(now, beside_now)


def _logits(
    decoder: Decoder,
    resid: Float[Array, " d_model"],
    beside: Float[Array, " d_model"] | None,
    edit: Edit,
    position: Int[Array, ""],
) -> Float[Array, " d_vocab"]:
    """Logits of one position, from its residual stream and that of the reference run."""
    reference = None
    if beside is not None:
        reference = DecoderActivations(**decoder.unembed(beside[None])[1])
    context = EditContext(position[None], reference)
    return decoder.unembed(resid[None], edit, context)[0][0]
