"""Whisper as NNX modules whose forward pass returns its activations.

The code is written for one example; batch it with `jax.vmap`. The layers of a stack are one block
module with a leading `layer` axis on every parameter. `jax.lax.scan` runs them, and its stacked
outputs are the activations; the compiler drops those that are not used.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.blocks import DecoderBlock, EncoderBlock, stack_layers
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.edits import WHOLE_RUN, Edit, EditContext, Tap, identity
from jaxasr_interp.model.layers import Conv1d, KeysValues, LayerNorm, gelu
from jaxasr_interp.model.sites import DecoderActivations, EncoderActivations
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass, replace
from jaxasr_interp.speech.tokenizer import Tokenizer

type Keep = Callable[[dict[str, Array]], dict[str, Array]]


class Encoder(nnx.Module):
    """The encoder, which turns a log-mel spectrogram into encoder states."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.n_layers = config.encoder_layers
        self.conv1 = Conv1d(config.n_mels, config.d_model, stride=1, rngs=rngs)
        self.conv2 = Conv1d(config.d_model, config.d_model, stride=2, rngs=rngs)
        self.pos_embed = nnx.Param(_sinusoids(config.max_frames, config.d_model))
        self.blocks = stack_layers(
            lambda rngs: EncoderBlock(config, rngs=rngs), config.encoder_layers, rngs
        )
        self.final_norm = LayerNorm(config.d_model)

    def __call__(
        self,
        mel: Float[Array, "n_mels mel_frame"],
        edit: Edit = identity,
        *,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
    ) -> tuple[Float[Array, "frame d_model"], EncoderActivations]:
        """Encode one spectrogram.

        Args:
            mel: log-mel spectrogram, `2 · max_frames` columns.
            edit: called at every site.
            patterns: also return attention scores and patterns.
            context: what the edit is told about the values.

        Returns:
            The encoder states (`ln_final`), and every activation.
        """
        states, around, layers = self.run_layers(mel, edit, patterns=patterns, context=context)
        return states, EncoderActivations(**around, **layers)

    def run_layers(
        self,
        mel: Float[Array, "n_mels mel_frame"],
        edit: Edit = identity,
        *,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
        keep: Keep = dict,
    ) -> tuple[Float[Array, "frame d_model"], dict[str, Array], dict[str, Array]]:
        """Encode one spectrogram, and keep of each layer's activations as little as is wanted.

        Args:
            mel: see `__call__`.
            edit: see `__call__`.
            patterns: see `__call__`.
            context: see `__call__`.
            keep: what is kept of the activations of a layer, before the next one runs; by default
                all of them.

        Returns:
            The encoder states, the activations before and after the layers, and what is kept of
            the layers, with a leading axis for them.
        """
        tap = Tap(edit, None, context=context)
        x = tap("conv1_out", gelu(self.conv1(mel.T.astype(self.pos_embed.dtype))))
        x = tap("conv2_out", gelu(self.conv2(x)))
        x = x + tap("pos_embed", self.pos_embed[...])

        def layer(resid, block_and_index):
            block, index = block_and_index
            layer_tap = Tap(edit, index, patterns, context)
            return block(layer_tap, resid), keep(layer_tap.acts)

        resid, layers = jax.lax.scan(layer, x, (self.blocks, jnp.arange(self.n_layers)))
        states = tap("ln_final", self.final_norm(resid))
        return states, tap.acts, layers


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

        def layer(block: DecoderBlock) -> KeysValues:
            k, v = block.cross_attn.keys_values(states)
            return KeysValues(k.swapaxes(0, 1), v.swapaxes(0, 1))

        return jax.lax.map(layer, self.blocks)

    def __call__(
        self,
        tokens: Int[Array, " pos"],
        cross: KeysValues,
        edit: Edit = identity,
        *,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
    ) -> tuple[Float[Array, "pos d_model"], DecoderActivations]:
        """Run the layers over the tokens of one sequence.

        Args:
            tokens: the tokens, from the first on.
            cross: from `cross_keys_values`.
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
        cross: KeysValues,
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

        def layer(resid, inputs):
            block, index, cross = inputs
            layer_tap = Tap(edit, index, patterns, context)
            return block(layer_tap, resid, cross, mask), keep(layer_tap.acts)

        inputs = (self.blocks, jnp.arange(self.n_layers), cross)
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


class Whisper(nnx.Module):
    """A Whisper model: parameters in `encoder` and `decoder`, and what came with the checkpoint.

    Args:
        config: sizes.
        rngs: random numbers for the parameters.

    Attributes:
        generation: the checkpoint's generation settings.
        tokenizer: the checkpoint's tokenizer, or `None` if it has none.
        source: where the weights came from, for provenance.
        name: the name by which any process loads the model, if it was loaded by one.
    """

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.generation = GenerationSettings()
        self.tokenizer: Tokenizer | None = None
        self.source = "random"
        self.name: str | None = None
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(
        self,
        mel: Float[Array, "n_mels mel_frame"],
        tokens: Int[Array, " pos"],
        *,
        encoder_edit: Edit = identity,
        decoder_edit: Edit = identity,
        logits_at: Int[Array, " read"] | None = None,
        patterns: bool = False,
    ) -> Run:
        """Run both stacks on one spectrogram and one teacher-forced token sequence.

        Args:
            mel: log-mel spectrogram.
            tokens: prompt and transcript.
            encoder_edit: called at every encoder site.
            decoder_edit: called at every decoder site.
            logits_at: positions at which logits are computed; all by default.
            patterns: also return attention scores and patterns.
        """
        states, acts = self.encoder(mel, encoder_edit, patterns=patterns)
        run = self.decoder.run(tokens, states, decoder_edit, logits_at=logits_at, patterns=patterns)
        return replace(run, encoder=acts)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the parameters and of the residual stream."""
        return self.decoder.embed.dtype


def _sinusoids(length: int, channels: int) -> Float[Array, "frame d_model"]:
    half = channels // 2
    rates = np.exp(-np.log(10000.0) / max(half - 1, 1) * np.arange(half))
    angles = np.arange(length)[:, None] * rates[None, :]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)


def require_tokenizer(model: Whisper) -> Tokenizer:
    """Return the model's tokenizer; raise `InputError` if it came without one."""
    if model.tokenizer is None:
        raise InputError(
            f"The model {model.source} came without a tokenizer.json: put it beside the weights."
        )
    return model.tokenizer
