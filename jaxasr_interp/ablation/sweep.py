"""Ablation sweeps on text, which transcribe many clips under many interventions.

Each clip is encoded once; all interventions on the decoder are then rows of one batch of
`generate_rows`. Each intervention on the encoder needs an encoder run of its own. The text metrics
are in `result`.
"""

import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.ablation.groups import generation_groups
from jaxasr_interp.ablation.partial import PartialTexts
from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.language import name_languages
from jaxasr_interp.generation.means import resolve_means
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.interventions.grammar import as_intervention
from jaxasr_interp.interventions.intervention import (
    UNEDITED,
    Intervention,
    encode_reference,
    encode_under,
)
from jaxasr_interp.model.run import EncoderRun
from jaxasr_interp.model.sites import (
    COMPONENT_SITES,
    Stack,
    check_site,
    check_stack,
    head_axis,
)
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.speech.audio import CHUNK_SAMPLES, log_mel_spectrogram
from jaxasr_interp.speech.tokenizer import Tokenizer
from jaxasr_interp.speech.utterance import Clip

_ENCODED_AT_ONCE = 8
_CLIPS_AT_ONCE = 16


def component_edits(
    model: Whisper,
    kind: str = "zero",
    *,
    stack: Stack = "decoder",
    sites: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | Literal["all"] | None = None,
    alphas: Sequence[float] = (1.0,),
) -> list[Intervention]:
    """Make one intervention for each component, which is a site in a layer or one of its heads.

    Args:
        model: the model, which gives the layers and heads.
        kind: the edit's kind with its keys, such as `"zero"` or `"mix:ref=noise"`; see
            `interventions.grammar`.
        stack: encoder or decoder.
        sites: sites, by default `COMPONENT_SITES`; at sites with heads each head is a component.
        layers: layer numbers, all by default.
        heads: head numbers, all by default; `"all"` edits all heads of a site at once.
        alphas: strengths.

    Returns:
        The interventions, in the order of strength, site, layer and head.

    Raises:
        InputError: there is no such site, layer or head, or the kind cannot be read.
    """
    name, _, options = kind.partition(":")
    places = [
        f"{site}@{layer}" + ("" if head is None else f".{head}")
        for site in (COMPONENT_SITES[check_stack(stack)] if sites is None else sites)
        for layer in (range(model.config.layers(stack)) if layers is None else layers)
        for head in (
            [None]
            if head_axis(check_site(stack, site)) is None or heads == "all"
            else range(model.config.heads(stack))
            if heads is None
            else heads
        )
    ]
    return [
        as_intervention(
            f"{name}:{stack}.{place}"
            + (f":{options}" if options else "")
            + ("" if alpha == 1 else f":alpha={alpha:g}"),
            model,
        )
        for alpha in alphas
        for place in places
    ]


def ablation_sweep(
    model: Whisper,
    clips: Sequence[Clip],
    interventions: Sequence[Intervention | str] | None = None,
    *,
    choice: Choice = GREEDY,
    memory: int | None = None,
    resume: Path | None = None,
    on_progress: Progress | None = None,
) -> TextSweep:
    """Transcribe every clip without an edit and under every intervention.

    Args:
        model: a model with a tokenizer.
        clips: clips of up to 30 s, with their text if it is known.
        interventions: by default every decoder component set to zero; see `component_edits`.
        choice: how tokens are chosen.
        memory: bytes that may be used in addition to the model; by default a quarter of the
            device's.
        resume: a file to which finished clips are added, and from which an earlier sweep resumes.
        on_progress: called after each batch with the transcripts done, how many there are, and
            `"transcripts"`.

    Returns:
        The transcripts; the first intervention is `UNEDITED`.

    Raises:
        InputError: there are no clips or interventions, two have the same name, a clip is longer
            than 30 s, an edit does not fit the model, or the file belongs to another sweep.
    """
    tokenizer = require_tokenizer(model)
    chosen = component_edits(model) if interventions is None else interventions
    edits = [UNEDITED, *resolve_means(model, [as_intervention(edit, model) for edit in chosen])]
    for what, names in (("clip", [c.name for c in clips]), ("edit", [e.text for e in edits])):
        if len(set(names)) < len(names):
            raise InputError(f"Two {what}s have the same name: {_twice(names)!r}.")
    if not clips or len(edits) == 1:
        raise InputError("A sweep on text takes at least one clip and one edit.")
    for clip in clips:
        if len(clip.audio) > CHUNK_SAMPLES:
            raise InputError(f"{clip.name} is longer than 30 s: cut it to the sentence.")
    partial = PartialTexts(resume, model, edits, choice, tokenizer)
    known = {clip.name: rows for clip in clips if (rows := partial.get(clip)) is not None}
    todo = [clip for clip in clips if clip.name not in known]
    at_once = 1 if jax.default_backend() == "cpu" else _CLIPS_AT_ONCE
    for start in range(0, len(todo), at_once):
        batch = todo[start : start + at_once]
        for clip, rows in zip(batch, _under_all(model, batch, edits, choice, memory), strict=True):
            partial.add(clip, rows)
            known[clip.name] = rows
        if on_progress is not None:
            on_progress(len(known) * len(edits), len(clips) * len(edits), "transcripts")
    by_edit = zip(*(known[clip.name] for clip in clips), strict=True)
    by_edit = tuple(by_edit)
    languages = [_language(tokenizer, one.prompt) for one in by_edit[0]]
    return TextSweep(tuple(edits), tuple(clips), tuple(languages), by_edit)


def _under_all(
    model: Whisper,
    clips: Sequence[Clip],
    edits: Sequence[Intervention],
    choice: Choice,
    memory: int | None,
) -> list[list[Generated]]:
    """Transcribe some clips, each under every intervention."""
    audio = [clip.audio for clip in clips]
    mels = [log_mel_spectrogram(clip, model.config.n_mels) for clip in audio]
    states, _ = encode_under(model, audio, UNEDITED, mels)
    prompts = _prompts(model, clips, states)
    # The draws of a clip do not depend on the other clips of the batch.
    draws = [zlib.crc32(clip.name.encode()) >> 1 for clip in clips]
    results: list[dict[int, Generated]] = [{} for _ in clips]
    encode_other = _remembering(len(clips))
    for group in generation_groups(edits, len(prompts[0])):
        if group.encodes:
            for start in range(0, len(group.members), _ENCODED_AT_ONCE):
                some = slice(start, start + _ENCODED_AT_ONCE)
                members, own = group.members[some], group.edits[some]
                each = [encode_under(model, audio, edits[i], mels, encode_other) for i in members]
                generated = generate_rows(
                    model,
                    jnp.concatenate([encoded for encoded, _ in each]),
                    [[edit] for edit in own for _ in clips],
                    prompts=prompts * len(members),
                    references=_joined([reference for _, reference in each]),
                    choice=choice,
                    draws=draws * len(members),
                    memory=memory,
                )
                for n, (row,) in enumerate(generated):
                    results[n % len(clips)][members[n // len(clips)]] = row
            continue
        references, one = None, edits[group.members[0]]
        if group.edits[0].needs_reference and one.reference is not None:
            runs = [encode_other(model, clip, one.reference, one.seed, ()) for clip in audio]
            references = jnp.stack([run.states for run in runs])
        generated = generate_rows(
            model,
            states,
            [group.edits] * len(clips),
            prompts=prompts,
            references=references,
            choice=choice,
            draws=draws,
            memory=memory,
        )
        for own, rows in zip(results, generated, strict=True):
            own.update(zip(group.members, rows, strict=True))
    return [[own[i] for i in range(len(edits))] for own in results]


def _prompts(
    model: Whisper, clips: Sequence[Clip], states: Float[Array, "clip frame d_model"]
) -> list[list[int]]:
    """Make each clip's prompt in its language, which is detected if it is not known."""
    tokenizer, prompts = require_tokenizer(model), []
    # Clips are taken one by one, so that a clip's language does not depend on the others.
    for clip, own in zip(clips, states, strict=True):
        (code,) = name_languages(model, own[None], [clip.language])
        if isinstance(code, InputError):
            raise code
        prompts.append(tokenizer.prompt(code))
    return prompts


def _language(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """Return the code of the language that a prompt names."""
    return next((code for code, token in tokenizer.languages.items() if token in prompt), "en")


def _remembering(count: int) -> Callable[..., EncoderRun]:
    """Make a `encode_reference` that keeps its last runs for the next interventions."""
    runs: dict[Hashable, EncoderRun] = {}

    def encode_other(
        model: Whisper, clip: np.ndarray, reference: str, seed: int, sites: str | Iterable[str]
    ) -> EncoderRun:
        key = id(clip), reference, seed, sites
        if key not in runs:
            if len(runs) == count:
                runs.clear()
            runs[key] = encode_reference(model, clip, reference, seed, sites)
        return runs[key]

    return encode_other


def _joined(
    references: Sequence[Float[Array, "clip frame d_model"] | None],
) -> Float[Array, "clip frame d_model"] | None:
    known = [one for one in references if one is not None]
    return jnp.concatenate(known) if known else None


def _twice(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
