"""The tuned lens: the logit lens after an affine map for each layer, which is trained.

`p[l, pos] = softmax(ln_final(h + A_l h + b_l) W_Eᵀ)` with `h = resid_post[l, pos]`. The map makes
up for changes that later layers make to every residual stream; the rest is the prediction of the
layer. The last layer has no map. Belrose et al. 2023, "Eliciting Latent Predictions from
Transformers with the Tuned Lens" (arXiv 2303.08112).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.lens.logit import LogitLens, logit_lens
from jaxasr_interp.model.run import DecoderRun
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass, static


@pytree_dataclass
class Translators:
    """One affine map for every decoder layer but the last, in float32 or wider.

    Attributes:
        weight: the matrices `A`.
        bias: the vectors `b`.
        model: source of the weights of the model for which the maps are trained.
    """

    weight: Float[Array, "layer d_model d_model"]
    bias: Float[Array, "layer d_model"]
    model: str = static()

    @classmethod
    def zero(cls, model: Whisper) -> "Translators":
        """Make maps that change nothing, which is the logit lens."""
        layers, width = model.config.decoder_layers - 1, model.config.d_model
        dtype = accumulation_dtype(model.dtype)
        zeros = jnp.zeros((layers, width, width), dtype)
        return cls(zeros, zeros[:, 0], model.source)

    def __call__(
        self, resid: Float[Array, "layer rows d_model"]
    ) -> Float[Array, "layer rows d_model"]:
        """Compute `h + A_l h + b_l` for every layer's rows, in the dtype of the rows."""
        wide = resid.astype(self.weight.dtype)
        moved = jnp.einsum("lrd,led->lre", wide, self.weight) + self.bias[:, None, :]
        return (wide + moved).astype(resid.dtype)

    def check_model(self, model: Whisper) -> None:
        """Raise `InputError` unless the maps were trained on the weights of this model."""
        if _weights(self.model) != _weights(model.source):
            raise InputError(
                f"The tuned lens is of the model {self.model}, not of {model.source}: train one."
            )


def tuned_lens(
    model: Whisper,
    run: DecoderRun,
    translators: Translators,
    *,
    top_k: int = 5,
    implementation: str | None = None,
) -> LogitLens:
    """Map every layer's residual stream by its translator and read it with the logit lens.

    Args:
        model: the model of the run.
        run: from `decode`, with `resid_post` among its activations.
        translators: from `train_tuned_lens` or `load_tuned_lens`.
        top_k: number of the most probable tokens to keep.
        implementation: name of the readout kernel; `None` for the best one available here.

    Returns:
        One value for each layer and position; the last layer is the model's own output.

    Raises:
        InputError: the translators belong to another model, or the run lacks `resid_post`.
    """
    translators.check_model(model)
    if run.acts.resid_post is not None:
        translated = _translate(translators, run.acts.resid_post)
        run = dataclasses.replace(run, acts=dataclasses.replace(run.acts, resid_post=translated))
    return logit_lens(model, run, top_k=top_k, implementation=implementation)


@jax.jit
def _translate(
    translators: Translators, resid: Float[Array, "layer pos d_model"]
) -> Float[Array, "layer pos d_model"]:
    return jnp.concatenate([translators(resid[:-1]), resid[-1:]])


def _weights(source: str) -> str:
    """Return the hash in the source of a model's weights, or the whole source if it has none."""
    return source.rpartition("sha256:")[2]
