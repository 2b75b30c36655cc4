"""Decoding one position at a time, with a cache of keys and values between positions.

The code is written for one row: one intervention on one clip. If an edit takes values from a
reference run, an unedited second decoder run attends to the reference clip, and takes the same
token at each step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.blocks import DecoderBlock
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.edits import Edit, EditContext, Tap, identity
from jaxasr_interp.model.layers import KeysValues, write_rows
from jaxasr_interp.model.sites import DecoderActivations
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class CrossKV:
    """Cross-attention keys and values of a clip, and of its reference clip if there is one."""

    clip: KeysValues
    reference: KeysValues | None


@pytree_dataclass
class KVCache:
    """Self-attention keys and values so far, for each layer, of the run and its reference run."""

    run: list[KeysValues]
    reference: list[KeysValues] | None


def unstacked[Tree](tree: Tree, n: int) -> list[Tree]:
    """Split a stacked tree into layers with arrays of their own."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(n)]


def layers_in_loop[A, B](
    first: A, second: B, n: int
) -> Callable[[Array], tuple[list[A], list[B], Array]]:
    """Make the function that splits two stacked trees in the body of a loop.

    It takes and returns the loop's counter. On a TPU a slice is read where it is needed; cut apart
    before the loop, all layers would exist twice. On other devices slices in a loop are copies, so
    that they are made once.
    """
    if jax.default_backend() != "tpu":
        apart = unstacked(first, n), unstacked(second, n)
        return lambda step: (*apart, step)

    def within(step: Array) -> tuple[list[A], list[B], Array]:
        # Without the barrier the compiler moves the slices out of the loop.
        (one, other), step = jax.lax.optimization_barrier(((first, second), step))
        return unstacked(one, n), unstacked(other, n), step

    return within


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
        prompt: the tokens. They may end in padding, whose keys and values are overwritten before
            any later position can attend to them.
        reads: positions at which logits are computed.
        cross: cross-attention keys and values of all layers, stacked.
        edit: called at every site.
        capacity: number of positions that fit the cache.

    Returns:
        The logits of those positions, and the cache.
    """
    positions = jnp.arange(len(prompt), dtype=jnp.int32)
    reference, reference_acts = None, None
    if cross.reference is not None:
        reference, reference_acts = decoder(prompt, cross.reference, patterns=True)
    context = EditContext(positions, reference_acts)
    resid, acts = decoder(prompt, cross.clip, edit, context=context)

    def remember(acts: DecoderActivations) -> list[KeysValues]:
        def padded(x: Array | None) -> Array:
            assert x is not None
            room = ((0, 0), (0, 0), (0, capacity - len(prompt)), (0, 0))
            return jnp.pad(x.swapaxes(1, 2), room)

        return unstacked(KeysValues(padded(acts.k), padded(acts.v)), decoder.n_layers)

    logits = [
        _logits(decoder, resid[at], None if reference is None else reference[at], edit, at)
        for at in reads
    ]
    of_reference = None if reference_acts is None else remember(reference_acts)
    return logits, KVCache(remember(acts), of_reference)


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
        blocks: layers of the decoder, unstacked.
        token: the token.
        position: position of the token.
        cross: cross-attention keys and values of each layer.
        cache: keys and values of the positions before.
        edit: called at every site, with values of one position.

    Returns:
        The logits of the next token, and the cache with this position.
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
                # Without the barrier XLA writes the row into another copy for each reader.
                now.append(jax.lax.optimization_barrier(write_rows(past[i], new, position)))
                return now[i]

            layer_tap = Tap(edit, i, patterns, context)
            resid = block(layer_tap, resid, cross[i], mask, extend)
            layers.append(layer_tap.acts)
        acts: dict[str, Any] = tap.acts | {
            site: jnp.stack([layer[site] for layer in layers]) for site in layers[0]
        }
        return resid, now, DecoderActivations(**acts)

    reference, reference_now, reference_acts = None, None, None
    if cache.reference is not None:
        references = [one.reference for one in cross if one.reference is not None]
        resid, reference_now, reference_acts = run(
            identity, references, cache.reference, EditContext(here), patterns=True
        )
        reference = resid[0]
    context = EditContext(here, reference_acts)
    resid, now, _ = run(edit, [one.clip for one in cross], cache.run, context)
    return _logits(decoder, resid[0], reference, edit, position), KVCache(now, reference_now)


def _logits(
    decoder: Decoder,
    resid: Float[Array, " d_model"],
    beside: Float[Array, " d_model"] | None,
    edit: Edit,
    position: Int[Array, ""],
) -> Float[Array, " d_vocab"]:
    """Compute the logits of one position, from its residual stream and the reference run's."""
    reference = None
    if beside is not None:
        reference = DecoderActivations(**decoder.unembed(beside[None])[1])
    context = EditContext(position[None], reference)
    return decoder.unembed(resid[None], edit, context)[0][0]
