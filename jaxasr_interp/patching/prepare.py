"""What a sweep starts from: the checked inputs, both runs once, and what every chunk shares."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kinds import Interchange
from jaxasr_interp.model.edits import Edit, as_pytree, check_edit
from jaxasr_interp.model.run import check_tokens
from jaxasr_interp.model.sites import DecoderActivations
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.engine.readout import Reads, evaluate_runs
from jaxasr_interp.patching.metrics import Metric, check_metric
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import Run, Sites, Utterance, align, kept_sites, run_utterances

DIRECTIONS = ("clean_to_corrupted", "corrupted_to_clean")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A sweep that is ready to run; arrays have a leading axis for the pairs of runs.

    Attributes:
        model: the model.
        plan: what to do.
        base: the runs that are patched.
        edits: what a patch does to each at full strength.
        metrics: what is read of each.
        reads: the positions that takes.
        clean_logits: of the clean runs, there.
        clean: the metrics of the clean runs.
        corrupted: the metrics of the corrupted runs.
        direction: which run is patched with which.
        given: the clean and corrupted utterances, the edit and the alignment, as they were given.
    """

    model: Whisper
    plan: SweepPlan
    base: Run
    edits: Edit
    metrics: tuple[Metric, ...]
    reads: Reads
    clean_logits: Float[Array, "batch read d_vocab"]
    clean: Float[np.ndarray, "batch metric"]
    corrupted: Float[np.ndarray, "batch metric"]
    direction: str
    given: tuple[Sequence[Utterance], Sequence[Utterance], Edit | None, Sequence[int] | None]

    @property
    def utterances(self) -> int:
        """Number of pairs."""
        return len(self.base.tokens)

    def results(self, values: Float[np.ndarray, "batch cell metric"]) -> list[SweepResult]:
        """Give the values of every cell, in the plan's order, their axes; one result a pair."""
        names = tuple(one.name for one in self.metrics)
        shape = (len(names), *self.plan.axes.values())
        return [
            SweepResult(self.plan, names, rows.T.reshape(shape), clean, corrupted, self.direction)
            for rows, clean, corrupted in zip(values, self.clean, self.corrupted, strict=True)
        ]


def prepare(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Sequence[Utterance],
    corrupted: Sequence[Utterance],
    metric: Sequence[Metric | Sequence[Metric]],
    edit: Edit | None = None,
    direction: str = "clean_to_corrupted",
    alignment: Sequence[int] | None = None,
    minimal: bool = True,
) -> Prepared:
    """Check a sweep's inputs and run every utterance once.

    Args:
        model: the model.
        plan: what to do.
        clean: the clean run of each pair.
        corrupted: the corrupted run of each pair.
        metric: the metrics of each pair.
        edit: see `activation_patching`.
        direction: see `activation_patching`.
        alignment: see `activation_patching`.
        minimal: keep the activations that the minimal method starts from.

    Returns:
        What every chunk of the sweep shares.

    Raises:
        InputError: see `activation_patching_batch`.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
    _check_plan(model, plan, edit)
    if not isinstance(metric, Sequence):
        raise InputError("The metrics of several pairs come as a sequence, an entry for each pair.")
    lists = [[one] if not isinstance(one, Sequence) else list(one) for one in metric]
    if not len(clean) == len(corrupted) == len(lists) or not lists:
        raise InputError(
            f"There are {len(clean)} clean runs, {len(corrupted)} corrupted ones and {len(lists)} "
            "sets of metrics: give one of each for every pair."
        )
    metrics = _stack_metrics(lists, plan, model.config.d_vocab)
    into_corrupted = direction == "clean_to_corrupted"
    patched, other = (corrupted, clean) if into_corrupted else (clean, corrupted)
    aligned = _check_lengths(model, plan, patched, other, alignment)
    reads = Reads.of(lists[0], plan.n_tokens)
    plan = dataclasses.replace(plan, reads=len(reads.pos))

    kept = kept_sites(plan.stack, frozenset(plan.sites))
    given = kept if edit is None else Sites()
    source = run_utterances(model, other, given, jnp.asarray(aligned, jnp.int32)[reads.pos])
    same_audio = all(a.mel is b.mel for a, b in zip(patched, other, strict=True))
    states = source.states if same_audio and plan.stack == "decoder" else None
    base = run_utterances(model, patched, kept if minimal else Sites(), reads.pos, states)
    clean_logits = source.logits if into_corrupted else base.logits
    of_base, of_source = (
        np.asarray(evaluate_runs(metrics, reads, run.logits, clean_logits))
        for run in (base, source)
    )
    return Prepared(
        model=model,
        plan=plan,
        base=base,
        edits=_edits(plan, source, aligned) if edit is None else _repeat(edit, len(patched)),
        metrics=metrics,
        reads=reads,
        clean_logits=clean_logits,
        clean=of_source if into_corrupted else of_base,
        corrupted=of_base if into_corrupted else of_source,
        direction=direction,
        given=(clean, corrupted, None if edit is None else as_pytree(edit), alignment),
    )


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
    site = getattr(edit, "site", None)
    if isinstance(site, str) and site not in plan.sites:
        raise InputError(
            f"The edit acts at {site!r} and the plan patches {', '.join(plan.sites)}: it would do "
            "nothing."
        )
    if edit is not None:
        check_edit(edit, plan.stack, plan.config)


def _edits(plan: SweepPlan, source: Run, aligned: Int[np.ndarray, " pos"]) -> Edit:
    """The interchange with each pair's other run, seen at the patched run's positions."""
    acts = source.acts(plan.stack)
    straight = np.array_equal(aligned, np.arange(source.tokens.shape[1]))
    if isinstance(acts, DecoderActivations) and not straight:
        acts = jax.vmap(lambda one: align(one, aligned))(acts)
    return Interchange(acts)


def _repeat(edit: Edit, times: int) -> Edit:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * times), as_pytree(edit))


def _stack_metrics(
    lists: Sequence[Sequence[Metric]], plan: SweepPlan, d_vocab: int
) -> tuple[Metric, ...]:
    """The pairs' metrics as one tuple whose arrays have a leading axis for the pairs."""
    if not lists[0]:
        raise InputError("There is no metric to read: give at least one.")
    names = [one.name for one in lists[0]]
    if len(set(names)) < len(names):
        raise InputError(f"Two metrics have the same name in {names}: name each apart.")
    for one in [one for some in lists for one in some]:
        check_metric(one, plan.n_tokens, d_vocab)
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
    """The other run's position for each position of the patched run."""
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
