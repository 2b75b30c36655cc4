"""Preparation of a sweep: it checks the inputs, runs both utterances, and keeps the results."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import Interchange
from jaxasr_interp.model.edits import Edit, edit_of
from jaxasr_interp.model.run import EncodedUtterance, EncoderRun
from jaxasr_interp.model.sites import DecoderActivations, EncoderActivations
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.engine.readout import MetricReadout, evaluate_runs
from jaxasr_interp.patching.inputs import (
    DIRECTIONS,
    SweepInputs,
    check_lengths,
    check_plan,
    metrics_of_pairs,
    stack_metrics,
)
from jaxasr_interp.patching.metrics import MetricPositions
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import BaseRun, Sites, align, kept_sites
from jaxasr_interp.patching.unpatched import RunSet, encode_utterances, run_both
from jaxasr_interp.runtime.devices import Lanes, divide, mesh_for, mesh_of, parts_of
from jaxasr_interp.speech.utterance import Utterance


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
        lanes: the devices that run the chunks.
    """

    model: Whisper
    plan: SweepPlan
    memory: int
    inputs: SweepInputs
    base: BaseRun
    edits: Edit
    readout: MetricReadout
    clean: Float[Array, "batch metric"]
    corrupted: Float[Array, "batch metric"]
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
        unpatched = np.asarray(self.clean), np.asarray(self.corrupted)
        if self.inputs.lengths is not None and not plan.counts_frames:
            behind = plan.cells()["start"][None] >= np.asarray(self.inputs.lengths)[:, None]
            values = np.where(behind[..., None], np.nan, values)
        tokens, writes = np.asarray(self.base.tokens).tolist(), self.model.tokenizer
        return [
            SweepResult(
                *(plan, names, rows.T.reshape(shape), clean, corrupted, direction),
                tokens=tuple(said),
                tokenizer=writes,
            )
            for rows, clean, corrupted, said in zip(values, *unpatched, tokens, strict=True)
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
    edit = None if inputs.edit is None else edit_of(inputs.edit, plan.stack, model.config)
    check_plan(model, plan, edit)
    lists = metrics_of_pairs(inputs)
    lengths = [plan.n_tokens] * len(lists) if inputs.lengths is None else inputs.lengths
    metrics = stack_metrics(lists, lengths, model.config.d_vocab)
    into_corrupted = direction == "clean_to_corrupted"
    runs = list(zip((inputs.clean, inputs.corrupted), inputs.encoded or (None, None), strict=True))
    (other, other_encoded), (patched, encoded) = runs if into_corrupted else runs[::-1]
    aligned = check_lengths(model, plan, patched, other, inputs.alignment)
    each = [MetricPositions.of(some, n) for some, n in zip(lists, lengths, strict=True)]
    positions = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    memory, held = plan.memory, _held_bytes([*inputs.clean, *inputs.corrupted])
    plan = dataclasses.replace(plan, reads=positions.count, memory=memory - held)

    kept = kept_sites(plan.stack, frozenset(plan.sites))
    wanted = kept if edit is None else Sites()
    if other_encoded is None:
        other_encoded = encode_utterances(model, other, wanted.encoder)
    same_audio = all(a.mel is b.mel for a, b in zip(patched, other, strict=True))
    if same_audio and plan.stack == "decoder":
        encoded = EncoderRun(other_encoded.states, EncoderActivations())
    of_patched = kept if minimal else Sites()
    if encoded is None:
        encoded = encode_utterances(model, patched, of_patched.encoder)
    reads = positions.pos
    source, base = run_both(
        model,
        RunSet(other, other_encoded, wanted.decoder, aligned[reads]),
        RunSet(patched, encoded, of_patched.decoder, reads),
        plan.platform,
    )
    mesh = mesh_for(model, len(patched))
    metrics, positions = divide(mesh, jax.device_put((metrics, positions)))
    readout = MetricReadout(metrics, positions, source.logits if into_corrupted else base.logits)
    # They are fetched when they are wanted: the device need not wait for the host.
    of_base, of_source = (evaluate_runs(readout, run.logits) for run in (base, source))
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
        lanes=Lanes(mesh_of(model), divided=mesh is not None),
    )


def _held_bytes(utterances: Sequence[Utterance]) -> int:
    """Bytes of the encoder activations that the utterances keep beside the sweep."""
    held = {
        id(leaf): leaf.nbytes
        for one in utterances
        if isinstance(one, EncodedUtterance) and one.encoded is not None
        for leaf in jax.tree.leaves(one.encoded.acts)
    }
    return sum(held.values())


def _edits(plan: SweepPlan, source: BaseRun, aligned: Int[np.ndarray, " pos"]) -> Edit:
    """Make the interchange with each pair's other run, aligned to the patched run's positions."""
    acts = source.acts(plan.stack)
    straight = np.array_equal(aligned, np.arange(source.tokens.shape[1]))
    if isinstance(acts, DecoderActivations) and not straight:
        acts = jax.vmap(lambda one: align(one, aligned))(acts)
    return Interchange(acts)


def _repeat(edit: Edit, times: int) -> Edit:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * times), edit)
