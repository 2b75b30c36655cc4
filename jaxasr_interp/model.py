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

from jaxasr_interp.config import GenerationSettings, WhisperConfig
from jaxasr_interp.edits import Edit, LayerIndex, Tap, identity
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.sites import DecoderActivations, EncoderActivations
from jaxasr_interp.tokens import Tokenizer

LAYER_NORM_EPSILON = 1e-5


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which dots, norms and softmaxes of `dtype` values are computed."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


class Linear(nnx.Module):
    """`y = x W + b` over rows, accumulated in float32 or wider."""

    def __init__(self, d_in: int, d_out: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (d_in, d_out)) * d_in**-0.5)
        self.bias = nnx.Param(jnp.zeros(d_out)) if use_bias else None

    def __call__(self, x: Float[Array, "rows d_in"]) -> Float[Array, "rows d_out"]:
        y = jnp.matmul(x, self.kernel[...], preferred_element_type=accumulation_dtype(x.dtype))
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)[None, :]
        return y.astype(x.dtype)


class LayerNorm(nnx.Module):
    """`y = (x - mean) / sqrt(var + 1e-5) · scale + bias` over the last axis."""

    def __init__(self, d_model: int):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model))

    def __call__(self, x: Float[Array, "rows d_model"]) -> Float[Array, "rows d_model"]:
        wide = x.astype(accumulation_dtype(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        y = y * self.scale[...].astype(y.dtype)[None, :] + self.bias[...].astype(y.dtype)[None, :]
        return y.astype(x.dtype)


class Conv1d(nnx.Module):
    """Convolution of width 3 along the rows with one row of zeros on either side."""

    def __init__(self, d_in: int, d_out: int, *, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.kernel = nnx.Param(
            jax.random.normal(rngs.params(), (3, d_in, d_out)) * (3 * d_in) ** -0.5
        )
        self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "rows d_in"]) -> Float[Array, "rows_out d_out"]:
        padded = jnp.pad(x, ((1, 1), (0, 0)))
        windows = [padded[tap : tap + len(x) : self.stride] for tap in range(3)]
        kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        y = jnp.matmul(
            jnp.concatenate(windows, axis=1),
            kernel,
            preferred_element_type=accumulation_dtype(x.dtype),
        )
        return (y + self.bias[...].astype(y.dtype)[None, :]).astype(x.dtype)


def gelu(x: Array) -> Array:
    """`x · Φ(x)` with the exact error function."""
    return jax.nn.gelu(x, approximate=False)


@pytree_dataclass
class KeysValues:
    """Keys and values of attention, of one layer or (with a leading axis) of all.

    Heads come first, as the dots want them: one query attending to 1500 frames is otherwise spent
    transposing.
    """

    k: Float[Array, "*layer head key d_head"]
    v: Float[Array, "*layer head key d_head"]

    @classmethod
    def at_sites(
        cls,
        tap: Tap,
        prefix: str,
        k: Float[Array, "key head d_head"],
        v: Float[Array, "key head d_head"],
    ) -> "KeysValues":
        """Pass keys and values, positions first, through their sites."""
        k, v = tap(prefix + "k", k), tap(prefix + "v", v)
        return cls(k.swapaxes(0, 1), v.swapaxes(0, 1))


class Attention(nnx.Module):
    """Multi-head attention; its sites carry `prefix` (`""` or `"cross_"`)."""

    def __init__(self, d_model: int, n_heads: int, *, prefix: str = "", rngs: nnx.Rngs):
        self.n_heads = n_heads
        self.prefix = prefix
        self.query = Linear(d_model, d_model, rngs=rngs)
        self.key = Linear(d_model, d_model, use_bias=False, rngs=rngs)
        self.value = Linear(d_model, d_model, rngs=rngs)
        self.out = Linear(d_model, d_model, rngs=rngs)

    def queries(self, x: Float[Array, "rows d_model"]) -> Float[Array, "rows head d_head"]:
        """`x W_Q + b_Q`, by head."""
        return self._by_head(self.query(x))

    def keys_values(
        self, x: Float[Array, "key d_model"]
    ) -> tuple[Float[Array, "key head d_head"], Float[Array, "key head d_head"]]:
        """`x W_K` and `x W_V + b_V`, by head."""
        return self._by_head(self.key(x)), self._by_head(self.value(x))

    def attend(
        self,
        tap: Tap,
        q: Float[Array, "query head d_head"],
        kv: KeysValues,
        mask: Bool[Array, "query key"] | None = None,
    ) -> Float[Array, "query d_model"]:
        """`softmax(q kᵀ / sqrt(d_head)) v W_O + b_O`; `mask` is true where a query may look."""
        wide = accumulation_dtype(q.dtype)
        scores = jnp.einsum("qhd,hkd->hqk", q, kv.k, preferred_element_type=wide)
        scores = scores * q.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask[None], scores, -jnp.inf)
        scores = tap(self.prefix + "attn_scores", scores)
        pattern = tap(self.prefix + "pattern", jax.nn.softmax(scores, axis=-1).astype(q.dtype))
        z = jnp.einsum("hqk,hkd->qhd", pattern, kv.v, preferred_element_type=wide).astype(q.dtype)
        return self._output(tap, tap(self.prefix + "z", z))

    def _output(
        self, tap: Tap, z: Float[Array, "query head d_head"]
    ) -> Float[Array, "query d_model"]:
        out = self.out(z.reshape(len(z), -1))
        kernel = self.out.kernel[...].reshape(self.n_heads, z.shape[-1], -1)
        wide = accumulation_dtype(z.dtype)
        result = jnp.einsum("qhd,hdm->qhm", z, kernel, preferred_element_type=wide).astype(z.dtype)
        edited = tap(self.prefix + "result", result)
        if edited is not result:
            # The change rather than the sum: where the edit changes nothing, nothing changes.
            out = out + (edited - result).sum(1)
        return tap(self.prefix + "attn_out", out)

    def _by_head(self, rows: Float[Array, "rows d_model"]) -> Float[Array, "rows head d_head"]:
        return rows.reshape(len(rows), self.n_heads, -1)


class MLP(nnx.Module):
    """`gelu(x W_1 + b_1) W_2 + b_2`."""

    def __init__(self, d_model: int, d_mlp: int, *, rngs: nnx.Rngs):
        self.up = Linear(d_model, d_mlp, rngs=rngs)
        self.down = Linear(d_mlp, d_model, rngs=rngs)

    def __call__(self, tap: Tap, x: Float[Array, "rows d_model"]) -> Float[Array, "rows d_model"]:
        hidden = tap("mlp_post", gelu(tap("mlp_pre", self.up(x))))
        return tap("mlp_out", self.down(hidden))


class EncoderBlock(nnx.Module):
    """Self-attention and MLP, each added to the residual stream after a LayerNorm."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.attn_norm = LayerNorm(config.d_model)
        self.attn = Attention(config.d_model, config.encoder_heads, rngs=rngs)
        self.mlp_norm = LayerNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.encoder_d_mlp, rngs=rngs)

    def __call__(
        self, tap: Tap, resid: Float[Array, "frame d_model"]
    ) -> Float[Array, "frame d_model"]:
        resid = tap("resid_pre", resid)
        normed = self.attn_norm(resid)
        q = tap("q", self.attn.queries(normed))
        kv = KeysValues.at_sites(tap, "", *self.attn.keys_values(normed))
        resid = tap("resid_mid", resid + self.attn.attend(tap, q, kv))
        return tap("resid_post", resid + self.mlp(tap, self.mlp_norm(resid)))


class DecoderBlock(nnx.Module):
    """Causal self-attention, cross-attention to the encoder and MLP.

    All but the self-attention dots is row-wise, `[rows, d_model]` in and out, so rows of many runs
    can share one call.
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
        extend: Callable[[KeysValues], KeysValues],
    ) -> Float[Array, "pos d_model"]:
        """One layer.

        Args:
            tap: edits and keeps the activations.
            resid: `resid_pre`.
            cross: keys and values of the encoder states.
            mask: which keys each position may attend to.
            extend: joins this call's keys and values to those of earlier positions.
        """
        resid = tap("resid_pre", resid)
        normed = self.attn_norm(resid)
        q = tap("q", self.attn.queries(normed))
        kv = extend(KeysValues.at_sites(tap, "", *self.attn.keys_values(normed)))
        resid = tap("resid_mid", resid + self.attn.attend(tap, q, kv, mask))
        resid = tap("resid_mid_cross", resid + self.cross_attention(tap, resid, cross))
        return tap("resid_post", resid + self.mlp(tap, self.mlp_norm(resid)))

    def cross_attention(
        self, tap: Tap, resid_mid: Float[Array, "rows d_model"], cross: KeysValues
    ) -> Float[Array, "rows d_model"]:
        """What cross-attention adds to the residual stream."""
        q = tap("cross_q", self.cross_attn.queries(self.cross_norm(resid_mid)))
        cross = KeysValues.at_sites(tap, "cross_", cross.k.swapaxes(0, 1), cross.v.swapaxes(0, 1))
        return self.cross_attn.attend(tap, q, cross)


def write_rows(past: KeysValues, new: KeysValues, offset: Int[Array, ""] | int) -> KeysValues:
    """Put the keys and values of consecutive positions, the first at `offset`, into `past`."""
    return jax.tree.map(
        lambda old, rows: jax.lax.dynamic_update_slice_in_dim(old, rows, offset, old.ndim - 2),
        past,
        new,
    )


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
        cache: KeysValues | None = None,
        offset: Int[Array, ""] | int = 0,
        patterns: bool = False,
    ) -> tuple[Float[Array, "pos d_model"], DecoderActivations]:
        """Run the layers over some tokens of one sequence.

        Args:
            tokens: consecutive tokens.
            cross: from `cross_keys_values`.
            edit: called at every site.
            cache: self-attention keys and values of every layer; those of positions before
                `offset` are read. Without it the tokens are the whole sequence.
            offset: position of the first token.
            patterns: also return attention scores and patterns.

        Returns:
            The residual stream after the last layer (see `unembed`), and every activation up to
            it. Its `k` and `v` are what a cache must hold at these positions.
        """
        tap = Tap(edit, None)
        length = len(tokens)
        pos_embed = jax.lax.dynamic_slice_in_dim(self.pos_embed[...], offset, length)
        x = tap("embed", self.embed[...][tokens]) + tap("pos_embed", pos_embed)
        positions = jnp.arange(length, dtype=jnp.int32) + offset
        n_keys = length if cache is None else cache.k.shape[-2]
        mask = jnp.arange(n_keys, dtype=jnp.int32)[None, :] <= positions[:, None]

        def layer(resid, inputs):
            block, index, cross, past = inputs
            layer_tap = Tap(edit, index, patterns)

            def extend(new: KeysValues) -> KeysValues:
                return new if past is None else write_rows(past, new, offset)

            return block(layer_tap, resid, cross, mask, extend), layer_tap.acts

        inputs = (self.blocks, jnp.arange(self.n_layers), cross, cache)
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
