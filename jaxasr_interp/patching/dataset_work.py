"""The sweeps of a data set: one grid of patches for every question."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.run import EncoderRun
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import most_probable_other
from jaxasr_interp.patching.inputs import SweepInputs
from jaxasr_interp.patching.metric_names import make_metric
from jaxasr_interp.patching.metrics import Metric
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.prepared import prepare
from jaxasr_interp.patching.questions import Question
from jaxasr_interp.patching.runs import kept_sites
from jaxasr_interp.patching.sweep import run_prepared
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.patching.unpatched import RunSet, encode_utterances, run_utterances
from jaxasr_interp.runtime.buckets import bucket
from jaxasr_interp.runtime.runner import Unit, Work
from jaxasr_interp.runtime.slot_store import Variable
from jaxasr_interp.speech.clips import VanishedError
from jaxasr_interp.speech.pairs import Mel, Pairs
from jaxasr_interp.speech.positions import Window, resolve_windows
from jaxasr_interp.speech.utterance import Utterance

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
        timed = self.sites.timed
        return self._windows(question.text.frames if timed else len(question.tokens))

    def shape(self, question: Question) -> tuple[int, int]:
        """Return the number of tokens and of positions of the plan that a question shares."""
        config, n_tokens = self.model.config, len(question.tokens)
        if _WHOLE_RUN_METRICS.isdisjoint(self.metrics):
            n_tokens = min(bucket(n_tokens), config.max_tokens)
        if not self.sites.timed:
            return n_tokens, n_tokens
        return n_tokens, min(bucket(question.text.frames), config.max_frames)

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

    def _windows(self, size: int) -> tuple[Window, ...]:
        width, stride = self.options.window, self.options.stride
        width = self.sites.default_window if width is None else width
        return resolve_windows(None, size, width=width, stride=stride, timed=self.sites.timed)


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetWork(Work[Loaded]):
    """Sweeps the questions of a data set.

    Attributes:
        grids: grids of patches.
        pairs: the clips.
        questions: the questions, one a row of the store.
        direction: which run is patched with which.
        batch_size: number of questions that run together.
        encoded: encoder runs of the last unit's clips, for the next question about them.
    """

    grids: Grids
    pairs: Pairs
    questions: tuple[Question, ...]
    direction: str
    batch_size: int
    encoded: dict[tuple[int, ...], tuple[EncoderRun, EncoderRun]] = dataclasses.field(
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
        return [
            Unit(rows, sum(map(self._patches, rows)), self._clips(rows)) for rows in sorted(units)
        ]

    def _clips(self, rows: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.questions[row].clip for row in rows)

    def _patches(self, row: int) -> int:
        across = int(np.prod([n for name, n in self.axes.items() if name not in ("metric", "pos")]))
        return across * len(self.grids.windows(self.questions[row]))

    def load(self, unit: Unit) -> Loaded:
        """Read the clips of a unit's questions."""
        return [self._load(self.questions[row].clip) for row in unit.rows]

    @functools.cached_property
    def _load(self) -> Callable[[int], tuple[Mel, Mel] | InputError]:
        """Reads both spectrograms of a clip, and keeps the last ones for their next questions."""
        config = self.model.config

        @functools.lru_cache(maxsize=self.batch_size)
        def load(clip: int) -> tuple[Mel, Mel] | InputError:
            try:
                return self.pairs.read(clip, config.n_mels, config.mel_frames)
            except VanishedError:
                raise
            except InputError as error:
                return error

        return load

    def run(self, unit: Unit, loaded: Loaded) -> Mapping[str, np.ndarray]:
        """Sweep a unit's questions."""
        arrays = {
            name: np.full((len(unit.rows), *v.shape), np.nan, v.dtype)
            for name, v in self.variables.items()
            if v.dtype != "T"
        }
        problems = [str(one) if isinstance(one, InputError) else "" for one in loaded]
        fine = {i: one for i, one in enumerate(loaded) if not isinstance(one, InputError)}
        if fine:
            # A batch that is not full is filled up, so that no other shape is compiled.
            filled = ([*fine] * self.batch_size)[: self.batch_size]
            questions = [self.questions[unit.rows[i]] for i in filled]
            swept = self._sweep(questions, [fine[i] for i in filled])
            for name, values in swept.items():
                arrays[name][[*fine]] = values[: len(fine)]
        return {**arrays, "problem": np.asarray(problems, "T")}

    def _sweep(
        self, questions: Sequence[Question], mels: Sequence[tuple[Mel, Mel]]
    ) -> dict[str, np.ndarray]:
        """Sweep questions of one shape together."""
        plan = self.grids.plan(self.grids.shape(questions[0]))
        clean, corrupted = (
            [
                self._utterance(question, pair[i], plan.n_tokens)
                for question, pair in zip(questions, mels, strict=True)
            ]
            for i in range(2)
        )
        encoded = self._encode(questions, clean, corrupted)
        metrics = self._metrics(questions, corrupted, encoded[1])
        lengths = [len(question.tokens) for question in questions]
        inputs = SweepInputs(
            clean,
            corrupted,
            metrics,
            direction=self.direction,
            lengths=lengths,
            encoded=encoded,
        )
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

    def _utterance(self, question: Question, mel: Mel, n_tokens: int) -> Utterance:
        """Make a run, padded to the plan's number of tokens."""
        tokens = question.tokens
        padded = jnp.asarray([*tokens, *tokens[-1:] * (n_tokens - len(tokens))], jnp.int32)
        return Utterance(jnp.asarray(mel), padded, len(question.text.prompt))

    def _encode(
        self,
        questions: Sequence[Question],
        clean: Sequence[Utterance],
        corrupted: Sequence[Utterance],
    ) -> tuple[EncoderRun, EncoderRun]:
        """Encode the clips of both runs, unless the questions before were about them too."""
        clips = tuple(question.clip for question in questions)
        if clips not in self.encoded:
            sites = kept_sites(self.grids.sites.stack, frozenset(self.grids.sites.names)).encoder
            self.encoded.clear()
            self.encoded[clips] = (
                encode_utterances(self.model, clean, sites),
                encode_utterances(self.model, corrupted, sites),
            )
        return self.encoded[clips]

    def _metrics(
        self, questions: Sequence[Question], references: Sequence[Utterance], encoded: EncoderRun
    ) -> list[list[Metric]]:
        """Make each question's metrics; a logit difference looks at the reference runs first."""
        others = [question.target for question in questions]
        if "logit_diff" in self.grids.metrics:
            last = np.array([[len(question.tokens) - 1] for question in questions])
            run = run_utterances(self.model, RunSet(references, encoded, frozenset(), last))
            others = [
                most_probable_other(logits, target)
                for (logits,), target in zip(np.asarray(run.logits), others, strict=True)
            ]
        return [
            [
                make_metric(name, one.tokens, len(one.text.prompt), (one.target, other))
                for name in self.grids.metrics
            ]
            for one, other in zip(questions, others, strict=True)
        ]
