"""Whisper as NNX modules whose forward pass returns its activations.

Written for one example; batch with `jax.vmap`. The layers of a stack are one block module with a
leading `layer` axis on every parameter, run by `jax.lax.scan`, whose stacked outputs are the
activations: those that nobody reads are dropped by the compiler.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.edits import Edit, Tap, identity
from jaxasr_interp.model.layers import (
    MLP,
    Attention,
    Conv1d,
    KeysValues,
    LayerNorm,
    accumulation_dtype,
    gelu,
)
from jaxasr_interp.model.sites import DecoderActivations, EncoderActivations
from jaxasr_interp.speech.tokenizer import Tokenizer


def _as_computed(kv: KeysValues) -> KeysValues:
    return kv


class EncoderBlock(nnx.Module):
    """Self-attention and MLP, each added to the residual stream after a LayerNorm.

    All but the self-attention dots is row-wise, `[rows, d_model]` in and out, so rows of many runs
    can share one call of each part.
    """

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.attn_norm = LayerNorm(config.d_model)
        self.attn = Attention(config.d_model, config.encoder_heads, rngs=rngs)
        self.mlp_norm = LayerNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.encoder_d_mlp, rngs=rngs)

    def __call__(
        self,
        tap: Tap,
        resid: Float[Array, "frame d_model"],
        extend: Callable[[KeysValues], KeysValues] = _as_computed,
    ) -> Float[Array, "frame d_model"]:
        """One layer: `resid_pre` to `resid_post`.

        Args:
            tap: edits and keeps the activations.
            resid: `resid_pre`.
            extend: gives the keys and values attended to from those of these frames.
        """
        resid = tap("resid_pre", resid)
        q, kv = self.project(tap, resid)
        return self.finish(tap, resid, self.attn.attend(tap, q, extend(kv)))

    def project(
        self, tap: Tap, resid_pre: Float[Array, "rows d_model"]
    ) -> tuple[Float[Array, "rows head d_head"], KeysValues]:
        """Queries, keys and values of self-attention."""
        normed = self.attn_norm(resid_pre)
        q = tap("q", self.attn.queries(normed))
        return q, KeysValues.at_sites(tap, "", *self.attn.keys_values(normed))

    def finish(
        self,
        tap: Tap,
        resid_pre: Float[Array, "rows d_model"],
        attn_out: Float[Array, "rows d_model"],
    ) -> Float[Array, "rows d_model"]:
        """What follows self-attention: to `resid_post`."""
        resid = tap("resid_mid", resid_pre + attn_out)
        return tap("resid_post", resid + self.mlp(tap, self.mlp_norm(resid)))


class DecoderBlock(nnx.Module):
    """Causal self-attention, cross-attention to the encoder and MLP.

    All but the self-attention dots is row-wise, `[rows, d_model]` in and out, so rows of many runs
    can share one call of each part.
    """

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.attn_norm = LayerNorm(config.d_model)
        self.attn = Attention(config.d_model, config.decoder_heads, rngs=rngs)
        self.cross_norm = LayerNorm(config.d_model)
        self.cross_attn = Attention(
            config.d_model, config.decoder_heads, prefix="cross_", rngs=rngs
        )
        self.mlp_norm = LayerNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.decoder_d_mlp, rngs=rngs)

    def __call__(
        self,
        tap: Tap,
        resid: Float[Array, "pos d_model"],
        cross: KeysValues,
        mask: Bool[Array, "pos key"],
        extend: Callable[[KeysValues], KeysValues] = _as_computed,
    ) -> Float[Array, "pos d_model"]:
        """One layer: `resid_pre` to `resid_post`.

        Args:
            tap: edits and keeps the activations.
            resid: `resid_pre`.
            cross: keys and values of the encoder states.
            mask: which keys each position may attend to.
            extend: gives the keys and values attended to from those of these positions: joined to
                those of earlier ones, for example.
        """
        resid = tap("resid_pre", resid)
        q, kv = self.project(tap, resid)
        return self.finish(tap, resid, self.attn.attend(tap, q, extend(kv), mask), cross)

    def project(
        self, tap: Tap, resid_pre: Float[Array, "rows d_model"]
    ) -> tuple[Float[Array, "rows head d_head"], KeysValues]:
        """Queries, keys and values of self-attention."""
        normed = self.attn_norm(resid_pre)
        q = tap("q", self.attn.queries(normed))
        return q, KeysValues.at_sites(tap, "", *self.attn.keys_values(normed))

    def finish(
        self,
        tap: Tap,
        resid_pre: Float[Array, "rows d_model"],
        attn_out: Float[Array, "rows d_model"],
        cross: KeysValues,
    ) -> Float[Array, "rows d_model"]:
        """What follows self-attention: to `resid_post`."""
        resid = tap("resid_mid", resid_pre + attn_out)
        resid = tap("resid_mid_cross", resid + self.cross_attention(tap, resid, cross))
        return tap("resid_post", resid + self.mlp(tap, self.mlp_norm(resid)))

    def cross_attention(
        self, tap: Tap, resid_mid: Float[Array, "rows d_model"], cross: KeysValues
    ) -> Float[Array, "rows d_model"]:
        """What cross-attention adds to the residual stream."""
        q = tap("cross_q", self.cross_attn.queries(self.cross_norm(resid_mid)))
        cross = KeysValues.at_sites(tap, "cross_", cross.k.swapaxes(0, 1), cross.v.swapaxes(0, 1))
        return self.cross_attn.attend(tap, q, cross)


def stack_layers[Block: nnx.Module](
    make: Callable[[nnx.Rngs], Block], n: int, rngs: nnx.Rngs
) -> Block:
    """Make `n` blocks as one module with a leading `layer` axis on every parameter."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), n))


class Encoder(nnx.Module):
    """Log-mel spectrogram to encoder states."""

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
    ) -> tuple[Float[Array, "frame d_model"], EncoderActivations]:
        """Encode one spectrogram.

        Args:
            mel: log-mel spectrogram, `2 · max_frames` columns.
            edit: called at every site.
            patterns: also return attention scores and patterns.

        Returns:
            The encoder states (`ln_final`), and every activation.
        """
        tap = Tap(edit, None)
        x = tap("conv1_out", gelu(self.conv1(mel.T.astype(self.pos_embed.dtype))))
        x = tap("conv2_out", gelu(self.conv2(x)))
        x = x + tap("pos_embed", self.pos_embed[...])

        def layer(resid, block_and_index):
            block, index = block_and_index
            layer_tap = Tap(edit, index, patterns)
            return block(layer_tap, resid), layer_tap.acts

        resid, layers = jax.lax.scan(layer, x, (self.blocks, jnp.arange(self.n_layers)))
        states = tap("ln_final", self.final_norm(resid))
        return states, EncoderActivations(**tap.acts, **layers)


class Decoder(nnx.Module):
    """Tokens and encoder states to next-token logits."""

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
        """Every layer's cross-attention keys and values."""

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
    ) -> tuple[Float[Array, "pos d_model"], DecoderActivations]:
        """Run the layers over the tokens of one sequence.

        Args:
            tokens: the tokens, from the first on.
            cross: from `cross_keys_values`.
            edit: called at every site.
            patterns: also return attention scores and patterns.

        Returns:
            The residual stream after the last layer (see `unembed`), and every activation up to
            it.
        """
        tap = Tap(edit, None)
        pos_embed = self.pos_embed[...][: len(tokens)]
        x = tap("embed", self.embed[...][tokens]) + tap("pos_embed", pos_embed)
        positions = jnp.arange(len(tokens), dtype=jnp.int32)
        mask = positions[None, :] <= positions[:, None]

        def layer(resid, inputs):
            block, index, cross = inputs
            layer_tap = Tap(edit, index, patterns)
            return block(layer_tap, resid, cross, mask), layer_tap.acts

        inputs = (self.blocks, jnp.arange(self.n_layers), cross)
        resid, layers = jax.lax.scan(layer, x, inputs)
        return resid, DecoderActivations(**tap.acts, **layers)

    def unembed(
        self, resid: Float[Array, "rows d_model"], edit: Edit = identity
    ) -> tuple[Float[Array, "rows d_vocab"], dict[str, Array]]:
        """`LayerNorm(resid) W_Eᵀ`, in float32 or wider.

        Returns:
            The logits, and the activations of `ln_final` and `logits`.
        """
        tap = Tap(edit, None)
        normed = tap("ln_final", self.final_norm(resid))
        wide = accumulation_dtype(normed.dtype)
        logits = jnp.einsum("rd,vd->rv", normed, self.embed[...], preferred_element_type=wide)
        return tap("logits", logits), tap.acts


class Whisper(nnx.Module):
    """A Whisper model: parameters in `encoder` and `decoder`, and what came with the checkpoint.

    Args:
        config: sizes.
        rngs: for random parameters.

    Attributes:
        generation: the checkpoint's generation settings.
        tokenizer: the checkpoint's tokenizer, or `None` if it has none.
        source: where the weights came from, for provenance.
    """

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.generation = GenerationSettings()
        self.tokenizer: Tokenizer | None = None
        self.source = "random"
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

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
    """The model's tokenizer; raise `InputError` if it came without one."""
    if model.tokenizer is None:
        raise InputError(
            f"The model {model.source} came without a tokenizer.json: put it beside the weights."
        )
    return model.tokenizer
