"""The logit lens over the decoder's residual stream.

nostalgebraist 2020, "interpreting GPT: the logit lens"; saturation as in Glazer et al. 2025.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import DecoderRun
from jaxasr_interp.kernels.lens import (  # pyright: ignore[reportMissingImports]
    Readout,
    readout,
)
from jaxasr_interp.model import Decoder, Whisper
from jaxasr_interp.pytree import pytree_dataclass

if TYPE_CHECKING:
    import xarray


@pytree_dataclass
class LogitLens:
    """The next-token distribution that each layer's residual stream already holds.

    Attributes:
        targets: the token whose log-probability and rank are read at each position.
        top_tokens: most probable tokens, best first.
        top_log_probs: their log-probabilities.
        target_log_prob: log-probability of the target.
        target_rank: tokens with a higher logit than the target.
        entropy: of the distribution, in nats.
        kl: `KL(final ‖ layer)`, in nats; 0 in the last layer.
        saturation_layer: the earliest layer from which the top token is the final one.
    """

    targets: Int[Array, " pos"]
    top_tokens: Int[Array, "layer pos top"]
    top_log_probs: Float[Array, "layer pos top"]
    target_log_prob: Float[Array, "layer pos"]
    target_rank: Int[Array, "layer pos"]
    entropy: Float[Array, "layer pos"]
    kl: Float[Array, "layer pos"]
    saturation_layer: Int[Array, " pos"]

    def to_dataset(self) -> "xarray.Dataset":
        """The arrays with named axes."""
        import xarray

        axes = {
            "targets": ("pos",),
            "top_tokens": ("layer", "pos", "top"),
            "top_log_probs": ("layer", "pos", "top"),
            "saturation_layer": ("pos",),
        }
        names = vars(self)
        return xarray.Dataset(
            {name: (axes.get(name, ("layer", "pos")), np.asarray(names[name])) for name in names}
        )


def logit_lens(
    model: Whisper,
    run: DecoderRun,
    *,
    targets: Int[Array, " pos"] | Sequence[int] | np.ndarray | None = None,
    top_k: int = 5,
    implementation: str | None = None,
) -> LogitLens:
    """Read every layer's residual stream through the final LayerNorm and the unembedding.

    `p[layer, pos] = softmax(ln_final(resid_post[layer, pos]) W_Eᵀ)`

    Args:
        model: the model of the run.
        run: from `decode`, with `resid_post` among its activations.
        targets: for each position the next token to follow through the layers; by default the final
            layer's most probable one.
        top_k: how many of the most probable tokens to keep.
        implementation: of the readout kernel; `None` for the best one available here.

    Returns:
        One value for each layer and position; the last layer is the model's own output.

    Raises:
        InputError: the run lacks `resid_post`, or the targets do not fit it.
    """
    resid = run.acts.resid_post
    if resid is None:
        raise InputError("The run lacks resid_post: decode with sites=('resid_post', ...).")
    followed = np.asarray(run.logits.argmax(-1) if targets is None else targets, np.int32)
    if followed.shape != resid.shape[1:2]:
        raise InputError(f"There are {followed.shape} targets for {resid.shape[1]} positions.")
    if ((followed < 0) | (followed >= model.config.d_vocab)).any():
        raise InputError(f"A target is outside the vocabulary of {model.config.d_vocab} tokens.")
    if not 1 <= top_k <= model.config.d_vocab:
        raise InputError(f"top_k is {top_k}: expected 1 to {model.config.d_vocab}.")
    return _logit_lens(model.decoder, resid, jnp.asarray(followed), top_k, implementation)


@functools.partial(jax.jit, static_argnames=("top_k", "implementation"))
def _logit_lens(
    decoder: Decoder,
    resid: Float[Array, "layer pos d_model"],
    targets: Int[Array, " pos"],
    top_k: int,
    implementation: str | None,
) -> LogitLens:
    final = decoder.final_norm(resid[-1])

    def layer(resid: Float[Array, "pos d_model"]) -> Readout:
        hidden = decoder.final_norm(resid)
        embed = decoder.embed[...]
        return readout(hidden, final, embed, targets, top_k=top_k, implementation=implementation)

    layers = jax.lax.map(layer, resid)
    top = layers.top_tokens[:, :, 0]
    same = top == top[-1][None]
    agrees_to_the_end = jnp.flip(jnp.cumprod(jnp.flip(same, 0).astype(jnp.int32), axis=0), 0)
    saturation = len(top) - agrees_to_the_end.sum(0)
    return LogitLens(
        targets=targets,
        saturation_layer=saturation.astype(jnp.int32),
        **vars(layers),
    )
