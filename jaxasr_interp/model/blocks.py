"""The layers of Whisper's two stacks: attention and MLP, each added to the residual stream.

The code is written for one example. All but the self-attention dots is row-wise, so that rows of
many runs can share one call of each part: the sweep engine and cached decoding reuse the parts.
"""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import Tap
from jaxasr_interp.model.layers import MLP, Attention, KeysValues, LayerNorm


def _as_computed(kv: KeysValues) -> KeysValues:
    return kv


class _Layer(nnx.Module):
    """What the layers of both stacks share: the first part and the last."""

    attn_norm: LayerNorm
    attn: Attention
    mlp_norm: LayerNorm
    mlp: MLP

    def project(
        self, tap: Tap, resid_pre: Float[Array, "rows d_model"]
    ) -> tuple[Float[Array, "rows head d_head"], KeysValues]:
        """Compute queries, keys and values of self-attention."""
        normed = self.attn_norm(resid_pre)
        q = tap("q", self.attn.queries(normed))
        return q, KeysValues.at_sites(tap, "", *self.attn.keys_values(normed))

    def add_mlp(
        self, tap: Tap, resid: Float[Array, "rows d_model"]
    ) -> Float[Array, "rows d_model"]:
        """Run the MLP, the layer's last part, up to `resid_post`."""
        return tap("resid_post", resid + self.mlp(tap, self.mlp_norm(resid)))


class EncoderBlock(_Layer):
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
        """Run one layer, from `resid_pre` to `resid_post`.

        Args:
            tap: edits and keeps the activations.
            resid: `resid_pre`.
            extend: takes the keys and values of these frames and returns all that are attended to.
        """
        resid = tap("resid_pre", resid)
        q, kv = self.project(tap, resid)
        return self.finish(tap, resid, self.attn.attend(tap, q, extend(kv)))

    def finish(
        self,
        tap: Tap,
        resid_pre: Float[Array, "rows d_model"],
        attn_out: Float[Array, "rows d_model"],
    ) -> Float[Array, "rows d_model"]:
        """Run the rest of the layer, from the output of self-attention to `resid_post`."""
        resid = tap("resid_mid", resid_pre + attn_out)
        return self.add_mlp(tap, resid)


class DecoderBlock(_Layer):
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
        """Run one layer, from `resid_pre` to `resid_post`.

        Args:
            tap: edits and keeps the activations.
            resid: `resid_pre`.
            cross: keys and values of the encoder states.
            mask: which keys each position may attend to.
            extend: takes the keys and values of these positions and returns all that are attended
                to; it may join them to those of earlier positions, for example.
        """
        resid = tap("resid_pre", resid)
        q, kv = self.project(tap, resid)
        return self.finish(tap, resid, self.attn.attend(tap, q, extend(kv), mask), cross)

    def finish(
        self,
        tap: Tap,
        resid_pre: Float[Array, "rows d_model"],
        attn_out: Float[Array, "rows d_model"],
        cross: KeysValues,
    ) -> Float[Array, "rows d_model"]:
        """Run the rest of the layer, from the output of self-attention to `resid_post`."""
        resid = tap("resid_mid", resid_pre + attn_out)
        return self.finish_cross(tap, resid, self.cross_attention(tap, resid, cross))

    def finish_cross(
        self,
        tap: Tap,
        resid_mid: Float[Array, "rows d_model"],
        cross_attn_out: Float[Array, "rows d_model"],
    ) -> Float[Array, "rows d_model"]:
        """Run the rest of the layer, from the output of cross-attention to `resid_post`."""
        resid = tap("resid_mid_cross", resid_mid + cross_attn_out)
        return self.add_mlp(tap, resid)

    def cross_keys_values(self, states: Float[Array, "frame d_model"]) -> KeysValues:
        """Compute the keys and values of the encoder states."""
        k, v = self.cross_attn.keys_values(states)
        return KeysValues(k.swapaxes(0, 1), v.swapaxes(0, 1))

    def cross_attention(
        self, tap: Tap, resid_mid: Float[Array, "rows d_model"], cross: KeysValues
    ) -> Float[Array, "rows d_model"]:
        """Compute what cross-attention adds to the residual stream."""
        q = tap("cross_q", self.cross_attn.queries(self.cross_norm(resid_mid)))
        cross = KeysValues.at_sites(tap, "cross_", cross.k.swapaxes(0, 1), cross.v.swapaxes(0, 1))
        return self.cross_attn.attend(tap, q, cross)


def stack_layers[Block: nnx.Module](
    make: Callable[[nnx.Rngs], Block], n: int, rngs: nnx.Rngs
) -> Block:
    """Make `n` blocks as one module with a leading `layer` axis on every parameter."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), n))
