"""Whisper's encoder: a log-mel spectrogram becomes encoder states."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxasr_interp.model.blocks import EncoderBlock, stack_layers
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import WHOLE_RUN, Edit, EditContext, Keep, Tap, identity
from jaxasr_interp.model.layers import Conv1d, LayerNorm, gelu
from jaxasr_interp.model.sites import EncoderActivations


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


def _sinusoids(length: int, channels: int) -> Float[Array, "frame d_model"]:
    half = channels // 2
    rates = np.exp(-np.log(10000.0) / max(half - 1, 1) * np.arange(half))
    angles = np.arange(length)[:, None] * rates[None, :]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)
