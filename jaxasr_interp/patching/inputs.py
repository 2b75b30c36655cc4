"""The inputs of a sweep, and what is asked of them before anything runs."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.edits import Edit, EditLike
from jaxasr_interp.model.run import EncoderRun, check_tokens
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.metrics import Metric, MetricLike, as_metrics, check_metric
from jaxasr_interp.patching.plan import SweepPlan
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
    metric: Sequence[MetricLike | Sequence[MetricLike]]
    edit: EditLike | None = None
    direction: str = "clean_to_corrupted"
    alignment: Sequence[int] | None = None
    lengths: Sequence[int] | None = None
    encoded: tuple[EncoderRun, EncoderRun] | None = None


def metrics_of_pairs(inputs: SweepInputs) -> list[list[Metric]]:
    """List the metrics of each pair; raise unless all inputs have one entry for every pair."""
    clean, corrupted, metric = inputs.clean, inputs.corrupted, inputs.metric
    if not isinstance(metric, Sequence):
        raise InputError("The metrics of several pairs come as a sequence, an entry for each pair.")
    lists = [as_metrics(one) for one in metric]
    if not len(clean) == len(corrupted) == len(lists) or not lists:
        raise InputError(
            f"There are {len(clean)} clean runs, {len(corrupted)} corrupted ones and {len(lists)} "
            "sets of metrics: give one of each for every pair."
        )
    return lists


def check_plan(model: Whisper, plan: SweepPlan, edit: Edit | None) -> None:
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


def stack_metrics(
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


def check_lengths(
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
        raise InputError(f"The alignment is {positions.dtype}: expected whole numbers.")
    if positions.shape != (plan.n_tokens,) or not ((positions >= 0) & (positions < length)).all():
        raise InputError(
            f"The alignment has shape {list(positions.shape)}: expected one of the other run's "
            f"{length} positions for each of the {plan.n_tokens}."
        )
    return positions
