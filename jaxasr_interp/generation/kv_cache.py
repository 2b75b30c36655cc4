"""The decoder one position at a time, and what it remembers between positions.

Written for one row: one intervention on one clip. Where an edit takes values from a reference run,
a second decoder that hears the reference clip is given the same tokens, unedited, and goes in step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.edits import Edit, Tap, identity, shifted, with_source
from jaxasr_interp.model.layers import KeysValues, write_rows
from jaxasr_interp.model.sites import DecoderActivations
from jaxasr_interp.model.whisper import Decoder, DecoderBlock
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Heard:
    """Cross-attention keys and values of a clip, and of the reference clip if there is one."""

    clip: KeysValues
    reference: KeysValues | None


@pytree_dataclass
class Memory:
    """Self-attention keys and values so far, layer by layer, of the run and its reference run."""

    run: list[KeysValues]
    reference: list[KeysValues] | None


def unstacked[Tree](tree: Tree, n: int) -> list[Tree]:
    """The layers of a stacked tree, each its own arrays: a loop that slices them copies them."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(n)]


def read_prompt(
    decoder: Decoder,
    prompt: Int[Array, " pos"],
    reads: tuple[Int[Array, ""], ...],
    heard: Heard,
    edit: Edit,
    capacity: int,
) -> tuple[list[Float[Array, " d_vocab"]], Memory]:
    """Run the decoder over the first tokens.

    Args:
        decoder: the decoder.
        prompt: the tokens. Behind the real ones there may be padding, whose keys and values are
            overwritten before any later position may look at them.
        reads: positions whose logits are wanted.
        heard: of all layers, stacked.
        edit: called at every site.
        capacity: how many positions the memory has room for.

    Returns:
        The logits of those positions, and the memory.
    """
    whole = shifted(edit, jnp.zeros((), jnp.int32))
    beside, beside_acts = None, None
    if heard.reference is not None:
        beside, beside_acts = decoder(prompt, heard.reference, patterns=True)
        whole = with_source(whole, beside_acts)
    resid, acts = decoder(prompt, heard.clip, whole)

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
    return logits, Memory(remember(acts), None if beside_acts is None else remember(beside_acts))


def read_token(
    decoder: Decoder,
    blocks: list[DecoderBlock],
    token: Int[Array, ""],
    position: Int[Array, ""],
    heard: list[Heard],
    memory: Memory,
    edit: Edit,
) -> tuple[Float[Array, " d_vocab"], Memory]:
    """Run the decoder over the next token.

    Args:
        decoder: the decoder.
        blocks: its layers, unstacked.
        token: the token.
        position: its position.
        heard: layer by layer.
        memory: of the positions before.
        edit: called at every site, with values of one position.

    Returns:
        The logits of the token that follows, and the memory.
    """

    def run(edit: Edit, cross: list[KeysValues], past: list[KeysValues], patterns: bool = False):
        tap = Tap(edit, None)
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

            layer_tap = Tap(edit, i, patterns)
            resid = block(layer_tap, resid, cross[i], mask, extend)
            layers.append(layer_tap.acts)
        acts: dict[str, Any] = tap.acts | {
            site: jnp.stack([layer[site] for layer in layers]) for site in layers[0]
        }
        return resid, now, DecoderActivations(**acts)

    here = shifted(edit, position)
    beside, beside_now = None, None
    if memory.reference is not None:
        references = [one.reference for one in heard if one.reference is not None]
        resid, beside_now, acts = run(identity, references, memory.reference, patterns=True)
        beside, here = resid[0], with_source(here, acts)
    resid, now, _ = run(here, [one.clip for one in heard], memory.run)
    return _logits(decoder, resid[0], beside, edit, position), Memory(now, beside_now)


def _logits(
    decoder: Decoder,
    resid: Float[Array, " d_model"],
    beside: Float[Array, " d_model"] | None,
    edit: Edit,
    position: Int[Array, ""],
) -> Float[Array, " d_vocab"]:
    """Logits of one position, from its residual stream and that of the reference run."""
    edit = shifted(edit, position)
    if beside is not None:
        edit = with_source(edit, DecoderActivations(**decoder.unembed(beside[None])[1]))
    return decoder.unembed(resid[None], edit)[0][0]
