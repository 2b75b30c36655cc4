"""Sweeps over a data set: every clip against its reference, every question, one store."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxasr_interp.checkpoint.by_name import ModelByName
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.dataset_jobs import DatasetInputs, SweepJob, TextJob
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.planning import PlanOptions
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.cluster import run_job
from jaxasr_interp.runtime.location import Location, locate
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.runner import RunOptions
from jaxasr_interp.runtime.transforms import DECODE_EDITED, host_only
from jaxasr_interp.speech.hub import local_or_id


@dataclasses.dataclass(frozen=True)
class DatasetSweep:
    """The outcome of a data-set sweep.

    Attributes:
        path: path of the store, or its URL; see `ji.open_dataset`.
        questions: how many there are.
        done: how many of them are done.
        problems: path of every clip that was left out, and why.
    """

    path: Location
    questions: int
    done: int
    problems: tuple[tuple[str, str], ...]

    __repr__ = summary


_OPTIONS, _PLAN, _RUN = DatasetOptions(), PlanOptions(), RunOptions()


@host_only(DECODE_EDITED)
def sweep_dataset(
    model: Whisper,
    clips: str | Path | Iterable[Mapping[str, Any]],
    out: str | Path,
    *,
    sites: Sequence[str] = ("decoder.resid_pre",),
    options: DatasetOptions = _OPTIONS,
    plan: PlanOptions = _PLAN,
    run: RunOptions = _RUN,
    on_progress: Progress | None = None,
) -> DatasetSweep:
    """Sweep every clip of a data set: the grid component × layer × position of every question.

    Both runs of a question take the tokens of the clip's transcript before the word that is asked
    for; one hears the clip, the other its reference. `activation_patching` says what a patch is.

    `out` becomes a folder with two Zarr stores. `texts.zarr` holds each clip's tokens. `sweep.zarr`
    has one slot for each question along the axis `clip`: `patched` [clip, metric, (alpha),
    component, (layer), pos], `clean_metric` and `corrupted_metric` [clip, metric], `length` (number
    of positions; later ones are NaN), `prompt` (number of tokens of the prompt), `asked_word`, the
    columns of the table, and the text of each position (`token`, or `heard` and `seconds` where
    positions are frames). `aggregate` summarises it.

    The same call goes on where an interrupted one was cut off, if model, clips, audio and settings
    have not changed (`runtime.identity`).

    Args:
        model: a model with a tokenizer.
        clips: a manifest, a data set's folder or id, or rows such as a Hugging Face dataset's; see
            `clips.find_clips`.
        out: path of the folder, or a URL such as `s3://bucket/path`.
        sites: the sites to sweep, such as `decoder.z@*.each`; see `interventions.places`.
        options: runs and questions.
        plan: windows, strengths and memory of each sweep; all positions are swept.
        run: how the work is run; no number depends on it.
        on_progress: called with the work done, how much there is, and what is counted: `"clips"`
            while the texts are found, and then `"patches"`.

    Returns:
        The path of the store, and the clips that were left out.

    Raises:
        InputError: the table or an option cannot be read, no clip can be swept, or `out` holds
            other work; what is done stays in the stores.
    """
    named = ModelByName(model)
    given = local_or_id(clips) if isinstance(clips, str | Path) else list(clips)
    inputs = DatasetInputs(named, given, locate(out), tuple(sites), options, plan, run)
    run_job(TextJob(inputs), run, phase="clips", on_progress=on_progress)
    sweep = run_job(SweepJob(inputs), run, phase="patches", on_progress=on_progress)
    questions, problems = inputs.asked
    done = int(sweep.store.done.sum())
    problems = (*problems, *sweep.store.problems)
    return DatasetSweep(sweep.store.path, len(questions), done, problems)
