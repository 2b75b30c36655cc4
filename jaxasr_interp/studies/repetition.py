"""A study of the components that repetition loops depend on, and of the cost to remove them.

Clips on which the model loops are transcribed again without each sublayer and each head in turn,
and so is speech with known text. A loop is resolved if the new text does not loop
(`evaluation.loops`). This is the experiment of Glazer et al. 2025 (arXiv 2508.15882), who found
that most loops of large-v3 depend on one cross-attention head.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.ablation.sweep import ablation_sweep, component_edits
from jaxasr_interp.errors import InputError
from jaxasr_interp.evaluation.bootstrap import Interval, bootstrap_interval
from jaxasr_interp.evaluation.loops import is_loop
from jaxasr_interp.evaluation.text_metrics import words_on_silence
from jaxasr_interp.generation.means import resolve_means
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.generation.transcribe import transcribe_batch
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.speech.audio import SAMPLE_RATE
from jaxasr_interp.speech.utterance import Clip

_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Remedy:
    """The effect of one intervention on loops and on speech.

    Attributes:
        edit: text of the intervention; `"unedited"` for none.
        resolved: share of the looping clips that no longer loop, with its 95% bootstrap interval.
        silent: share of the looping clips whose transcript has no words any more.
        wer: word error rate on speech, with its 95% bootstrap interval.
        begun: share of the speech clips that loop.
    """

    edit: str
    resolved: Interval
    silent: float
    wer: Interval
    begun: float


@dataclasses.dataclass(frozen=True)
class RepetitionStudy:
    """The sweeps of the study, and one remedy for each intervention, the best first."""

    loops: TextSweep
    speech: TextSweep
    remedies: tuple[Remedy, ...]

    __repr__ = summary


def find_loops(
    model: Whisper,
    clips: Sequence[Clip],
    *,
    choice: Choice,
    on_progress: Progress | None = None,
) -> list[Clip]:
    """Find the clips on which the unedited model loops.

    Args:
        model: a model with a tokenizer.
        clips: candidates.
        choice: how tokens are chosen.
        on_progress: called after each batch.
    """
    found: list[Clip] = []
    seen = 0
    for language in sorted({clip.language or "" for clip in clips}):
        own = [clip for clip in clips if (clip.language or "") == language]
        for start in range(0, len(own), _AT_ONCE):
            batch = own[start : start + _AT_ONCE]
            filled = [clip.audio for clip in (batch * _AT_ONCE)[:_AT_ONCE]]
            results = transcribe_batch(model, filled, language=language or None, choice=choice)
            found += [clip for clip, one in zip(batch, results, strict=False) if is_loop(one.text)]
            seen += len(batch)
            if on_progress is not None:
                on_progress(seen, len(clips), "candidates")
    return found


def repetition(
    model: Whisper,
    looping: Sequence[Clip],
    speech: Sequence[Clip],
    *,
    interventions: Sequence[Intervention] | None = None,
    choice: Choice,
    resume: Path | None = None,
    on_progress: Progress | None = None,
) -> RepetitionStudy:
    """Transcribe looping clips and speech without each component in turn.

    Args:
        model: a model with a tokenizer.
        looping: clips on which the model loops, from `find_loops`.
        speech: speech clips with their text.
        interventions: by default every sublayer and head of the decoder set to zero.
        choice: how tokens are chosen.
        resume: a folder in which the sweeps keep finished clips to resume from.
        on_progress: called after each batch with the transcripts of both sets.

    Raises:
        InputError: there are no looping clips, or no speech with its text.
    """
    if not looping or not any(clip.text for clip in speech):
        raise InputError("The study takes clips that loop, and speech with its text.")
    edits = resolve_means(model, component_edits(model) if interventions is None else interventions)
    total = (len(looping) + len(speech)) * (len(edits) + 1)
    swept: list[TextSweep] = []
    for name, clips in (("loops", looping), ("speech", speech)):
        before = sum(len(one.clips) for one in swept) * (len(edits) + 1)
        swept.append(
            ablation_sweep(
                model,
                clips,
                edits,
                choice=choice,
                resume=None if resume is None else resume / f"{name}.partial.zarr",
                on_progress=None
                if on_progress is None
                else lambda done, _, what, before=before: on_progress(before + done, total, what),
            )
        )
    loops, talk = swept
    remedies = [
        Remedy(
            edit.text,
            bootstrap_interval((~loops.loops[i]).astype(float)),
            _silent(loops, i),
            talk.interval(i),
            float(talk.loops[i].mean()),
        )
        for i, edit in enumerate(loops.interventions)
    ]
    best = sorted(remedies, key=lambda r: (-r.resolved.estimate, r.wer.estimate))
    return RepetitionStudy(loops, talk, tuple(best))


def _silent(swept: TextSweep, i: int) -> float:
    """Compute the share of the clips whose transcript under an intervention has no words."""
    pairs = zip(swept.generated[i], swept.languages, strict=True)
    return float(np.mean([not words_on_silence(one.text, language) for one, language in pairs]))


def cut_windows(clip: Clip, config: WhisperConfig) -> list[Clip]:
    """Cut a clip into windows that the encoder takes (30 s), named by their first second."""
    starts = range(0, len(clip.audio), config.max_samples)
    if len(starts) < 2:
        return [clip]
    return [
        dataclasses.replace(
            clip,
            name=f"{clip.name}@{start / SAMPLE_RATE:g}s",
            audio=clip.audio[start : start + config.max_samples],
            text=None,
        )
        for start in starts
    ]
