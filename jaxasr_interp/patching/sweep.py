"""Running a sweep: the plan's chunks one after the other, gathered into one result."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import check_tokens, encode
from jaxasr_interp.metrics import Metric, check_metric
from jaxasr_interp.model import Whisper
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.reference import patch_one_by_one
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import Utterance, prepare
from jaxasr_interp.patching.vmapped import run_chunk

METHODS = ("vmap", "reference")


def activation_patching(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Utterance,
    corrupted: Utterance,
    metric: Metric | Sequence[Metric],
    method: str = "vmap",
    on_progress: Callable[[int], None] | None = None,
) -> SweepResult:
    """Patch the clean run's activations into the corrupted run, one cell at a time.

    For each (layer, position) of the plan: run the corrupted utterance with the activation at that
    cell replaced by the clean run's, and read the metrics.

    Args:
        model: the model.
        plan: from `plan_sweep`.
        clean: the run whose activations are copied.
        corrupted: the run they are copied into, with as many tokens.
        metric: one or several of `jaxasr_interp.metrics`.
        method: `"vmap"`: all cells of a chunk together, in one compiled program; `"reference"`: one
            plain decoder run for each cell.
        on_progress: called with the number of patches done after each chunk.

    Returns:
        The metrics at every cell, with the clean and corrupted runs' own.

    Raises:
        InputError: runs of different length, a metric that reads what the runs do not have, or an
            unknown method.

    Source: Meng et al. 2022 (causal tracing); Vig et al. 2020 (interchange of activations).
    """
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    metrics = tuple(metric) if isinstance(metric, Sequence) else (metric,)
    runs = {"clean": clean, "corrupted": corrupted}
    tokens = {name: check_tokens(model.config, run.tokens) for name, run in runs.items()}
    lengths = {name: len(ids) for name, ids in tokens.items()}
    if set(lengths.values()) != {plan.n_tokens}:
        raise InputError(
            f"The clean run has {lengths['clean']} tokens, the corrupted {lengths['corrupted']} "
            f"and the plan {plan.n_tokens}: all three must be equal."
        )
    if not metrics:
        raise InputError("There is no metric to read: give at least one.")
    names = [one.name for one in metrics]
    if len(set(names)) < len(names):
        raise InputError(f"Two metrics have the same name in {names}: name each apart.")
    for one in metrics:
        check_metric(one, plan.n_tokens, model.config.d_vocab)
    prepared = prepare(
        model.decoder,
        clean_states=encode(model, clean.mel, sites=()).states,
        corrupted_states=encode(model, corrupted.mel, sites=()).states,
        clean_tokens=tokens["clean"],
        corrupted_tokens=tokens["corrupted"],
        metrics=metrics,
        site=plan.site,
    )
    if method == "reference":
        values = patch_one_by_one(model.decoder, plan, prepared, metrics)
    else:
        done, parts = 0, []
        for cells in plan.chunks():
            parts.append(np.asarray(run_chunk(model.decoder, prepared, cells, metrics, plan.site)))
            done = min(done + plan.chunk_size, plan.runs)
            if on_progress is not None:
                on_progress(done)
        values = np.concatenate(parts)[: plan.runs]
    return SweepResult(
        plan=plan,
        metrics=tuple(names),
        patched=values.T.reshape(len(metrics), len(plan.layers), len(plan.positions)),
        clean=np.asarray(prepared.clean),
        corrupted=np.asarray(prepared.corrupted),
    )
