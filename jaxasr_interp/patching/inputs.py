"""Preparation of a sweep: it checks the inputs, runs both utterances, and keeps the results."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import Interchange
from jaxasr_interp.model.edits import Edit, EditLike, as_edit
from jaxasr_interp.model.run import EncodedUtterance, EncoderRun, check_tokens
from jaxasr_interp.model.sites import DecoderActivations, EncoderActivations
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.engine.readout import MetricReadout, evaluate_runs
from jaxasr_interp.patching.metrics import Metric, MetricPositions, check_metric
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import BaseRun, Sites, align, kept_sites, run_utterances
from jaxasr_interp.runtime.devices import Lanes, divide, mesh_for, mesh_of, parts_of
from jaxasr_interp.speech.utterance import Utterance

DIRECTIONS = ("clean_to_corrupted", "corrupted_to_clean")


@dataclasses.dataclass(frozen=True)
class SweepInputs:
    """The inputs of a sweep of one or several pairs of runs; see `activation_patching`.

    Attributes:
        clean: the clean run of each pair.
        corrupted: the corrupted run of each pair.
        metric: the metrics of each pair.
        edit: edit that a patch makes instead of an interchange.
        direction: which run of each pair is patched with which.
        alignment: for runs of different length, the other run's position for each position of the
            patched run.
        lengths: number of tokens of each pair's runs before they were padded to the plan's number;
            `None` if there is no padding. Decoder positions see only those before them, so that
            padding changes no number.
        encoded: the encoder runs of the clean and of the corrupted clips, if they are known; see
            `encode_utterances`.
    """

    clean: Sequence[Utterance]
    corrupted: Sequence[Utterance]
    metric: Sequence[Metric | Sequence[Metric]]
    edit: EditLike | None = None
    direction: str = "clean_to_corrupted"
    alignment: Sequence[int] | None = None
    lengths: Sequence[int] | None = None
    encoded: tuple[EncoderRun, EncoderRun] | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A sweep that is ready to run; arrays have a leading axis for the pairs of runs.

    Attributes:
        model: the model.
        plan: plan of the sweep, its memory without what the utterances hold.
        memory: the plan's memory as it was given.
        inputs: inputs of the sweep.
        base: the runs that are patched.
        edits: for each run, the edit that a patch makes at full strength.
        readout: metrics of each pair and their positions.
        clean: the metrics of the clean runs.
        corrupted: the metrics of the corrupted runs.
        mesh: the devices that have a part of the pairs each; `None` if every device has all pairs.
        lanes: the devices that run chunks of their own.
    """

    model: Whisper
    plan: SweepPlan
    memory: int
    inputs: SweepInputs
    base: BaseRun
    edits: Edit
    readout: MetricReadout
    clean: Float[np.ndarray, "batch metric"]
    corrupted: Float[np.ndarray, "batch metric"]
    mesh: Mesh | None
    lanes: Lanes

    @property
    def utterances(self) -> int:
        """Number of pairs."""
        return len(self.base.tokens)

    @property
    def utterances_per_device(self) -> int:
        """Number of pairs that one device has."""
        return self.utterances // parts_of(self.mesh)

    def pair(self, number: int) -> tuple[BaseRun, Edit, MetricReadout]:
        """Return the patched run, edit and readout of one pair, without the axis for pairs."""
        return jax.tree.map(lambda leaf: leaf[number], (self.base, self.edits, self.readout))

    def results(self, values: Float[np.ndarray, "batch cell metric"]) -> list[SweepResult]:
        """Make a result for each pair from the values of every cell in the plan's order.

        Cells that begin behind the end of a padded run are NaN.
        """
        names = tuple(one.name for one in self.readout.metrics)
        direction = self.inputs.direction
        shape = (len(names), *self.plan.axes.values())
        plan = dataclasses.replace(self.plan, memory=self.memory)
        if self.inputs.lengths is not None and not plan.counts_frames:
            behind = plan.cells()["start"][None] >= np.asarray(self.inputs.lengths)[:, None]
            values = np.where(behind[..., None], np.nan, values)
        return [
            SweepResult(plan, names, rows.T.reshape(shape), clean, corrupted, direction)
            for rows, clean, corrupted in zip(values, self.clean, self.corrupted, strict=True)
        ]


def prepare(
    model: Whisper, plan: SweepPlan, inputs: SweepInputs, *, minimal: bool = True
) -> Prepared:
    """Check a sweep's inputs and run every utterance once.

    Args:
        model: the model.
        plan: plan of the sweep.
        inputs: inputs of the sweep.
        minimal: whether to keep the activations that the minimal method starts from.

    Returns:
        The arrays that all chunks of the sweep share.

    Raises:
        InputError: see `activation_patching_batch`.
    """
    direction = inputs.direction
    if direction not in DIRECTIONS:
        raise InputError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
    edit = None if inputs.edit is None else as_edit(inputs.edit)
    _check_plan(model, plan, edit)
    lists = _metrics_of_pairs(inputs)
    lengths = [plan.n_tokens] * len(lists) if inputs.lengths is None else inputs.lengths
    metrics = _stack_metrics(lists, lengths, model.config.d_vocab)
    into_corrupted = direction == "clean_to_corrupted"
    runs = list(zip((inputs.clean, inputs.corrupted), inputs.encoded or (None, None), strict=True))
    (other, other_encoded), (patched, encoded) = runs if into_corrupted else runs[::-1]
    aligned = _check_lengths(model, plan, patched, other, inputs.alignment)
    each = [MetricPositions.of(some, n) for some, n in zip(lists, lengths, strict=True)]
    positions = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    mesh = mesh_for(model, len(patched))
    metrics, positions = divide(mesh, (metrics, positions))
    memory, held = plan.memory, _held_bytes([*inputs.clean, *inputs.corrupted])
    plan = dataclasses.replace(plan, reads=positions.count, memory=memory - held)

    kept = kept_sites(plan.stack, frozenset(plan.sites))
    wanted = kept if edit is None else Sites()
    reads = jnp.asarray(aligned, jnp.int32)[positions.pos]
    source = run_utterances(model, other, wanted, reads, other_encoded)
    same_audio = all(a.mel is b.mel for a, b in zip(patched, other, strict=True))
    if same_audio and plan.stack == "decoder":
        encoded = EncoderRun(source.states, EncoderActivations())
    base = run_utterances(model, patched, kept if minimal else Sites(), positions.pos, encoded)
    readout = MetricReadout(metrics, positions, source.logits if into_corrupted else base.logits)
    of_base, of_source = (np.asarray(evaluate_runs(readout, run.logits)) for run in (base, source))
    return Prepared(
        model=model,
        plan=plan,
        memory=memory,
        inputs=inputs,
        base=base,
        edits=_edits(plan, source, aligned)
        if edit is None
        else divide(mesh, _repeat(edit, len(patched))),
        readout=readout,
        clean=of_source if into_corrupted else of_base,
        corrupted=of_base if into_corrupted else of_source,
        mesh=mesh,
        lanes=Lanes(mesh_of(model) if mesh is None else None),
    )


def _metrics_of_pairs(inputs: SweepInputs) -> list[list[Metric]]:
    """List the metrics of each pair; raise unless all inputs have one entry for every pair."""
    clean, corrupted, metric = inputs.clean, inputs.corrupted, inputs.metric
    if not isinstance(metric, Sequence):
        raise InputError("The metrics of several pairs come as a sequence, an entry for each pair.")
    lists = [[one] if not isinstance(one, Sequence) else list(one) for one in metric]
    if not len(clean) == len(corrupted) == len(lists) or not lists:
        raise InputError(
            f"There are {len(clean)} clean runs, {len(corrupted)} corrupted ones and {len(lists)} "
            "sets of metrics: give one of each for every pair."
        )
    return lists


def _held_bytes(utterances: Sequence[Utterance]) -> int:
    """Bytes of the encoder activations that the utterances keep beside the sweep."""
    held = {
        id(leaf): leaf.nbytes
        for one in utterances
        if isinstance(one, EncodedUtterance) and one.encoded is not None
        for leaf in jax.tree.leaves(one.encoded.acts)
    }
    return sum(held.values())


def _check_plan(model: Whisper, plan: SweepPlan, edit: Edit | None) -> None:
    """Raise unless the plan was made for such a model, and the edit acts at the plan's sites."""
    if plan.config != model.config or plan.dtype != str(model.dtype):
        raise InputError(
            f"The plan was made for another model, of {plan.dtype}: plan the sweep with the model, "
            f"of {model.dtype}, that is swept."
        )
    layers = plan.config.layers(plan.stack)
    outside = [layer for layer in plan.layers if layer is not None and not 0 <= layer < layers]
    if outside:
        raise InputError(f"There is no layer {outside[0]}: the {plan.stack} has {layers}.")
    touched = None if edit is None else edit.touches
    if touched and touched.isdisjoint(plan.sites):
        raise InputError(
            f"The edit acts at {', '.join(map(repr, sorted(touched)))} and the plan patches "
            f"{', '.join(plan.sites)}: it would do nothing."
        )
    if edit is not None:
        edit.check(plan.stack, plan.config)


def _edits(plan: SweepPlan, source: BaseRun, aligned: Int[np.ndarray, " pos"]) -> Edit:
    """Make the interchange with each pair's other run, aligned to the patched run's positions."""
    acts = source.acts(plan.stack)
    straight = np.array_equal(aligned, np.arange(source.tokens.shape[1]))
    if isinstance(acts, DecoderActivations) and not straight:
        acts = jax.vmap(lambda one: align(one, aligned))(acts)
    return Interchange(acts)


def _repeat(edit: Edit, times: int) -> Edit:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * times), edit)


def _stack_metrics(
    lists: Sequence[Sequence[Metric]], lengths: Sequence[int], d_vocab: int
) -> tuple[Metric, ...]:
    """Stack the pairs' metrics in one tuple whose arrays have a leading axis for the pairs."""
    if not lists[0]:
        raise InputError("There is no metric to read: give at least one.")
    names = [one.name for one in lists[0]]
    if len(set(names)) < len(names):
        raise InputError(f"Two metrics have the same name in {names}: name each apart.")
    for some, n_tokens in zip(lists, lengths, strict=True):
        for one in some:
            check_metric(one, n_tokens, d_vocab)
    kinds = {jax.tree.structure(tuple(some)) for some in lists}
    if len(kinds) > 1:
        raise InputError("The pairs' metrics differ in kind or position: give all the same.")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tuple(some) for some in lists))


def _check_lengths(
    model: Whisper,
    plan: SweepPlan,
    patched: Sequence[Utterance],
    other: Sequence[Utterance],
    alignment: Sequence[int] | None,
) -> Int[np.ndarray, " pos"]:
    """Check lengths; return the other run's position for each position of the patched run."""
    lengths = [
        {len(check_tokens(model.config, run.tokens)) for run in runs} for runs in (patched, other)
    ]
    if lengths[0] != {plan.n_tokens} or len(lengths[1]) != 1:
        raise InputError(
            f"The plan is for runs of {plan.n_tokens} tokens; the patched ones have "
            f"{sorted(lengths[0])} and the others {sorted(lengths[1])}: each kind must be of one "
            "length, the patched ones of the plan's."
        )
    (length,) = lengths[1]
    if alignment is None:
        if length != plan.n_tokens:
            raise InputError(
                f"The patched run has {plan.n_tokens} tokens and the other {length}: give an "
                "alignment, the other run's position for each of the patched run's."
            )
        return np.arange(length)
    positions = np.asarray(alignment)
    if not np.issubdtype(positions.dtype, np.integer):
        raise InputError(f"The alignment {list(alignment)} is not made of whole numbers.")
    if positions.shape != (plan.n_tokens,) or not ((positions >= 0) & (positions < length)).all():
        raise InputError(
            f"The alignment {list(alignment)} does not give one of the other run's {length} "
            f"positions for each of the {plan.n_tokens}."
        )
    return positions
