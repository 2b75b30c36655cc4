"""Generation of tokens and text from encoded clips, under any edit of the decoder."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.generation.prompts import padded_length
from jaxasr_interp.interventions.where import CountedFrom
from jaxasr_interp.model.edits import Edit, EditLike, edit_of, identity
from jaxasr_interp.model.run import decode
from jaxasr_interp.model.sites import SITES, DecoderActivations, requested_sites
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, host_only


@host_only(GENERATE_FIXED)
def generate(
    model: Whisper,
    states: Float[Array, "frame d_model"],
    *,
    prompt: Sequence[int] | None = None,
    edit: EditLike = identity,
    reference: Float[Array, "frame d_model"] | None = None,
    sites: str | Iterable[str] | None = (),
    choice: Choice = GREEDY,
) -> Generated:
    """Generate the transcript of one encoded clip.

    Args:
        model: a model with a tokenizer.
        states: encoder states, from `encode`.
        prompt: tokens to start from, by default `model.tokenizer.prompt()`. A prompt without the
            no-timestamps token asks for timestamps, which follow openai/whisper's rules. Tokens
            after it force the beginning of the transcript.
        edit: `edit(site, layer, value) -> value`, called at every decoder site of the prompt and of
            every step; an edit such as `ji.At(ji.Zero(), layer=2)`, or its text (see
            `interventions.grammar`). In a step `value` has one position; see `model.edits` on edits
            that need to know which one.
        reference: encoder states of another clip. An `Interchange` without a source takes the
            activations of a run on this clip with the same tokens.
        sites: activations to return: names, or `"all"`.
        choice: how tokens are chosen, and how many are generated at most.

    Returns:
        Tokens, text and log-probabilities.

    Raises:
        InputError: the model has no tokenizer, the prompt or states do not fit it, the edit names a
            site that the decoder lacks, or it needs a reference and there is none.
    """
    return generate_batch(
        model,
        states[None],
        prompts=None if prompt is None else [prompt],
        edit=edit,
        references=None if reference is None else reference[None],
        sites=sites,
        choice=choice,
    )[0]


@host_only(GENERATE_FIXED)
def generate_batch(
    model: Whisper,
    states: Float[Array, "batch frame d_model"],
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    edit: EditLike = identity,
    references: Float[Array, "batch frame d_model"] | None = None,
    sites: str | Iterable[str] | None = (),
    choice: Choice = GREEDY,
    memory: int | None = None,
) -> list[Generated]:
    """Generate the transcripts of several encoded clips in batches.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        prompts: one for each clip, all of the same length; see `generate`.
        edit: see `generate`; it sees one clip at a time.
        references: encoder states of each clip's reference; see `generate`.
        sites: see `generate`.
        choice: see `generate`; each clip draws its own tokens.
        memory: bytes that may be used in addition to the model; by default a quarter of the
            device's.

    Returns:
        One result for each clip.

    Raises:
        InputError: see `generate`.
    """
    generated = generate_rows(
        model,
        states,
        [[edit]] * len(states),
        prompts=prompts,
        references=references,
        choice=choice,
        memory=memory,
    )
    results = [row for (row,) in generated]
    if not requested_sites("decoder", sites):
        return results
    sources = [None] * len(states) if references is None else list(references)
    return [
        dataclasses.replace(
            one,
            acts=_reread(
                model,
                one,
                clip,
                edit_of(edit, "decoder", model.config, len(one.prompt)),
                source,
                sites,
            ),
        )
        for one, clip, source in zip(results, states, sources, strict=True)
    ]


def _reread(
    model: Whisper,
    one: Generated,
    states: Array,
    edit: Edit,
    reference: Array | None,
    sites: str | Iterable[str] | None,
) -> DecoderActivations:
    """Run the decoder over a whole transcript; its activations equal those of the steps."""
    # If the text fills the context, its last token is never an input.
    tokens = [*one.prompt, *one.tokens][: model.config.max_tokens]
    size = padded_length(len(tokens), model.config.max_tokens)
    padded = np.asarray(tokens + [0] * (size - len(tokens)), np.int32)
    other_acts = None
    if edit.needs_reference and reference is not None:
        taken = edit.touches or "all"
        other_acts = decode(model, padded, reference, sites=taken).acts
    # With explicit positions an edit may have a source of another length, as in the steps.
    from_start = CountedFrom(edit, 0)
    acts = decode(model, padded, states, edit=from_start, sites=sites, reference=other_acts).acts
    fields: dict[str, Any] = {}
    for site, value in vars(acts).items():
        axes = SITES["decoder"][site]
        own = tuple(slice(len(tokens) if x in ("pos", "query", "key") else None) for x in axes)
        fields[site] = None if value is None else value[own]
    return DecoderActivations(**fields)
