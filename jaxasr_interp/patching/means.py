"""Mean activations: what a site holds on average, to ablate it without leaving what is usual."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.run import decode, encode
from jaxasr_interp.model.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    counts_frames,
    position_axis,
)
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching import Utterance


def mean_activations(
    model: Whisper,
    utterances: Sequence[Utterance],
    *,
    stack: Stack,
    sites: Sequence[str],
    n_tokens: int,
    prompt: int,
    frames: Sequence[int],
) -> EncoderActivations | DecoderActivations:
    """The mean of some sites over the positions of several runs, to give to `Interchange`.

    Decoder tokens: position by position in the prompt, which the runs share, and beyond it over all
    positions. Frames: over those that hold sound.

    Args:
        model: the model.
        utterances: the runs, each with its own tokens.
        stack: whose sites.
        sites: which.
        n_tokens: tokens of the run that the mean is for.
        prompt: how many tokens of every run are the prompt.
        frames: how many encoder frames of each run hold sound.

    Returns:
        Activations as long as those of the run.

    Raises:
        InputError: there are no utterances, one is nothing but its prompt, or the site is the
            decoder's self-attention, whose keys differ between positions.
    """
    if not utterances:
        raise InputError("There are no runs to take the mean of: give at least one.")
    for site in {"attn_scores", "pattern"}.intersection(sites if stack == "decoder" else ()):
        raise InputError(f"The mean of the decoder's {site!r} is none: each position has own keys.")
    if any(len(one.tokens) <= prompt for one in utterances):
        raise InputError("A run to take the mean of has no text: choose clips with speech.")
    kind = EncoderActivations if stack == "encoder" else DecoderActivations
    runs = [_run(model, one, stack, sites) for one in utterances]
    means = {}
    for site in sites:
        axis = position_axis(site) + (SITES[stack][site][0] == "layer")
        values = [jnp.moveaxis(getattr(acts, site), axis, 0) for acts in runs]
        mean = (
            _spread([x[:n] for x, n in zip(values, frames, strict=True)], 0, len(values[0]))
            if counts_frames(stack, site)
            else _spread(values, prompt, n_tokens)
        )
        means[site] = jnp.moveaxis(mean, 0, axis)
    return kind(**means)


def _run(
    model: Whisper, utterance: Utterance, stack: Stack, sites: Sequence[str]
) -> EncoderActivations | DecoderActivations:
    encoded = encode(model, utterance.mel, sites=sites if stack == "encoder" else ())
    if stack == "encoder":
        return encoded.acts
    return decode(model, utterance.tokens, encoded.states, sites=sites).acts


def _spread(
    values: Sequence[Float[Array, "_ ..."]], apart: int, length: int
) -> Float[Array, "length ..."]:
    """The first `apart` positions each their own mean; one mean for all that follow."""
    first = jnp.stack([value[:apart] for value in values]).mean(0)
    rest = jnp.concatenate([value[apart:] for value in values]).mean(0)
    return jnp.concatenate([first, jnp.broadcast_to(rest, (length - apart, *rest.shape))])
