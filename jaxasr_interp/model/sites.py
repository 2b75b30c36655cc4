"""Every place in the model whose activation can be read and edited, with its axes.

Axes (the same words in every shape annotation of the library):

========== =============================================================
`layer`    transformer layer of one stack, 0 first
`pos`      decoder token position
`frame`    encoder position, 20 ms of audio each
`mel_frame` column of the log-mel spectrogram, 10 ms of audio each
`head`     attention head
`query`    attending position (`pos` or `frame`)
`key`      attended position (`pos` or `frame`)
`d_model`  residual stream
`d_head`   one head's queries, keys and values
`d_mlp`    hidden layer of the MLP
`d_vocab`  vocabulary
`n_mels`   mel bands
`patch`    one intervention of a sweep
`class`    label of a probe
`step`     step of generation or of an optimiser
`batch`    only where `jax.vmap` puts it
========== =============================================================

Site names are TransformerLens's. `q`, `k` and `v` are the projections as they leave their
matrices (the queries unscaled); `attn_scores` are `q·k / sqrt(d_head)` with `-inf` where the causal
mask forbids; `z` is each head's mix of values; `result` is each head's contribution to `attn_out`,
which is their sum plus a bias. `resid_post` of the last layer comes *before* `ln_final`: what
Hugging Face calls the last hidden state is `ln_final`.
"""

import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.pytree import pytree_dataclass

Stack = Literal["encoder", "decoder"]

if TYPE_CHECKING:
    # Who reads a site has requested it, which no type can say: to editors it is there.
    type Requested[T] = T
else:
    Requested = typing.Optional
NOT_REQUESTED: Any = None


@pytree_dataclass
class EncoderActivations:
    """The encoder's activations by site; `None` where not requested."""

    conv1_out: Requested[Float[Array, "mel_frame d_model"]] = NOT_REQUESTED
    conv2_out: Requested[Float[Array, "frame d_model"]] = NOT_REQUESTED
    pos_embed: Requested[Float[Array, "frame d_model"]] = NOT_REQUESTED
    resid_pre: Requested[Float[Array, "layer frame d_model"]] = NOT_REQUESTED
    q: Requested[Float[Array, "layer frame head d_head"]] = NOT_REQUESTED
    k: Requested[Float[Array, "layer frame head d_head"]] = NOT_REQUESTED
    v: Requested[Float[Array, "layer frame head d_head"]] = NOT_REQUESTED
    attn_scores: Requested[Float[Array, "layer head query key"]] = NOT_REQUESTED
    pattern: Requested[Float[Array, "layer head query key"]] = NOT_REQUESTED
    z: Requested[Float[Array, "layer frame head d_head"]] = NOT_REQUESTED
    result: Requested[Float[Array, "layer frame head d_model"]] = NOT_REQUESTED
    attn_out: Requested[Float[Array, "layer frame d_model"]] = NOT_REQUESTED
    resid_mid: Requested[Float[Array, "layer frame d_model"]] = NOT_REQUESTED
    mlp_pre: Requested[Float[Array, "layer frame d_mlp"]] = NOT_REQUESTED
    mlp_post: Requested[Float[Array, "layer frame d_mlp"]] = NOT_REQUESTED
    mlp_out: Requested[Float[Array, "layer frame d_model"]] = NOT_REQUESTED
    resid_post: Requested[Float[Array, "layer frame d_model"]] = NOT_REQUESTED
    ln_final: Requested[Float[Array, "frame d_model"]] = NOT_REQUESTED


@pytree_dataclass
class DecoderActivations:
    """The decoder's activations by site; `None` where not requested."""

    embed: Requested[Float[Array, "pos d_model"]] = NOT_REQUESTED
    pos_embed: Requested[Float[Array, "pos d_model"]] = NOT_REQUESTED
    resid_pre: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    q: Requested[Float[Array, "layer pos head d_head"]] = NOT_REQUESTED
    k: Requested[Float[Array, "layer pos head d_head"]] = NOT_REQUESTED
    v: Requested[Float[Array, "layer pos head d_head"]] = NOT_REQUESTED
    attn_scores: Requested[Float[Array, "layer head query key"]] = NOT_REQUESTED
    pattern: Requested[Float[Array, "layer head query key"]] = NOT_REQUESTED
    z: Requested[Float[Array, "layer pos head d_head"]] = NOT_REQUESTED
    result: Requested[Float[Array, "layer pos head d_model"]] = NOT_REQUESTED
    attn_out: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    resid_mid: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    cross_q: Requested[Float[Array, "layer pos head d_head"]] = NOT_REQUESTED
    cross_k: Requested[Float[Array, "layer frame head d_head"]] = NOT_REQUESTED
    cross_v: Requested[Float[Array, "layer frame head d_head"]] = NOT_REQUESTED
    cross_attn_scores: Requested[Float[Array, "layer head pos frame"]] = NOT_REQUESTED
    cross_pattern: Requested[Float[Array, "layer head pos frame"]] = NOT_REQUESTED
    cross_z: Requested[Float[Array, "layer pos head d_head"]] = NOT_REQUESTED
    cross_result: Requested[Float[Array, "layer pos head d_model"]] = NOT_REQUESTED
    cross_attn_out: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    resid_mid_cross: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    mlp_pre: Requested[Float[Array, "layer pos d_mlp"]] = NOT_REQUESTED
    mlp_post: Requested[Float[Array, "layer pos d_mlp"]] = NOT_REQUESTED
    mlp_out: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    resid_post: Requested[Float[Array, "layer pos d_model"]] = NOT_REQUESTED
    ln_final: Requested[Float[Array, "pos d_model"]] = NOT_REQUESTED
    logits: Requested[Float[Array, "pos d_vocab"]] = NOT_REQUESTED


def _axes_by_site(activations: type) -> dict[str, tuple[str, ...]]:
    hints = typing.get_type_hints(activations)
    return {name: tuple(typing.get_args(hint)[0].dim_str.split()) for name, hint in hints.items()}


SITES: dict[str, dict[str, tuple[str, ...]]] = {
    "encoder": _axes_by_site(EncoderActivations),
    "decoder": _axes_by_site(DecoderActivations),
}
"""`SITES[stack][site]` is the tuple of axis names of the activation."""

PATTERN_SITES = frozenset({"attn_scores", "pattern", "cross_attn_scores", "cross_pattern"})
"""Sites quadratic in the length, which blocks return only if they are requested."""

RESIDUAL_SITES = (
    "resid_pre",
    "attn_out",
    "resid_mid",
    "cross_attn_out",
    "resid_mid_cross",
    "mlp_out",
    "resid_post",
    "ln_final",
)
"""The residual stream and what each sublayer adds to it: the sites that are kept by default."""


COMPONENT_SITES: dict[str, tuple[str, ...]] = {
    "encoder": ("attn_out", "mlp_out", "z"),
    "decoder": ("attn_out", "cross_attn_out", "mlp_out", "z", "cross_z"),
}
"""The sites of a layer's components: its sublayers, and the heads of its attention."""

UNSWEPT_SITES: dict[str, frozenset[str]] = {
    "encoder": frozenset({"conv1_out", "attn_scores"}),
    "decoder": frozenset({"attn_scores", "cross_attn_scores", "ln_final", "logits"}),
}
"""Sites that a sweep does not patch. They lie half-way through the stem, before a softmax whose
`pattern` is patched instead, or after the last layer, where a patch says nothing about the model.
"""


def sweepable_sites(stack: Stack) -> list[str]:
    """List the sites of a stack that a sweep can patch, in the order of the forward pass."""
    return [site for site in SITES[stack] if site not in UNSWEPT_SITES[stack]]


def layer_axes(site: str) -> tuple[str, ...]:
    """Return the axes of one layer's activation at `site`, which are the same in both stacks."""
    axes = next(sites[site] for sites in SITES.values() if site in sites)
    return axes[1:] if axes[0] == "layer" else axes


def position_axis(site: str) -> int:
    """Return the axis of one layer's activation that counts token positions or frames.

    Where queries and keys both have such an axis, it is the axis of the queries.
    """
    axes = layer_axes(site)
    return next(i for i, axis in enumerate(axes) if axis in ("pos", "frame", "query"))


def counts_frames(stack: Stack, site: str) -> bool:
    """Tell whether a site's positions are encoder frames rather than decoder tokens.

    They are frames in the whole encoder, and at the decoder's `cross_k` and `cross_v`. The result
    is false for a site that the stack lacks.
    """
    return stack == "encoder" or "frame" in SITES[stack].get(site, ())[:2]


def head_axis(site: str) -> int | None:
    """Return the axis of one layer's activation that counts heads; `None` if it has none."""
    axes = layer_axes(site)
    return axes.index("head") if "head" in axes else None


def check_stack(stack: str) -> Stack:
    """Return `stack` if it is `"encoder"` or `"decoder"`; raise `InputError` otherwise."""
    if stack not in SITES:
        raise InputError(f"Unknown stack {stack!r}: choose 'encoder' or 'decoder'.")
    return typing.cast(Stack, stack)


def check_site(stack: str, site: str) -> str:
    """Return `site` if `stack` has it; raise `InputError` listing the stack's sites otherwise."""
    sites = SITES[check_stack(stack)]
    if site not in sites:
        raise InputError(f"The {stack} has no site {site!r}: choose one of {', '.join(sites)}.")
    return site


def requested_sites(stack: Stack, sites: str | Iterable[str] | None) -> frozenset[str]:
    """Resolve a request for activations.

    Args:
        stack: `"encoder"` or `"decoder"`.
        sites: site names, one name, `"all"`, or `None` for the stack's `RESIDUAL_SITES`.

    Returns:
        The set of site names.

    Raises:
        InputError: a name is not a site of the stack.
    """
    if sites is None:
        return frozenset(RESIDUAL_SITES).intersection(SITES[stack])
    if sites == "all":
        return frozenset(SITES[stack])
    names = [sites] if isinstance(sites, str) else list(sites)
    return frozenset(check_site(stack, name) for name in names)
