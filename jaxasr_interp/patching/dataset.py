"""Sweeps over a data set: every clip against its reference, every question, one store."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching.clip_texts import TEXT_VARIABLES, ClipText, TextWork
from jaxasr_interp.patching.dataset_layout import dataset_layout
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.dataset_work import DatasetWork, Grids
from jaxasr_interp.patching.planning import PlanOptions
from jaxasr_interp.patching.questions import COLUMN, NoQuestionsError, Question, ask_words
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.runtime.devices import batch_size, replicate
from jaxasr_interp.runtime.identity import identify
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.runner import RunOptions, run_units
from jaxasr_interp.runtime.slot_store import Layout, SlotStore, open_slots
from jaxasr_interp.speech.clips import Clips, check_column, choose, find_clips
from jaxasr_interp.speech.pairs import Pairs
from jaxasr_interp.speech.texts import OWN, Texts

TEXTS = "texts"
"""The kind of work whose results the store of texts holds."""


@dataclasses.dataclass(frozen=True)
class DatasetSweep:
    """The outcome of a data-set sweep.

    Attributes:
        path: of the store; see `ji.open_dataset`.
        questions: how many there are.
        done: how many of them are done.
        problems: path of every clip that was left out, and why.
    """

    path: Path
    questions: int
    done: int
    problems: tuple[tuple[str, str], ...]


_OPTIONS, _PLAN, _RUN = DatasetOptions(), PlanOptions(), RunOptions()


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
        clips: a manifest (`.tsv` or `.jsonl`), or rows such as a Hugging Face dataset's; see
            `clips.find_clips`.
        out: path of the folder.
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
    out = Path(out)
    swept = SweptSites.read(sites)
    table, pairs = _read_table(clips, options)
    identity = _identity(model, table, pairs, swept, (options, plan))
    text_work = TextWork(model, table, Texts(options.text, options.language), swept.timed)
    texts = _find_texts(out / "texts.zarr", text_work, identity, run, on_progress)
    questions, problems = _ask(model, table, texts, options.word)
    if not questions:
        raise NoQuestionsError(problems)
    placed = replicate(model, run.devices)
    grids = Grids(placed, swept, plan, tuple(options.metrics))
    batch = batch_size(placed, run.batch_size)
    work = DatasetWork(grids, pairs, tuple(questions), options.direction, batch)
    store = open_slots(
        out / "sweep.zarr",
        dataset_layout(work, table, options),
        identity,
        overwrite=run.overwrite,
    )
    run_units(store, run.share.of(work.units), work, phase="patches", on_progress=on_progress)
    problems += store.problems
    return DatasetSweep(store.path, len(questions), int(store.done.sum()), tuple(problems))


def _read_table(
    source: str | Path | Iterable[Mapping[str, Any]], options: DatasetOptions
) -> tuple[Clips, Pairs]:
    """Read the chosen clips and their references."""
    given = source if isinstance(source, str | Path) else list(source)
    table = choose(find_clips(given), options.where, options.limit)
    for text in (options.reference, options.word):
        if text.startswith(COLUMN):
            check_column(table.rows[0], text.removeprefix(COLUMN))
    if options.text != OWN:
        check_column(table.rows[0], options.text)
    reference: str | Clips = options.reference
    if reference.startswith(COLUMN):
        others = find_clips(given, reference.removeprefix(COLUMN))
        reference = choose(others, options.where, options.limit)
    return table, Pairs(table, reference, options.seed)


def _identity(
    model: Whisper,
    table: Clips,
    pairs: Pairs,
    swept: SweptSites,
    options: tuple[DatasetOptions, PlanOptions],
) -> dict[str, str]:
    what, plan = options
    return identify(
        model=model,
        clips=table.rows,
        audio=[pairs.digest(i) for i in range(len(table.rows))],
        sites=swept,
        options=dataclasses.replace(what, where=None, limit=None),
        windows=(plan.window, plan.stride, plan.alpha),
    )


def _find_texts(
    path: Path,
    work: TextWork,
    identity: Mapping[str, str],
    run: RunOptions,
    on_progress: Progress | None,
) -> SlotStore:
    """Find the text of every clip; machines that share the work begin with their own share."""
    paths = np.asarray([row["path"] for row in work.clips.rows], "T")
    layout = Layout(
        kind=TEXTS,
        rows=len(paths),
        rows_per_chunk=len(work.units[0].rows),
        variables=TEXT_VARIABLES,
        known={"path": (("clip",), paths)},
        attributes={},
    )
    store = open_slots(path, layout, identity, overwrite=run.overwrite)
    own = run.share.of(work.units)
    others = [unit for unit in work.units if unit not in own]
    run_units(store, [*own, *others], work, phase="clips", on_progress=on_progress)
    return store


def _ask(
    model: Whisper, table: Clips, texts: SlotStore, which: str
) -> tuple[list[Question], list[tuple[str, str]]]:
    """Make the questions of all clips; return those and the clips that have none."""
    tokenizer, questions, problems = require_tokenizer(model), [], list(texts.problems)
    for i, text in enumerate(texts.read("text_tokens")):
        if not text:
            continue
        row = table.rows[i]
        try:
            questions += ask_words(tokenizer, i, row, ClipText.from_json(str(text)), which)
        except InputError as error:
            problems.append((row["path"], str(error)))
    return questions, problems
