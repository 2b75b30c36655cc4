"""The sweeps of a data set: one grid of patches for every question."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.run import EncodedUtterance, EncoderRun, decode, encode, with_encoded
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import most_probable_other
from jaxasr_interp.patching.inputs import SweepInputs, prepare
from jaxasr_interp.patching.metric_names import make_metric
from jaxasr_interp.patching.metrics import Metric
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.questions import Question
from jaxasr_interp.patching.runs import kept_sites
from jaxasr_interp.patching.sweep import run_prepared
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.runtime.buckets import bucket
from jaxasr_interp.runtime.runner import Unit, Work
from jaxasr_interp.runtime.slot_store import Variable
from jaxasr_interp.speech.pairs import Mel, Pairs
from jaxasr_interp.speech.positions import Window, resolve_windows
from jaxasr_interp.speech.utterance import Utterance

TIMED_WINDOW = "200ms"
_WHOLE_RUN_METRICS = {"kl_all", "cross_entropy"}

type Loaded = list[tuple[Mel, Mel] | InputError]


@dataclasses.dataclass(frozen=True, eq=False)
class Grids:
    """The grid of patches of every question.

    Questions of similar length share a plan for the longest of them, and so its programs: what
    comes after the position that is read changes nothing, as the decoder is causal.

    Attributes:
        model: the model.
        sites: the sites that are swept.
        options: windows, strengths and memory.
        metrics: names of the metrics.
    """

    model: Whisper
    sites: SweptSites
    options: PlanOptions
    metrics: tuple[str, ...]

    def windows(self, question: Question) -> tuple[Window, ...]:
        """Return the windows of positions that are patched."""
        return self._windows(self._size(question))

    def shape(self, question: Question) -> tuple[int, int]:
        """Return the number of tokens and of positions of the plan that a question shares."""
        n_tokens, size = len(question.tokens), self._size(question)
        if not _WHOLE_RUN_METRICS.isdisjoint(self.metrics):
            return n_tokens, self._shared_size(size)
        shared = min(bucket(n_tokens), self.model.config.max_tokens)
        return shared, self._shared_size(size) if self.sites.timed else shared

    @functools.cache  # noqa: B019
    def plan(self, shape: tuple[int, int]) -> SweepPlan:
        """Make the plan of a shape."""
        n_tokens, size = shape
        return plan_sweep(
            self.model,
            tokens=[0] * n_tokens,
            stack=self.sites.stack,
            site=self.sites.names,
            layers=self.sites.layers,
            heads=self.sites.heads,
            positions=self._windows(size),
            options=self.options,
        )

    def _size(self, question: Question) -> int:
        """Return the number of positions of one question's runs."""
        return question.text.frames if self.sites.timed else len(question.tokens)

    def _shared_size(self, size: int) -> int:
        return min(bucket(size), self.model.config.max_frames) if self.sites.timed else size

    def _windows(self, size: int) -> tuple[Window, ...]:
        default = TIMED_WINDOW if self.sites.timed else 1
        width = default if self.options.window is None else self.options.window
        return resolve_windows(
            None, size, width=width, stride=self.options.stride, timed=self.sites.timed
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetWork(Work[Loaded]):
    """Sweeps the questions of a data set.

    Attributes:
        grids: grids of patches.
        pairs: the clips.
        questions: the questions, one a row of the store.
        direction: which run is patched with which.
        batch_size: number of questions that run together.
        encoded: encoder runs of the last unit's clips, for the next question of a clip.
    """

    grids: Grids
    pairs: Pairs
    questions: tuple[Question, ...]
    direction: str
    batch_size: int
    encoded: dict[tuple[int, int], tuple[Array, EncoderRun]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def model(self) -> Whisper:
        """The model."""
        return self.grids.model

    @functools.cached_property
    def axes(self) -> dict[str, int]:
        """Names and sizes of the axes of one question's sweep; positions for the longest one."""
        plan = self.grids.plan(self.grids.shape(self.questions[0]))
        most = max(len(self.grids.windows(question)) for question in self.questions)
        alphas = {"alpha": len(plan.alphas)} if len(plan.alphas) > 1 else {}
        layers = {} if plan.layers == (None,) else {"layer": len(plan.layers)}
        return {
            "metric": len(self.grids.metrics),
            **alphas,
            "component": len(plan.components),
            **layers,
            "pos": most,
        }

    @property
    def variables(self) -> dict[str, Variable]:
        """The arrays of the store that a unit writes."""
        dtype = "float64" if str(self.model.dtype) == "float64" else "float32"
        patched = Variable(tuple(self.axes), tuple(self.axes.values()), dtype)
        baseline = Variable(("metric",), (len(self.grids.metrics),), dtype)
        return {
            "patched": patched,
            "clean_metric": baseline,
            "corrupted_metric": baseline,
            "problem": Variable((), (), "T"),
        }

    @property
    def units(self) -> list[Unit]:
        """Questions that run together: they share a shape."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, question in enumerate(self.questions):
            by_shape.setdefault(self.grids.shape(question), []).append(i)
        units = [
            tuple(rows[start : start + self.batch_size])
            for rows in by_shape.values()
            for start in range(0, len(rows), self.batch_size)
        ]
        # In the table's order, the words of one clip come together and share its encoder runs.
        return [Unit(rows, sum(map(self._patches, rows))) for rows in sorted(units)]

    def _patches(self, row: int) -> int:
        across = int(np.prod([n for name, n in self.axes.items() if name not in ("metric", "pos")]))
        return across * len(self.grids.windows(self.questions[row]))

    def load(self, unit: Unit) -> Loaded:
        """Read the clips of a unit's questions."""
        return [self._load(self.questions[row].clip) for row in unit.rows]

    def _load(self, clip: int) -> tuple[Mel, Mel] | InputError:
        config = self.model.config
        try:
            return self.pairs.read(clip, config.n_mels, config.mel_frames)
        except InputError as error:
            return error

    def run(self, unit: Unit, loaded: Loaded) -> Mapping[str, np.ndarray]:
        """Sweep a unit's questions."""
        arrays = {
            name: np.full((len(unit.rows), *v.shape), np.nan, v.dtype)
            for name, v in self.variables.items()
            if v.dtype != "T"
        }
        problems = [str(one) if isinstance(one, InputError) else "" for one in loaded]
        fine = [i for i, one in enumerate(loaded) if not isinstance(one, InputError)]
        if fine:
            # A batch that is not full is filled up, so that no other shape is compiled.
            filled = (fine * self.batch_size)[: max(self.batch_size, len(fine))]
            questions = [self.questions[unit.rows[i]] for i in filled]
            swept = self._sweep(questions, [loaded[i] for i in filled])
            for name, values in swept.items():
                arrays[name][fine] = values[: len(fine)]
        return {**arrays, "problem": np.asarray(problems, "T")}

    def _sweep(self, questions: Sequence[Question], mels: Loaded) -> dict[str, np.ndarray]:
        """Sweep questions of one shape together."""
        plan = self.grids.plan(self.grids.shape(questions[0]))
        clips = {question.clip for question in questions}
        for known in [key for key in self.encoded if key[0] not in clips]:
            del self.encoded[known]
        pairs = [
            self._utterances(question, mel, plan.n_tokens)
            for question, mel in zip(questions, mels, strict=True)
            if not isinstance(mel, InputError)
        ]
        clean, corrupted = ([pair[i] for pair in pairs] for i in range(2))
        metrics = [
            self._metrics(question, other)
            for question, other in zip(questions, corrupted, strict=True)
        ]
        lengths = [len(question.tokens) for question in questions]
        inputs = SweepInputs(clean, corrupted, metrics, direction=self.direction, lengths=lengths)
        prepared = prepare(self.model, plan, inputs)
        results = prepared.results(run_prepared(prepared))
        shape = tuple(self.axes.values())
        patched = np.full((len(results), *shape), np.nan, results[0].patched.dtype)
        for row, question, result in zip(patched, questions, results, strict=True):
            n = len(self.grids.windows(question))
            row[..., :n] = result.patched.reshape(*shape[:-1], -1)[..., :n]
        return {
            "patched": patched,
            "clean_metric": np.stack([result.clean for result in results]),
            "corrupted_metric": np.stack([result.corrupted for result in results]),
        }

    def _utterances(
        self, question: Question, mels: tuple[Mel, Mel], n_tokens: int
    ) -> tuple[EncodedUtterance, EncodedUtterance]:
        """Make both runs, padded to the plan's number of tokens."""
        tokens = question.tokens
        padded = jnp.asarray([*tokens, *tokens[-1:] * (n_tokens - len(tokens))], jnp.int32)
        clean, corrupted = (
            with_encoded(self.model, Utterance(mel, padded, len(question.text.prompt)), run)
            for mel, run in (self._encode((question.clip, i), mel) for i, mel in enumerate(mels))
        )
        return clean, corrupted

    def _encode(self, key: tuple[int, int], mel: Mel) -> tuple[Array, EncoderRun]:
        """Encode a clip, unless the question before was about it too."""
        if key not in self.encoded:
            sites = kept_sites(self.grids.sites.stack, frozenset(self.grids.sites.names)).encoder
            array = jnp.asarray(mel)
            self.encoded[key] = array, encode(self.model, array, sites=sites)
        return self.encoded[key]

    def _metrics(self, question: Question, reference: EncodedUtterance) -> list[Metric]:
        """Make the metrics of a question; a logit difference looks at the reference run first."""
        other = question.target
        if "logit_diff" in self.grids.metrics:
            assert reference.encoded is not None
            run = decode(self.model, reference.tokens, reference.encoded.states, sites=())
            logits = np.asarray(run.logits)[len(question.tokens) - 1]
            other = most_probable_other(logits, question.target)
        return [
            make_metric(name, question.tokens, len(question.text.prompt), (question.target, other))
            for name in self.grids.metrics
        ]
