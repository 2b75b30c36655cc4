"""Whisper's decoder: tokens and encoder states become next-token logits."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.blocks import DecoderBlock, stack_layers
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import WHOLE_RUN, Edit, EditContext, Keep, Tap, identity
from jaxasr_interp.model.layers import KeysValues, LayerNorm
from jaxasr_interp.model.sites import DecoderActivations, EncoderActivations
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Run:
    """The result of a forward pass.

    Attributes:
        states: encoder states after the final LayerNorm, to which the decoder attends.
        cross: every layer's cross-attention keys and values of the encoder states.
        encoder: the encoder's activations.
        decoder: the decoder's activations.
        resid: the decoder's residual stream after the last layer, the input of `unembed`.
        logits: next-token logits at the positions that were asked for.
    """

    states: Float[Array, "*batch frame d_model"]
    cross: KeysValues
    encoder: EncoderActivations
    decoder: DecoderActivations
    resid: Float[Array, "*batch pos d_model"]
    logits: Float[Array, "*batch read d_vocab"]


class Decoder(nnx.Module):
    """The decoder, which turns tokens and encoder states into next-token logits."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.n_layers = config.decoder_layers
        self.embed = nnx.Param(
            jax.random.normal(rngs.params(), (config.d_vocab, config.d_model)) * 0.02
        )
        self.pos_embed = nnx.Param(
            jax.random.normal(rngs.params(), (config.max_tokens, config.d_model)) * 0.02
        )
        self.blocks = stack_layers(
            lambda rngs: DecoderBlock(config, rngs=rngs), config.decoder_layers, rngs
        )
        self.final_norm = LayerNorm(config.d_model)

    def cross_keys_values(self, states: Float[Array, "frame d_model"]) -> KeysValues:
        """Compute the cross-attention keys and values of every layer."""

        return jax.lax.map(lambda block: block.cross_keys_values(states), self.blocks)

    def __call__(
        self,
        tokens: Int[Array, " pos"],
        cross: KeysValues | Float[Array, "frame d_model"],
        edit: Edit = identity,
        *,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
    ) -> tuple[Float[Array, "pos d_model"], DecoderActivations]:
        """Run the layers over the tokens of one sequence.

        Args:
            tokens: the tokens, from the first on.
            cross: from `cross_keys_values`, or the encoder states: then every layer computes its
                own keys and values, and those of one layer exist at a time.
            edit: called at every site.
            patterns: also return attention scores and patterns.
            context: what the edit is told about the values.

        Returns:
            The residual stream after the last layer (see `unembed`), and every activation before
            `ln_final`.
        """
        resid, around, layers = self.run_layers(
            tokens, cross, edit, patterns=patterns, context=context
        )
        return resid, DecoderActivations(**around, **layers)

    def run_layers(
        self,
        tokens: Int[Array, " pos"],
        cross: KeysValues | Float[Array, "frame d_model"],
        edit: Edit = identity,
        *,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
        keep: Keep = dict,
    ) -> tuple[Float[Array, "pos d_model"], dict[str, Array], dict[str, Array]]:
        """Run the layers, and keep of each one's activations as little as is wanted.

        Args:
            tokens: see `__call__`.
            cross: see `__call__`.
            edit: see `__call__`.
            patterns: see `__call__`.
            context: see `__call__`.
            keep: see `Encoder.run_layers`.

        Returns:
            The residual stream after the last layer, the activations before the layers, and what
            is kept of the layers, with a leading axis for them.
        """
        tap = Tap(edit, None, context=context)
        pos_embed = self.pos_embed[...][: len(tokens)]
        x = tap("embed", self.embed[...][tokens]) + tap("pos_embed", pos_embed)
        positions = jnp.arange(len(tokens), dtype=jnp.int32)
        mask = positions[None, :] <= positions[:, None]

        known = cross if isinstance(cross, KeysValues) else None

        def layer(resid, inputs):
            block, index, own = inputs
            own = block.cross_keys_values(cross) if own is None else own
            layer_tap = Tap(edit, index, patterns, context)
            return block(layer_tap, resid, own, mask), keep(layer_tap.acts)

        inputs = (self.blocks, jnp.arange(self.n_layers), known)
        resid, layers = jax.lax.scan(layer, x, inputs)
        return resid, tap.acts, layers

    def unembed(
        self,
        resid: Float[Array, "rows d_model"],
        edit: Edit = identity,
        context: EditContext = WHOLE_RUN,
    ) -> tuple[Float[Array, "rows d_vocab"], dict[str, Array]]:
        """Compute the logits `LayerNorm(resid) W_Eᵀ`, in float32 or wider.

        Args:
            resid: the residual stream after the last layer, at some positions.
            edit: called at `ln_final` and `logits`.
            context: names the positions, if `resid` does not have all of a run.

        Returns:
            The logits, and the activations of `ln_final` and `logits`.
        """
        tap = Tap(edit, None, context=context)
        normed = tap("ln_final", self.final_norm(resid))
        wide = accumulation_dtype(normed.dtype)
        logits = jnp.einsum("rd,vd->rv", normed, self.embed[...], preferred_element_type=wide)
        return tap("logits", logits), tap.acts

    def run(
        self,
        tokens: Int[Array, " pos"],
        states: Float[Array, "frame d_model"],
        edit: Edit = identity,
        *,
        cross: KeysValues | None = None,
        logits_at: Int[Array, " read"] | None = None,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
    ) -> Run:
        """Run the second half of the forward pass, from encoder states to logits.

        Args:
            tokens: prompt and transcript.
            states: encoder states.
            edit: called at every decoder site.
            cross: cross-attention keys and values of the states, if they are known.
            logits_at: positions at which logits are computed; all by default.
            patterns: also return attention scores and patterns.
            context: what the edit is told about the values.
        """
        if cross is None:
            cross = self.cross_keys_values(states)
        resid, acts = self(tokens, cross, edit, patterns=patterns, context=context)
        if logits_at is None:
            logits, final_acts = self.unembed(resid, edit, context)
            acts = dataclasses.replace(acts, **final_acts)
        else:
            # The context has no reference: activations of the reference run are of all positions.
            logits, _ = self.unembed(resid[logits_at], edit, EditContext(logits_at))
        return Run(states, cross, EncoderActivations(), acts, resid, logits)
