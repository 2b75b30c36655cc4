"""Whisper as NNX modules whose forward pass returns its activations.

The code is written for one example; batch it with `jax.vmap`. The layers of a stack are one block
module with a leading `layer` axis on every parameter. `jax.lax.scan` runs them, and its stacked
outputs are the activations; the compiler drops those that are not used.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.decoder import Decoder, Run
from jaxasr_interp.model.edits import Edit, identity
from jaxasr_interp.model.encoder import Encoder
from jaxasr_interp.pytree import replace
from jaxasr_interp.speech.tokenizer import Tokenizer


class Whisper(nnx.Module):
    """A Whisper model: parameters in `encoder` and `decoder`, and what came with the checkpoint.

    Args:
        config: sizes.
        rngs: random numbers for the parameters.

    Attributes:
        generation: the checkpoint's generation settings.
        tokenizer: the checkpoint's tokenizer, or `None` if it has none.
        name: the name by which any process loads the model, if it was loaded by one.
    """

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.generation = GenerationSettings()
        self.tokenizer: Tokenizer | None = None
        self._source: object = "random"
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

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(nnx.state(self, nnx.Param))
        sizes = sum(getattr(leaf, "size", 0) for leaf in leaves)
        dtypes = sorted({str(getattr(leaf, "dtype", "unknown")) for leaf in leaves})
        name = self.name or self.source
        return f"Whisper({name!r}, {sizes:,} parameters in {', '.join(dtypes)}, {self.config})"

    @property
    def source(self) -> str:
        """Where the weights came from, for provenance."""
        return str(self._source)

    @source.setter
    def source(self, source: object) -> None:
        # Its text may take time: that of large weight files waits for their hash.
        self._source = source

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the parameters and of the residual stream."""
        return self.decoder.embed.dtype


def require_tokenizer(model: Whisper) -> Tokenizer:
    """Return the model's tokenizer; raise `InputError` if it came without one."""
    if model.tokenizer is None:
        raise InputError(
            f"The model {model.source} came without a tokenizer.json: put it beside the weights."
        )
    return model.tokenizer
