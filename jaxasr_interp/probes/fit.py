"""`fit_probes`: all layers, targets, seeds, folds and penalties as one batch of probes."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.probes.adamw import adamw
from jaxasr_interp.probes.closed import CLOSED, solve_closed
from jaxasr_interp.probes.grid import (
    Features,
    Split,
    SplitWeights,
    make_splits,
    standardise,
    weigh,
)
from jaxasr_interp.probes.lbfgs import LBFGS
from jaxasr_interp.probes.losses import LOSSES, Kind
from jaxasr_interp.probes.options import FitOptions
from jaxasr_interp.probes.result import LayerProbes, Probes, collect, parse_features, read_layer
from jaxasr_interp.probes.solve import Search, Solution, fit_splits
from jaxasr_interp.probes.targets import Labels, Target, is_missing, read_target
from jaxasr_interp.runtime.copies import side_by_side
from jaxasr_interp.runtime.memory import default_memory
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import host_only

# This many searches stay in a processor's cache.
_CPU_BATCH = 256
# One search leaves part of two cores idle, which another one uses.
_CPU_WORKERS = 2
_ROWS = 64


@host_only()
def fit_probes(
    x: Float[np.ndarray, "layer example feature"] | Float[Array, "layer example feature"],
    y: Labels | Mapping[str, Labels],
    *,
    features: str | None = None,
    groups: Labels | None = None,
    options: FitOptions | None = None,
    memory: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Probes]:
    """Fit probes to all layers, targets, seeds, folds and penalties together.

    Each minimises `Σ weight · ℓ(W (x - mean) / scale + b, y) + λ/2 ‖W‖²`, ℓ being the cross-entropy
    of two or more classes or half a squared error, mean and scale those of its own training
    examples (Alain and Bengio 2016, arXiv 1610.01644). While fold k tests, fold k + 1 validates and
    chooses λ, and the others train. One more probe for each layer is trained on all examples, with
    the λ that validates best on average.

    Args:
        x: activations; the first axis may run over anything that is probed in the same way. They
            are fitted in float32, or in float64 where they are float64 and JAX has it enabled.
        y: labels of the examples (text or integers name classes, floats are values; `""`, `None`
            and NaN are unknown), or several targets by name.
        features: the site of the activations, as `encoder.resid_post`: what `steer` edits.
        groups: examples of one group are never on both sides of a split: speakers, words. An
            example without one (`""` or `None`) is its own group.
        options: folds, penalties, method and when a search ends; by default `FitOptions()`.
        memory: bytes that the searches of one batch may take. By default a quarter of an
            accelerator's memory; on a processor a batch that stays in its cache.
        on_progress: called with the number of probes fitted so far, of all, and `"probes"`.

    Returns:
        The probes of each target, by name (`"target"` if `y` names none).

    Raises:
        InputError: shapes do not fit, activations are not finite, a label cannot be split into the
            folds, or the method cannot do what is asked.
    """
    x = np.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(np.promote_types(x.dtype, np.float32)), copy=False)
    options = FitOptions() if options is None else options
    if features is not None:
        parse_features(features)
    named = y if isinstance(y, Mapping) else {"target": y}
    targets = [read_target(labels, name) for name, labels in named.items()]
    _check(x, targets, options)
    numbers = None if groups is None else _number_groups(groups, x.shape[1])
    splits = {target.name: make_splits(target, options, numbers) for target in targets}
    done, total = 0, len(x) * len(options.l2) * sum(map(len, splits.values()))

    lock = threading.Lock()

    def advance(probes: int) -> None:
        nonlocal done
        with lock:
            done += probes
            if on_progress is not None:
                on_progress(done, total, "probes")

    # Targets of one kind that are known of the same examples share their activations.
    alike: dict[tuple[Kind, int, bytes], list[Target]] = {}
    for target in targets:
        key = (target.kind, target.n_outputs, target.known.tobytes())
        alike.setdefault(key, []).append(target)
    fitted: dict[str, Probes] = {}
    for members in alike.values():
        together = [split for target in members for split in splits[target.name]]
        layers = _fit_together(x, members, together, options, memory, advance)
        for target, own in zip(members, zip(*layers, strict=True), strict=True):
            fitted[target.name] = collect(
                target, options, splits[target.name], own, numbers, features
            )
    return {target.name: fitted[target.name] for target in targets}


def _fit_together(
    x: Float[np.ndarray, "layer example feature"],
    targets: Sequence[Target],
    splits: Sequence[Split],
    options: FitOptions,
    memory: int | None,
    advance: Callable[[int], None],
) -> list[list[LayerProbes]]:
    """Fit the probes of every layer for targets of one kind; return a list for each layer.

    Each device fits other layers.
    """
    known = np.flatnonzero(targets[0].known)
    # Rows without weight are added, so that similar targets share programs and rows are aligned.
    rows = np.resize(known, -(-len(known) // _ROWS) * _ROWS)
    weights = weigh(splits, rows, len(known), options, x.dtype)
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and memory is None:
        batch_size = _CPU_BATCH
    else:
        budget = default_memory() if memory is None else memory
        batch_size = _batch_size(len(rows), x.shape[2], targets[0].n_outputs, budget)
    # A batch takes as many steps as its slowest probe, so shuffled labels, which take more steps,
    # are kept apart from the others.
    hard = np.array([split.labelling.shuffled for split in splits])
    order = np.argsort(hard, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def one_layer(device: Any, layer: Float[np.ndarray, "example feature"]) -> list[LayerProbes]:
        # Matrix products in TF32 would spoil searches and factorisations.
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            features = standardise(jnp.asarray(layer[rows]), weights)
            solution = _fit_layer(features, weights, targets[0], options, batches, advance)
            return [read_layer(solution, features, splits, target) for target in targets]

    return side_by_side([None] * _CPU_WORKERS if on_cpu else jax.local_devices(), one_layer, x)


def _fit_layer(
    features: Features,
    weights: SplitWeights,
    target: Target,
    options: FitOptions,
    batches: Sequence[Int[np.ndarray, " _"]],
    advance: Callable[[int], None],
) -> Solution:
    """Fit a probe to every split with every penalty.

    Args:
        features: activations of the layer.
        weights: the splits.
        target: decides the loss and the number of outputs.
        options: how to fit.
        batches: splits that are searched for together.
        advance: called with the number of probes done since the last call.

    Returns:
        Solutions with leading axes `[l2, split]`, on the host.
    """
    l2 = np.asarray(options.l2, features.x.dtype)
    n_splits = len(weights.train)
    if options.method in CLOSED:
        solved = solve_closed(features, weights, l2, options.method, target.kind, target.n_outputs)
        advance(n_splits * len(l2))
        return jax.device_get(solved)
    search = Search(
        LBFGS if options.method == "lbfgs" else adamw(options.learning_rate, options.n_hidden),
        LOSSES[target.kind],
        target.n_outputs,
        options.steps,
        options.tolerance,
        options.patience,
    )
    downwards = np.argsort(-l2)
    found = []
    for batch in batches:
        # All batches have the size of the first, so that they share one program.
        chosen = np.resize(batch, len(batches[0]))
        found.append(jax.device_get(fit_splits(features, weights, l2[downwards], chosen, search)))
        advance(len(batch) * len(l2))
    order = np.concatenate(batches)

    def joined(*leaves: np.ndarray) -> np.ndarray:
        every = np.concatenate(leaves, axis=1)[:, :n_splits]
        return every[np.argsort(downwards)][:, np.argsort(order)]

    return jax.tree.map(joined, *found)


def _check(
    x: Float[np.ndarray, "layer example feature"], targets: Sequence[Target], options: FitOptions
) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise InputError(f"The activations are {x.shape}: expected [layer, example, feature].")
    if not np.isfinite(x).all():
        raise InputError("Some activations are not finite: leave those examples out.")
    if not targets:
        raise InputError("There is nothing to fit: give at least one target.")
    for target in targets:
        if len(target.labels) != x.shape[1]:
            raise InputError(
                f"{target.name!r} has {len(target.labels)} labels: expected {x.shape[1]}, one for "
                "each example."
            )
    if options.method == "lda" and any(target.kind == "regression" for target in targets):
        raise InputError("LDA tells classes apart: choose 'ridge' or 'lbfgs' for values.")


def _number_groups(groups: Labels, n_examples: int) -> Int[np.ndarray, " example"]:
    """Return the number of each example's group; an example without one gets its own."""
    names = ["" if is_missing(group) else str(group) for group in np.asarray(groups).tolist()]
    if len(names) != n_examples:
        raise InputError(f"There are {len(names)} groups: expected one for {n_examples} examples.")
    alone = [name or f"\0{i}" for i, name in enumerate(names)]
    return np.unique(alone, return_inverse=True)[1]


def _batch_size(n_examples: int, n_features: int, n_outputs: int, memory: int) -> int:
    """Return how many searches fit into this many bytes of memory."""
    # L-BFGS keeps 20 vectors of weights or so, and 10 of outputs and temporaries, in float32.
    each = 4 * n_outputs * (20 * n_features + 10 * n_examples)
    return int(np.clip(memory // each, 1, 16384))
