"""Direct logit attribution: what every component adds directly to a token's logit.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; for Whisper's decoder the
components are the embeddings, the heads of self- and cross-attention, the MLPs and the biases.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.lens.logit import check_next_tokens, require_sites
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.layers import LAYER_NORM_EPSILON, Attention, LayerNorm
from jaxasr_interp.model.run import DecoderRun
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.runtime.frames import to_dataframe

if TYPE_CHECKING:
    import pandas
    import xarray

DIRECT_SITES = ("embed", "pos_embed", "z", "cross_z", "mlp_out", "resid_post")
"""The activations from which the attribution is computed."""


@pytree_dataclass
class DirectLogitAttribution:
    """Contributions to the logit of each position's target, or to its lead over another token.

    All but `targets`, `others` and `logit` are contributions; they add up to `logit`.

    Attributes:
        targets: the token whose logit is decomposed at each position.
        others: the token whose logit is subtracted, if any.
        logit: logit of the target in the run, minus that of the other token.
        embed: contribution of the embedding of the input token.
        pos_embed: contribution of the embedding of the position.
        attn_heads: contribution of each head of self-attention.
        attn_bias: contribution of the bias of self-attention's output.
        cross_attn_heads: contribution of each head of cross-attention.
        cross_attn_bias: contribution of the bias of cross-attention's output.
        mlp_out: contribution of each MLP.
        norm_bias: contribution of the final LayerNorm's bias.
    """

    targets: Int[Array, " pos"]
    others: Int[Array, " pos"] | None
    logit: Float[Array, " pos"]
    embed: Float[Array, " pos"]
    pos_embed: Float[Array, " pos"]
    attn_heads: Float[Array, "layer head pos"]
    attn_bias: Float[Array, "layer pos"]
    cross_attn_heads: Float[Array, "layer head pos"]
    cross_attn_bias: Float[Array, "layer pos"]
    mlp_out: Float[Array, "layer pos"]
    norm_bias: Float[Array, " pos"]

    @property
    def unexplained(self) -> Float[Array, " pos"]:
        """The logit minus all contributions: rounding, or changes by an edit outside components."""
        return self.logit - sum(self.by_component().values())

    def by_component(self) -> dict[str, Float[Array, " pos"]]:
        """Sum heads and bias of each sublayer; return contributions in the forward pass's order."""
        attn_out = self.attn_heads.sum(1) + self.attn_bias
        cross_attn_out = self.cross_attn_heads.sum(1) + self.cross_attn_bias
        components = {"embed": self.embed, "pos_embed": self.pos_embed}
        for layer in range(len(attn_out)):
            components[f"attn_out {layer}"] = attn_out[layer]
            components[f"cross_attn_out {layer}"] = cross_attn_out[layer]
            components[f"mlp_out {layer}"] = self.mlp_out[layer]
        return components | {"norm_bias": self.norm_bias}

    def to_dataset(self) -> "xarray.Dataset":
        """Return the arrays with named axes, and `contribution` from `by_component`."""
        import xarray

        axes = {1: ("pos",), 2: ("layer", "pos"), 3: ("layer", "head", "pos")}
        arrays = {
            name: (axes[np.ndim(value)], np.asarray(value))
            for name, value in vars(self).items()
            if value is not None
        }
        components = self.by_component()
        contribution = ("component", "pos"), np.stack([*components.values()])
        return xarray.Dataset(
            arrays | {"contribution": contribution, "unexplained": ("pos", self.unexplained)},
            {"component": list(components)},
        )

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each component and position."""
        return to_dataframe(self.to_dataset(), ("component", "pos"))


def direct_logit_attribution(
    model: Whisper,
    run: DecoderRun,
    targets: Int[Array, " pos"] | Sequence[int] | np.ndarray,
    others: Int[Array, " pos"] | Sequence[int] | np.ndarray | None = None,
) -> DirectLogitAttribution:
    """Decompose the target's logit into what each component adds to it.

    The last residual stream is a sum of components `c`, and with the final LayerNorm's deviation
    `s` frozen at its value in the run the logit of token t is linear in them:

    `logit[t] = Σ_c (c - mean c) · (scale ⊙ E_t) / s + bias · E_t = Σ_c c · d + bias · E_t`,
    `d = (scale ⊙ E_t - mean(scale ⊙ E_t)) / s`

    since centring is symmetric. For heads, `z · (W_O d)` equals `(z W_O) · d`, so that the heads'
    results in the space of the residual stream are never computed.

    Args:
        model: the model of the run.
        run: from `decode`, with `DIRECT_SITES` among its activations. The effect of an edit at the
            residual stream, `attn_out` or `result` is part of `unexplained`.
        targets: for each position the next token whose logit is decomposed.
        others: tokens whose logit is subtracted first; without them, contributions that raise all
            logits equally cannot be told from others.

    Returns:
        Contributions in units of the logit, in float32 or wider.

    Raises:
        InputError: the run lacks an activation, or the tokens do not fit it.
    """
    require_sites(run, DIRECT_SITES)
    followed = check_next_tokens(model, run, "target", targets)
    against = None if others is None else check_next_tokens(model, run, "other", others)
    acts = {site: getattr(run.acts, site) for site in DIRECT_SITES}
    return _attribute(model.decoder, acts, run.logits, followed, against)


@jax.jit
def _attribute(
    decoder: Decoder,
    acts: dict[str, Array],
    logits: Float[Array, "pos d_vocab"],
    targets: Int[Array, " pos"],
    others: Int[Array, " pos"] | None,
) -> DirectLogitAttribution:
    wide = accumulation_dtype(decoder.embed.dtype)
    token = decoder.embed[...][targets].astype(wide)
    logit = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    if others is not None:
        token = token - decoder.embed[...][others].astype(wide)
        logit = logit - jnp.take_along_axis(logits, others[:, None], axis=1)[:, 0]
    direction = _direction(decoder.final_norm, acts["resid_post"][-1].astype(wide), token)

    def along(component: Float[Array, "*stack d_model"]) -> Float[Array, "*stack"]:
        return jnp.einsum("...pm,pm->...p", component.astype(wide), direction)

    attn_heads, attn_bias = _along_heads(decoder.blocks.attn, acts["z"], direction)
    cross_attn_heads, cross_attn_bias = _along_heads(
        decoder.blocks.cross_attn, acts["cross_z"], direction
    )
    return DirectLogitAttribution(
        targets=targets,
        others=others,
        logit=logit,
        embed=along(acts["embed"]),
        pos_embed=along(acts["pos_embed"]),
        attn_heads=attn_heads,
        attn_bias=attn_bias,
        cross_attn_heads=cross_attn_heads,
        cross_attn_bias=cross_attn_bias,
        mlp_out=along(acts["mlp_out"]),
        norm_bias=token @ decoder.final_norm.bias[...].astype(wide),
    )


def _direction(
    norm: LayerNorm, resid: Float[Array, "pos d_model"], token: Float[Array, "pos d_model"]
) -> Float[Array, "pos d_model"]:
    """Compute the direction `d` of the docstring above, along which components add to the logit."""
    deviation = jnp.sqrt(resid.var(-1, keepdims=True) + LAYER_NORM_EPSILON)
    scaled = token * norm.scale[...].astype(token.dtype)[None]
    return (scaled - scaled.mean(-1, keepdims=True)) / deviation


def _along_heads(
    attention: Attention,
    z: Float[Array, "layer pos head d_head"],
    direction: Float[Array, "pos d_model"],
) -> tuple[Float[Array, "layer head pos"], Float[Array, "layer pos"]]:
    """Compute the contributions of every layer's heads and of the bias of their output."""
    layers, _, heads, d_head = z.shape
    kernel = attention.out.kernel[...].reshape(layers, heads, d_head, -1).astype(direction.dtype)
    read = jnp.einsum("lhdm,pm->lhpd", kernel, direction)
    bias = attention.out.bias
    assert bias is not None
    of_heads = jnp.einsum("lphd,lhpd->lhp", z.astype(direction.dtype), read)
    return of_heads, jnp.einsum("lm,pm->lp", bias[...].astype(direction.dtype), direction)
