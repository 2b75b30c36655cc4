"""Mean activations of sites; ablation with them keeps activations in their usual range."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.kinds import Interchange, Mean
from jaxasr_interp.model.edits import Activations, Edit, EditLike
from jaxasr_interp.model.run import decode, encode_utterance
from jaxasr_interp.model.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    counts_frames,
    position_axis,
)
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.utterance import Utterance


@host_only()
def mean_activations(
    model: Whisper,
    utterances: Sequence[Utterance],
    *,
    stack: Stack,
    sites: Sequence[str],
    n_tokens: int,
) -> Activations:
    """Compute the mean of some sites over the positions of several runs, for `Interchange`.

    Each decoder position of the prompt, which the runs share, has its own mean; all positions after
    the prompt have one mean. At sites that count frames, the mean is over frames that hold sound.

    Args:
        model: the model.
        utterances: the runs, each with its own tokens, prompts of one length, and the number of
            frames that hold sound (if that is not known, all frames count).
        stack: stack of the sites.
        sites: the sites.
        n_tokens: number of tokens of the run in which the mean is used.

    Returns:
        Activations as long as those of the run.

    Raises:
        InputError: there are no utterances, their prompts differ in length, one has no text after
            its prompt, or the site is the decoder's self-attention, whose keys differ between
            positions.
    """
    if not utterances:
        raise InputError("There are no runs to take the mean of: give at least one.")
    for site in {"attn_scores", "pattern"}.intersection(sites if stack == "decoder" else ()):
        raise InputError(f"The mean of the decoder's {site!r} is none: each position has own keys.")
    prompts = {one.prompt for one in utterances}
    if len(prompts) > 1:
        raise InputError(f"The prompts have {sorted(prompts)} tokens: give runs of one length.")
    (prompt,) = prompts
    if any(len(one.tokens) <= prompt for one in utterances):
        raise InputError("A run to take the mean of has no text: choose clips with speech.")
    kind = EncoderActivations if stack == "encoder" else DecoderActivations
    runs = [_run(model, one, stack, sites) for one in utterances]
    means = {}
    for site in sites:
        axis = position_axis(site) + (SITES[stack][site][0] == "layer")
        values = [jnp.moveaxis(getattr(acts, site), axis, 0) for acts in runs]
        mean = (
            _spread(
                [x[: one.frames] for x, one in zip(values, utterances, strict=True)],
                0,
                len(values[0]),
            )
            if counts_frames(stack, site)
            else _spread(values, prompt, n_tokens)
        )
        means[site] = jnp.moveaxis(mean, 0, axis)
    return kind(**means)


@host_only()
def resolve_means(model: Whisper, interventions: Sequence[Intervention]) -> list[Intervention]:
    """Replace each `Mean` in some interventions by the mean activations that it names.

    Each clip is transcribed once, and run once for all the means of a stack over the same clips.

    Args:
        model: a model with a tokenizer.
        interventions: interventions whose edits may hold `Mean`s.

    Returns:
        The interventions without `Mean`s; equal means are one object, which they share.

    Raises:
        InputError: a clip cannot be read, is longer than 30 s or has no text.
    """
    edits = [(one.encoder, one.decoder, one.steps) for one in interventions]
    named = [one for one in jax.tree.leaves(edits, is_leaf=_is_mean) if _is_mean(one)]
    if not named:
        return list(interventions)
    files = dict.fromkeys(file for mean in named for file in mean.references)
    heard = {file: make_utterance(model, load_audio(file), name=file) for file in files}
    alike: dict[tuple[tuple[str, ...], Stack], set[Mean]] = {}
    for mean in named:
        alike.setdefault((mean.references, mean.stack), set()).add(mean)
    known: dict[Mean, Edit] = {}
    for (references, stack), means in alike.items():
        acts = mean_activations(
            model,
            [heard[file] for file in references],
            stack=stack,
            sites=sorted({mean.site for mean in means}),
            n_tokens=model.config.max_tokens,
        )
        # Step 0 is the position of the prompt's last token.
        first_step = heard[references[0]].prompt - 1
        known |= {mean: Interchange(_values(acts, mean, first_step)) for mean in means}
    return [_replaced(one, known) for one in interventions]


def _is_mean(tree: object) -> bool:
    return isinstance(tree, Mean)


def _replaced(intervention: Intervention, known: Mapping[Mean, Edit]) -> Intervention:
    def resolved(edit: EditLike) -> EditLike:
        if not any(map(_is_mean, jax.tree.leaves(edit, is_leaf=_is_mean))):
            return edit
        return jax.tree.map(
            lambda one: known[one] if isinstance(one, Mean) else one, edit, is_leaf=_is_mean
        )

    return dataclasses.replace(
        intervention,
        encoder=resolved(intervention.encoder),
        decoder=resolved(intervention.decoder),
        steps=resolved(intervention.steps),
    )


def _values(acts: Activations, mean: Mean, first_step: int) -> Activations:
    """Return the mean at one site, from the position `first_step` on if the mean counts steps."""
    values = getattr(acts, mean.site)
    if mean.from_first_step:
        axis = position_axis(mean.site) + (SITES[mean.stack][mean.site][0] == "layer")
        values = jax.lax.slice_in_dim(values, first_step, None, axis=axis)
    return type(acts)(**{mean.site: values})


def _run(model: Whisper, utterance: Utterance, stack: Stack, sites: Sequence[str]) -> Activations:
    encoded = encode_utterance(model, utterance, sites if stack == "encoder" else ())
    if stack == "encoder":
        return encoded.acts
    return decode(model, utterance.tokens, encoded.states, sites=sites).acts


def _spread(
    values: Sequence[Float[Array, "_ ..."]], apart: int, length: int
) -> Float[Array, "length ..."]:
    """Average each of the first `apart` positions on its own, and all later ones together."""
    first = jnp.stack([value[:apart] for value in values]).mean(0)
    rest = jnp.concatenate([value[apart:] for value in values]).mean(0)
    return jnp.concatenate([first, jnp.broadcast_to(rest, (length - apart, *rest.shape))])
