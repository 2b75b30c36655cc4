"""Ablation sweeps on text, which transcribe many clips under many interventions.

The work of a clip is in `work`, the text metrics are in `result`.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.ablation.work import AblationWork
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.means import resolve_means
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.interventions.grammar import as_intervention
from jaxasr_interp.interventions.intervention import UNEDITED, Intervention
from jaxasr_interp.model.edits import EditLike
from jaxasr_interp.model.run import check_length
from jaxasr_interp.model.sites import (
    COMPONENT_SITES,
    Stack,
    check_site,
    check_stack,
    head_axis,
)
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.runner import run_units
from jaxasr_interp.runtime.slot_store import open_slots
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, host_only
from jaxasr_interp.speech.clips import ClipSource, as_clips
from jaxasr_interp.speech.tokenizer import Tokenizer


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


@host_only(GENERATE_FIXED)
def ablation_sweep(
    model: Whisper,
    clips: ClipSource,
    interventions: Sequence[EditLike] | None = None,
    *,
    choice: Choice = GREEDY,
    memory: int | None = None,
    resume: Path | None = None,
    on_progress: Progress | None = None,
) -> TextSweep:
    """Transcribe every clip without an edit and under every intervention.

    Args:
        model: a model with a tokenizer.
        clips: clips that the encoder takes whole (30 s), with their text if it is known, or what
            names them (see `speech.clips.as_clips`).
        interventions: interventions, texts, or edits and functions of the decoder; by default every
            decoder component set to zero (see `component_edits`).
        choice: how tokens are chosen.
        memory: bytes that may be used in addition to the model; by default a quarter of the
            device's.
        resume: path of a store that gets each clip when it is finished, and from which the same
            sweep goes on. It stays when the sweep is done.
        on_progress: called after each batch with the transcripts done, how many there are, and
            `"transcripts"`.

    Returns:
        The transcripts; the first intervention is `UNEDITED`.

    Raises:
        InputError: there are no clips or interventions, two have the same name, a clip is longer
            than the encoder takes, an edit does not fit the model, or the store belongs to another
            sweep.
    """
    tokenizer, clips = require_tokenizer(model), as_clips(clips)
    chosen = component_edits(model) if interventions is None else interventions
    edits = [UNEDITED, *resolve_means(model, [as_intervention(edit, model) for edit in chosen])]
    for what, names in (("clip", [c.name for c in clips]), ("edit", [e.text for e in edits])):
        if len(set(names)) < len(names):
            raise InputError(f"Two {what}s have the same name: {_twice(names)!r}.")
    if not clips or len(edits) == 1:
        raise InputError("A sweep on text takes at least one clip and one edit.")
    for clip in clips:
        check_length(model.config, clip.audio, clip.name)
    by_edit = _transcribe(
        AblationWork(model, tuple(clips), tuple(edits), choice, memory), resume, on_progress
    )
    languages = [_language(tokenizer, one.prompt) for one in by_edit[0]]
    return TextSweep(tuple(edits), tuple(clips), tuple(languages), by_edit)


def _transcribe(
    work: AblationWork, resume: Path | None, on_progress: Progress | None
) -> tuple[tuple[Generated, ...], ...]:
    """Run the work in a store at `resume`, or in a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        # Nobody goes on with a temporary store: it needs no hash of the weights.
        path, identity = (
            (Path(temporary) / "texts.zarr", {}) if resume is None else (resume, work.identity)
        )
        store = open_slots(path, work.layout, identity)
        run_units(store, work.units, work, phase="transcripts", on_progress=on_progress)
        return work.read(store)


def _language(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """Return the code of the language that a prompt names."""
    return next((code for code, token in tokenizer.languages.items() if token in prompt), "en")


def _twice(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
