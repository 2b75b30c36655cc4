"""`fit_probes`: every layer, target, seed, fold and strength as one batch of probes."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.probes.families import Kind
from jaxasr_interp.probes.grid import Split, make_splits, weigh
from jaxasr_interp.probes.layer import METHODS, Recipe, fit_layer
from jaxasr_interp.probes.result import LayerProbes, Probes, collect, parse_features, read_layer
from jaxasr_interp.probes.targets import Labels, Target, is_missing, read_target
from jaxasr_interp.runtime.memory import default_memory

STRENGTHS = tuple(float(10.0**power) for power in range(-4, 1))
"""Default penalties λ, of mean losses; scikit-learn's `C` is `1 / (λ · examples)`."""

# So many searches stay in a processor's cache.
_CPU_BLOCK = 256
# What one search leaves of two cores idle, another takes.
_CPU_WORKERS = 2
_ROWS = 64


def fit_probes(
    x: Float[np.ndarray, "layer example feature"] | Float[Array, "layer example feature"],
    y: Labels | Mapping[str, Labels],
    *,
    features: str | None = None,
    groups: Labels | None = None,
    n_folds: int = 5,
    seeds: Sequence[int] = (0,),
    strengths: Sequence[float] = STRENGTHS,
    method: str = "lbfgs",
    n_hidden: int | None = None,
    balanced: bool = False,
    shuffled: bool = True,
    steps: int = 1000,
    tolerance: float = 6e-7,
    patience: int | None = None,
    learning_rate: float = 3e-3,
    memory: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Probes]:
    """Fit probes to all layers, targets, seeds, folds and strengths together.

    Each minimises `Σ weight · ℓ(W (x - mean) / scale + b, y) + λ/2 ‖W‖²`, ℓ being the cross-entropy
    of two or more classes or half a squared error, mean and scale those of its own training
    examples (Alain and Bengio 2016, arXiv 1610.01644). Fold k tests, fold k + 1 validates and
    chooses λ, the others train. One more probe a layer is trained on all examples, with the λ that
    validates best on average.

    Args:
        x: activations; the first axis may run over anything that is probed alike. Fitted in
            float32, or in float64 where that is what they are and JAX has it enabled.
        y: labels of the examples (text or integers name classes, floats are values; `""`, `None`
            and NaN are unknown), or several targets by name.
        features: the site that the activations are of, as `encoder.resid_post`: what `steer` edits.
        groups: examples of one group are never on both sides of a split: speakers, words. An
            example without one (`""` or `None`) is its own.
        n_folds: how many, at least 3.
        seeds: each deals the folds anew.
        strengths: λ. AdamW decays the weights with it instead, and LDA adds it to the diagonal of
            the covariance within classes.
        method: `"lbfgs"`, `"adamw"`, `"ridge"` or `"lda"`.
        n_hidden: units of a hidden layer, which takes AdamW.
        balanced: weigh classes alike, however many examples they have.
        shuffled: also fit probes to shuffled labels, the control of selectivity.
        steps: most steps of a search.
        tolerance: a search ends when its last steps leave the objective no more than this share of
            an empty probe's loss to lose, of C classes a C²-th of it.
        patience: steps without a better validation loss after which a search ends with the best
            probe it met. By default it goes on to its end; AdamW, to its last step. So does always
            the probe of all examples, which holds none out.
        learning_rate: of AdamW.
        memory: bytes of an accelerator that searches may take; by default a quarter of them.
        on_progress: called with the number of probes fitted so far and of all.

    Returns:
        The probes of each target, by name (`"target"` if `y` names none).

    Raises:
        InputError: shapes do not fit, activations are not finite, a label cannot be split into the
            folds, or the method cannot do what is asked.
    """
    x = np.asarray(x)
    x = x.astype(jax.dtypes.canonicalize_dtype(np.promote_types(x.dtype, np.float32)), copy=False)
    recipe = Recipe(
        tuple(map(float, strengths)),
        method,
        n_hidden,
        balanced,
        steps,
        tolerance,
        patience,
        learning_rate,
    )
    if features is not None:
        parse_features(features)
    named = y if isinstance(y, Mapping) else {"target": y}
    targets = [read_target(labels, name) for name, labels in named.items()]
    _check(x, targets, recipe, seeds)
    numbers = None if groups is None else _number_groups(groups, x.shape[1])
    splits = {
        target.name: make_splits(
            target, seeds=seeds, n_folds=n_folds, groups=numbers, shuffled=shuffled
        )
        for target in targets
    }
    done, total = 0, len(x) * len(strengths) * sum(map(len, splits.values()))

    lock = threading.Lock()

    def advance(probes: int) -> None:
        nonlocal done
        with lock:
            done += probes
            if on_progress is not None:
                on_progress(done, total)

    # Targets of one kind that are known of the same examples share their activations.
    alike: dict[tuple[Kind, int, bytes], list[Target]] = {}
    for target in targets:
        key = (target.kind, target.n_outputs, target.known.tobytes())
        alike.setdefault(key, []).append(target)
    fitted: dict[str, Probes] = {}
    for members in alike.values():
        together = [split for target in members for split in splits[target.name]]
        layers = _fit_together(x, members, together, recipe, n_folds, memory, advance)
        for target, own in zip(members, zip(*layers, strict=True), strict=True):
            fitted[target.name] = collect(
                target, recipe, splits[target.name], own, numbers, features
            )
    return {target.name: fitted[target.name] for target in targets}


def _fit_together(
    x: Float[np.ndarray, "layer example feature"],
    targets: Sequence[Target],
    splits: Sequence[Split],
    recipe: Recipe,
    n_folds: int,
    memory: int | None,
    on_progress: Callable[[int], None],
) -> list[list[LayerProbes]]:
    """The probes of every layer, and in it of every target, of targets alike."""
    known = np.flatnonzero(targets[0].known)
    # Rows of no weight, so that alike targets share programs and products are aligned.
    rows = np.resize(known, -(-len(known) // _ROWS) * _ROWS)
    weights = weigh(splits, rows, len(known), n_folds, recipe.balanced, x.dtype)
    kind, n_outputs = targets[0].kind, targets[0].n_outputs
    on_cpu = jax.default_backend() == "cpu"
    budget = default_memory() if memory is None else memory
    block = _CPU_BLOCK if on_cpu else _block(len(rows), x.shape[2], n_outputs, budget)
    hard = np.array([split.labelling.shuffled for split in splits])

    wide = bool(jax.config.read("jax_enable_x64"))

    def one_layer(layer: Float[np.ndarray, "example feature"]) -> list[LayerProbes]:
        # A thread does not know by itself that the caller computes in float64; and matrix products
        # in TF32 would spoil searches and factorisations alike.
        with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
            solution, features = fit_layer(
                layer[rows],
                weights,
                recipe,
                kind,
                n_outputs,
                order=np.argsort(hard, kind="stable"),
                block=block,
                on_progress=on_progress,
            )
            return [read_layer(solution, features, splits, target) for target in targets]

    with ThreadPoolExecutor(_CPU_WORKERS if on_cpu else 1) as workers:
        return list(workers.map(one_layer, x))


def _check(
    x: Float[np.ndarray, "layer example feature"],
    targets: Sequence[Target],
    recipe: Recipe,
    seeds: Sequence[int],
) -> None:
    if x.ndim != 3 or 0 in x.shape:
        raise InputError(f"The activations are {x.shape}: expected [layer, example, feature].")
    if not np.isfinite(x).all():
        raise InputError("Some activations are not finite: leave those examples out.")
    if not targets:
        raise InputError("There is nothing to fit: give at least one target.")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"The seeds are {list(seeds)}: expected different numbers from 0 on.")
    for target in targets:
        if len(target.labels) != x.shape[1]:
            raise InputError(
                f"{target.name!r} has {len(target.labels)} labels: expected {x.shape[1]}, one for "
                "each example."
            )
    if not recipe.strengths or not all(0 < strength < np.inf for strength in recipe.strengths):
        raise InputError(f"The strengths are {recipe.strengths}: expected numbers above 0.")
    if recipe.method not in METHODS:
        raise InputError(f"Unknown method {recipe.method!r}: choose one of {', '.join(METHODS)}.")
    if recipe.n_hidden is not None and (recipe.method != "adamw" or recipe.n_hidden < 1):
        raise InputError("A hidden layer takes method='adamw' and at least one unit.")
    for name in ("steps", "patience", "tolerance", "learning_rate"):
        value = getattr(recipe, name)
        if value is not None and not value > 0:
            raise InputError(f"{name} is {value}: expected a number above 0.")
    if recipe.method == "lda" and any(target.kind == "regression" for target in targets):
        raise InputError("LDA tells classes apart: choose 'ridge' or 'lbfgs' for values.")


def _number_groups(groups: Labels, n_examples: int) -> Int[np.ndarray, " example"]:
    """A number for each group; examples without one get their own."""
    names = ["" if is_missing(group) else str(group) for group in np.asarray(groups).tolist()]
    if len(names) != n_examples:
        raise InputError(f"There are {len(names)} groups: expected one for {n_examples} examples.")
    alone = [name or f"\0{i}" for i, name in enumerate(names)]
    return np.unique(alone, return_inverse=True)[1]


def _block(n_examples: int, n_features: int, n_outputs: int, memory: int) -> int:
    """How many searches fit into an accelerator's memory."""
    # The memory of L-BFGS and some temporaries beside the outputs and weights, in float32.
    each = 4 * n_outputs * (20 * n_features + 10 * n_examples)
    return int(np.clip(memory // each, 1, 16384))
