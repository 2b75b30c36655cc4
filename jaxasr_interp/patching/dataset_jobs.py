"""The two jobs of a data-set sweep: finding the texts of its clips, and sweeping its questions."""

import dataclasses
import functools
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxasr_interp.checkpoint.by_name import ModelByName
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.patching.clip_texts import TEXT_VARIABLES, ClipText, TextWork
from jaxasr_interp.patching.dataset_layout import dataset_layout
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.dataset_work import DatasetWork, Grids
from jaxasr_interp.patching.planning import PlanOptions
from jaxasr_interp.patching.questions import COLUMN, NoQuestionsError, Question, ask_words
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.runtime.cluster import Job, OpenJob
from jaxasr_interp.runtime.devices import batch_size
from jaxasr_interp.runtime.identity import identify
from jaxasr_interp.runtime.location import Location, within
from jaxasr_interp.runtime.placement import replicate
from jaxasr_interp.runtime.runner import RunOptions
from jaxasr_interp.runtime.slot_store import Layout, open_slots
from jaxasr_interp.speech.clips import Clips, check_column, choose, find_clips
from jaxasr_interp.speech.pairs import Pairs
from jaxasr_interp.speech.texts import OWN, Texts

TEXTS = "transcription"
"""The kind of work whose results the store of texts holds."""


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInputs:
    """What a data-set sweep is given; other processes make the same jobs of it.

    Attributes:
        named: the model.
        given: path of a manifest or data set, id of a data set, or rows.
        out: where the stores lie.
        sites: the sites to sweep.
        options: runs and questions.
        plan: windows, strengths and memory of each sweep.
        run: how the work is run.
    """

    named: ModelByName
    given: Path | str | Sequence[Mapping[str, Any]]
    out: Location
    sites: tuple[str, ...]
    options: DatasetOptions
    plan: PlanOptions
    run: RunOptions

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was given, with paths that hold in every folder."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        absolute = {k: v.absolute() if isinstance(v, Path) else v for k, v in fields.items()}
        return _unpickled, (pickle.dumps(absolute),)

    @functools.cached_property
    def swept(self) -> SweptSites:
        """The sites to sweep."""
        return SweptSites.read(self.sites)

    @functools.cached_property
    def pairs(self) -> Pairs:
        """The chosen clips and their references."""
        options = self.options
        table = choose(find_clips(self.given), options.where, options.limit)
        for text in (options.reference, options.word):
            if text.startswith(COLUMN):
                check_column(table.rows[0], text.removeprefix(COLUMN))
        if options.text != OWN:
            check_column(table.rows[0], options.text)
        reference: str | Clips = options.reference
        if reference.startswith(COLUMN):
            others = find_clips(self.given, reference.removeprefix(COLUMN))
            reference = choose(others, options.where, options.limit)
        return Pairs(table, reference, options.seed)

    @functools.cached_property
    def placed(self) -> Whisper:
        """The model on the devices of this process."""
        run = self.run
        return replicate(self.named.model, run.devices, tensor_parallel=run.tensor_parallel)

    @property
    def timed(self) -> bool:
        """Whether it is found when the words are said."""
        return self.swept.timed or self.options.times

    @property
    def texts(self) -> Texts:
        """Where the texts come from."""
        return Texts(self.options.text, self.options.language)

    @functools.cached_property
    def text_identity(self) -> dict[str, str]:
        """The hashes of what the texts depend on."""
        clips = self.pairs.clips
        return identify(
            model=self.named.model,
            clips=clips.rows,
            audio=[clips.digest(i) for i in range(len(clips.rows))],
            texts=self.texts,
            timed=self.timed,
        )

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """The hashes of what the sweep's numbers depend on."""
        rows = range(len(self.pairs.clips.rows))
        return self.text_identity | identify(
            references=[self.pairs.digest_reference(i) for i in rows],
            sites=self.swept,
            options=dataclasses.replace(self.options, where=None, limit=None),
            windows=(self.plan.window, self.plan.stride, self.plan.alpha),
        )

    @functools.cached_property
    def asked(self) -> tuple[list[Question], list[tuple[str, str]]]:
        """The questions of all clips, whose texts are known; and the clips that have none, why."""
        texts = TextJob(self).open(must_exist=True).store
        tokenizer, problems = require_tokenizer(self.named.model), list(texts.problems)
        questions = []
        for i, text in enumerate(texts.read("text_tokens")):
            if not text:
                continue
            row = self.pairs.clips.rows[i]
            try:
                clip = ClipText.from_json(str(text))
                questions += ask_words(tokenizer, i, row, clip, self.options.word)
            except InputError as error:
                problems.append((row["path"], str(error)))
        if not questions:
            raise NoQuestionsError(problems)
        return questions, problems


@functools.lru_cache(maxsize=1)
def _unpickled(fields: bytes) -> DatasetInputs:
    """Make the inputs that both jobs of a worker share, and with them what takes long to find."""
    return DatasetInputs(**pickle.loads(fields))


@dataclasses.dataclass(frozen=True)
class TextJob(Job):
    """Finds the text of every clip; machines that share the work begin with their own share."""

    inputs: DatasetInputs

    def open(self, *, must_exist: bool = False) -> OpenJob:
        """Make or open the store of texts."""
        given, clips = self.inputs, self.inputs.pairs.clips
        work = TextWork(given.placed, clips, given.texts, given.timed)
        layout = Layout(
            kind=TEXTS,
            rows=len(clips.rows),
            rows_per_chunk=len(work.units[0].rows),
            variables=TEXT_VARIABLES,
            known={"path": (("clip",), np.asarray([row["path"] for row in clips.rows], "T"))},
            attributes={},
        )
        store = open_slots(
            within(given.out, "texts.zarr"),
            layout,
            given.text_identity,
            overwrite=given.run.overwrite and not must_exist,
            must_exist=must_exist,
        )
        own = given.run.share.of(work.units)
        others = [unit for unit in work.units if unit not in own]
        return OpenJob(store, [*own, *others], work)


@dataclasses.dataclass(frozen=True)
class SweepJob(Job):
    """Sweeps every question, once the texts are found."""

    inputs: DatasetInputs

    def open(self, *, must_exist: bool = False) -> OpenJob:
        """Make or open the store of the sweep."""
        given, options = self.inputs, self.inputs.options
        questions, run = tuple(given.asked[0]), given.run
        model = given.placed
        grids = Grids(model, given.swept, given.plan, tuple(options.metrics))
        size = batch_size(model, run.batch_size)
        work = DatasetWork(grids, given.pairs, questions, options.direction, size)
        store = open_slots(
            within(given.out, "sweep.zarr"),
            dataset_layout(work, given.pairs.clips, options),
            given.identity,
            overwrite=run.overwrite and not must_exist,
            must_exist=must_exist,
        )
        return OpenJob(store, run.share.of(work.units), work)
