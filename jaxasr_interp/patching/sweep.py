"""Running a sweep: two unpatched runs, then the chunks of the plan one after the other."""

import dataclasses
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.model.edits import EditLike
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.chunks import Chunk
from jaxasr_interp.patching.inputs import SweepInputs
from jaxasr_interp.patching.methods import check_method, fetch_chunks, group_chunks, run_chunks
from jaxasr_interp.patching.metrics import MetricLike
from jaxasr_interp.patching.partial import Partial
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.prepared import Prepared, prepare
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import DECODE_EDITED, host_only
from jaxasr_interp.speech.utterance import Utterance

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """The direction and the method of a sweep, and the file to resume from.

    Attributes:
        direction: `"clean_to_corrupted"` patches the corrupted run, `"corrupted_to_clean"` the
            clean one.
        alignment: for runs of different length: for each position of the patched run, the position
            of the other run from which its activations come.
        method: `"minimal"` computes only what a patch can change; `"vmap"` runs the patched stack
            and all after it from the beginning, in batches of patches; `"reference"` does the same
            one patch at a time. The numbers are the same.
        resume: an `.npz` file that is written every few seconds. An interrupted sweep that is
            called again resumes from it. It is not removed when the sweep is done.
    """

    direction: str = "clean_to_corrupted"
    alignment: Sequence[int] | None = None
    method: str = "minimal"
    resume: str | Path | None = None


_DEFAULT = SweepOptions()


@host_only(DECODE_EDITED)
def activation_patching(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Utterance,
    corrupted: Utterance,
    metric: MetricLike | Sequence[MetricLike],
    edit: EditLike | None = None,
    options: SweepOptions = _DEFAULT,
    on_progress: Progress | None = None,
) -> SweepResult:
    """Patch one run's activations into another, one cell at a time, and read metrics.

    For each cell of the plan: run one utterance with `ã = (1 - α) a + α edit(a)` in that cell,
    where by default `edit(a)` is what the other utterance's run has there.

    Args:
        model: the model.
        plan: from `plan_sweep`.
        clean: the run in which the behaviour of interest happens.
        corrupted: the run in which it does not.
        metric: one or several of `ji.metrics`, or functions of the logits [pos, d_vocab].
        edit: edit that a patch makes instead of an interchange: one of `interventions.kinds`, any
            `edit(site, layer, value) -> value`, or the text of an edit.
        options: direction and method of the sweep, and the file to resume from.
        on_progress: called with the patches done, how many there are, and `"patches"`.

    Returns:
        The metrics under every patch, and those of the clean and corrupted run.

    Raises:
        InputError: runs differ in length and there is no alignment, a metric reads a position or
            token that does not exist, the edit does not fit the plan, or the method or direction is
            unknown.

    Source: Meng et al. 2022 (causal tracing); Vig et al. 2020 (interchange of activations).
    """
    return activation_patching_batch(
        model,
        plan,
        clean=[clean],
        corrupted=[corrupted],
        metric=[metric],
        edit=edit,
        options=options,
        on_progress=on_progress,
    )[0]


@host_only(DECODE_EDITED)
def activation_patching_batch(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Sequence[Utterance],
    corrupted: Sequence[Utterance],
    metric: Sequence[MetricLike | Sequence[MetricLike]],
    edit: EditLike | None = None,
    options: SweepOptions = _DEFAULT,
    on_progress: Progress | None = None,
) -> list[SweepResult]:
    """Run `activation_patching` for several pairs of utterances of equal length in one sweep.

    Args:
        model: see `activation_patching`.
        plan: see `activation_patching`; made for any of the runs that are patched.
        clean: the clean run of each pair.
        corrupted: the corrupted run of each pair.
        metric: the metrics of each pair, of the same kinds in the same order.
        edit: see `activation_patching`; the same for all pairs.
        options: see `activation_patching`.
        on_progress: see `activation_patching`; patches of all pairs count.

    Returns:
        One result for each pair.

    Raises:
        InputError: see `activation_patching`; also if the inputs have different numbers of pairs,
            or the pairs different metrics.
    """
    inputs = SweepInputs(clean, corrupted, metric, edit, options.direction, options.alignment)
    minimal = check_method(options.method) == "minimal"
    prepared = prepare(model, plan, inputs, minimal=minimal)
    values = run_prepared(prepared, options.method, on_progress, options.resume)
    return prepared.results(values)


def run_prepared(
    prepared: Prepared,
    method: str = "minimal",
    on_progress: Progress | None = None,
    resume: str | Path | None = None,
) -> Float[np.ndarray, "batch cell metric"]:
    """Run all chunks of a sweep and put their values in the plan's order.

    If the device still runs out of memory, the rest runs with half the memory budget.

    Args:
        prepared: from `prepare`.
        method: see `SweepOptions`.
        on_progress: see `activation_patching`.
        resume: see `SweepOptions`.

    Returns:
        Every metric of every cell of each pair; NaN in cells that the plan leaves out.

    Raises:
        InputError: the file to resume from belongs to another sweep.
    """
    partial = Partial.open(prepared, check_method(method), resume)
    plan = prepared.plan
    size = plan.runs * prepared.utterances, plan.flops * prepared.utterances / 1e12
    _log.info("%d patches, %.3g TFLOP, within %.2f GB.", *size, plan.memory / 1e9)
    while not partial.done.all():
        try:
            _run_missing(prepared, method, partial, on_progress)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            plan = dataclasses.replace(prepared.plan, memory=prepared.plan.memory // 2)
            budget = plan.memory / 1e9
            _log.warning("Out of memory: the rest runs within %.2f GB.", budget)
            prepared = dataclasses.replace(prepared, plan=plan)
        finally:
            partial.save(now=True)
    return partial.values


def _run_missing(
    prepared: Prepared, method: str, partial: Partial, on_progress: Progress | None
) -> None:
    """Run the cells that are not done yet.

    An accelerator has the next group of chunks before the host fetches the one that it computes.
    """
    left_out = partial.done.size - prepared.plan.runs
    ahead = 0 if prepared.plan.platform == "cpu" else 1
    for chunks, begun in _ahead(_begin_missing(prepared, method, partial), ahead):
        parts = fetch_chunks(prepared, method, begun)
        for chunk, part in zip(chunks, parts, strict=False):
            partial.values[:, chunk.where] = chunk.held(part)
            partial.done[chunk.where] = True
        partial.save()
        if on_progress is not None:
            done = (int(partial.done.sum()) - left_out) * prepared.utterances
            on_progress(done, prepared.plan.runs * prepared.utterances, "patches")


def _begin_missing(
    prepared: Prepared, method: str, partial: Partial
) -> Iterator[tuple[list[Chunk], list[Array]]]:
    """Yield the groups of chunks that are not done yet, and what has begun to run of each."""
    for chunks, together in group_chunks(prepared, method):
        if not all(partial.done[chunk.where].all() for chunk in chunks):
            yield chunks, run_chunks(prepared, method, chunks, together)


def _ahead[T](items: Iterable[T], n: int) -> Iterator[T]:
    """Yield items, each when `n` further ones have been made."""
    made: deque[T] = deque()
    for item in items:
        made.append(item)
        if len(made) > n:
            yield made.popleft()
    yield from made
