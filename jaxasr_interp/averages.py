"""The mean activation of several runs: what mean ablation puts in a run's place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import decode, encode
from jaxasr_interp.model import Whisper
from jaxasr_interp.patching.runs import Utterance
from jaxasr_interp.sites import (
    PATTERN_SITES,
    DecoderActivations,
    EncoderActivations,
    check_stack,
    layer_axes,
    position_axis,
    requested_sites,
)


def mean_activations(
    model: Whisper,
    utterances: Sequence[Utterance],
    *,
    stack: str = "decoder",
    sites: str | Sequence[str] | None = None,
    positions: int | None = None,
) -> EncoderActivations | DecoderActivations:
    """`mean_r a_r[layer, pos]` over the runs `r`, or `mean_{r, pos} a_r[layer, pos]`.

    As the source of an `Interchange` it makes a patch a mean ablation.

    Args:
        model: the model.
        utterances: the reference set.
        stack: `"encoder"` or `"decoder"`.
        sites: as in `encode` and `decode`.
        positions: average over positions as well, and repeat the mean at so many; by default every
            position has a mean of its own, and the runs must have equally many.

    Returns:
        Activations with the shapes of a single run.

    Raises:
        InputError: no utterances, runs of different length, or a mean over the positions of an
            attention pattern, whose rows are of different kinds.
    """
    wanted = requested_sites(check_stack(stack), sites)
    if not utterances:
        raise InputError("The reference set is empty: give at least one utterance.")
    lengths = {len(one.tokens) for one in utterances}
    if positions is None and stack == "decoder" and len(lengths) > 1:
        raise InputError(
            f"The reference runs have {sorted(lengths)} tokens: take the mean over positions too."
        )
    if positions is not None and wanted & PATTERN_SITES:
        raise InputError("Attention patterns have no mean over positions: leave positions out.")
    total = None
    for one in utterances:
        acts = _activations(model, one, stack, wanted)
        if positions is not None:
            acts = {site: _same_everywhere(site, value, positions) for site, value in acts.items()}
        total = acts if total is None else jax.tree.map(jnp.add, total, acts)
    means = jax.tree.map(lambda leaf: leaf / len(utterances), total)
    return EncoderActivations(**means) if stack == "encoder" else DecoderActivations(**means)


def _activations(
    model: Whisper, utterance: Utterance, stack: str, sites: frozenset[str]
) -> dict[str, Array]:
    encoded = encode(model, utterance.mel, sites=sites if stack == "encoder" else ())
    acts = encoded.acts
    if stack == "decoder":
        acts = decode(model, utterance.tokens, encoded.states, sites=sites).acts
    return {site: getattr(acts, site) for site in sites}


def _same_everywhere(site: str, value: Array, positions: int) -> Array:
    axis = value.ndim - len(layer_axes(site)) + position_axis(site)
    return jnp.repeat(value.mean(axis, keepdims=True), positions, axis=axis)
