"""All probes of one layer: its activations on the device, probes in blocks over them."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.probes.adamw import adamw
from jaxasr_interp.probes.closed import CLOSED
from jaxasr_interp.probes.families import Kind
from jaxasr_interp.probes.fitting import Solution, Solver, fit_path
from jaxasr_interp.probes.grid import Weights
from jaxasr_interp.probes.lbfgs import LBFGS
from jaxasr_interp.probes.linear import Linear, Task
from jaxasr_interp.pytree import pytree_dataclass

METHODS = ("lbfgs", "adamw", *CLOSED)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How probes are fitted; see `fit_probes`."""

    strengths: tuple[float, ...]
    method: str
    n_hidden: int | None
    balanced: bool
    steps: int
    tolerance: float
    patience: int | None
    learning_rate: float

    @property
    def solver(self) -> Solver:
        """Of the methods that search."""
        return LBFGS if self.method == "lbfgs" else adamw(self.learning_rate, self.n_hidden)


@pytree_dataclass
class Features:
    """The activations of a layer, standardised over all examples for the sake of rounding only.

    Attributes:
        x: activations.
        centre: what was subtracted.
        spread: what they were then divided by.
        mean: of each feature over the examples that train, in every split.
        scale: their standard deviation; 1 where the feature is constant there.
    """

    x: Float[Array, "example feature"]
    centre: Float[Array, " feature"]
    spread: Float[Array, " feature"]
    mean: Float[Array, "split feature"]
    scale: Float[Array, "split feature"]


def fit_layer(
    x: Float[np.ndarray, "example feature"],
    weights: Weights,
    recipe: Recipe,
    kind: Kind,
    n_outputs: int,
    *,
    order: Int[np.ndarray, " split"],
    block: int,
    on_progress: Callable[[int], None],
) -> tuple[Solution, Features]:
    """Fit a probe to every split with every strength.

    Args:
        x: activations of the layer.
        weights: the splits.
        recipe: how.
        kind: of the labels.
        n_outputs: of each probe.
        order: splits in the order of how long a search they may take.
        block: probes that are searched for together.
        on_progress: called with the number of probes done since the last call.

    Returns:
        Solutions with leading axes `[strength, split]`, on the host, and the features they are of.
    """
    features = _standardise(jnp.asarray(x), weights)
    n_splits, strengths = len(weights.train), np.asarray(recipe.strengths, x.dtype)
    if recipe.method in CLOSED:
        solved = _solve(features, weights, strengths, recipe.method, kind, n_outputs)
        on_progress(n_splits * len(strengths))
        return jax.device_get(solved), features
    downwards = np.argsort(-strengths)
    blocks = []
    for start in range(0, n_splits, block):
        # A block takes as many steps as its slowest probe, so alike ones are searched for together.
        chosen = np.resize(order[start : start + block], min(block, n_splits))
        found = _search(features, weights, strengths[downwards], chosen, recipe, kind, n_outputs)
        blocks.append(jax.device_get(found))
        on_progress(min(block, n_splits - start) * len(strengths))

    def joined(*leaves: np.ndarray) -> np.ndarray:
        every = np.concatenate(leaves, axis=1)[:, :n_splits]
        return every[np.argsort(downwards)][:, np.argsort(order)]

    return jax.tree.map(joined, *blocks), features


@jax.jit
def _standardise(x: Float[Array, "example feature"], weights: Weights) -> Features:
    """Deviations of nothing but rounding are none: such a feature says nothing."""
    rounding = 100 * jnp.finfo(x.dtype).eps
    centre, deviation = x.mean(0), x.std(0)
    constant = deviation <= rounding * jnp.abs(x).max(0)
    spread = jnp.where(constant, 1, deviation)
    x = jnp.where(constant[None, :], 0, (x - centre[None, :]) / spread[None, :])
    members = weights.members.astype(x.dtype)
    shares = members / members.sum(1, keepdims=True)
    mean, square = shares @ x, shares @ jnp.square(x)
    variance = square - jnp.square(mean)
    scale = jnp.where(variance <= rounding * square, 1, jnp.sqrt(jnp.maximum(variance, 0)))
    return Features(x, centre, spread, mean, scale)


@functools.partial(jax.jit, static_argnames=("recipe", "kind", "n_outputs"))
def _search(
    features: Features,
    weights: Weights,
    strengths: Float[Array, " strength"],
    splits: Int[Array, " probe"],
    recipe: Recipe,
    kind: Kind,
    n_outputs: int,
) -> Solution:
    found = fit_path(
        features.x,
        jax.vmap(Task)(
            weights.labels[splits],
            weights.train[splits],
            weights.validation[splits],
            features.mean[splits],
            features.scale[splits],
            jnp.zeros(len(splits), strengths.dtype),
        ),
        strengths,
        solver=recipe.solver,
        kind=kind,
        n_outputs=n_outputs,
        steps=recipe.steps,
        tolerance=recipe.tolerance,
        patience=recipe.patience,
    )
    in_units = jax.vmap(_in_units, in_axes=(0, None, None))
    return in_units(found, weights.offset[splits], weights.unit[splits])


def _in_units(
    found: Solution, offset: Float[Array, " probe"], unit: Float[Array, " probe"]
) -> Solution:
    """Solutions for values as they are, of those for values in units of the training examples."""

    def one(found: Solution, offset: Float[Array, ""], unit: Float[Array, ""]) -> Solution:
        return Solution(
            found.probe.rescaled(offset, unit),
            offset + unit * found.outputs,
            jnp.square(unit) * found.train_loss,
            jnp.square(unit) * found.validation_loss,
        )

    return jax.vmap(one)(found, offset, unit)


@functools.partial(jax.jit, static_argnames=("method", "kind", "n_outputs"))
def _solve(
    features: Features,
    weights: Weights,
    strengths: Float[Array, " strength"],
    method: str,
    kind: Kind,
    n_outputs: int,
) -> Solution:
    solve, loss = CLOSED[method]

    def split(task: Task) -> Solution:
        probes = solve(features.x, task, strengths, kind, n_outputs)

        def read(probe: Linear) -> Solution:
            outputs = probe.outputs(features.x)
            each = loss(outputs, task.labels, kind)
            return Solution(probe, outputs, task.train @ each, task.validation @ each)

        return jax.vmap(read)(probes)

    none = jnp.zeros(len(weights.train), strengths.dtype)
    tasks = jax.vmap(Task)(
        weights.labels,
        weights.train,
        weights.validation,
        features.mean,
        features.scale,
        none,
    )
    found = jax.lax.map(split, tasks)
    return jax.vmap(_in_units, in_axes=(1, None, None))(found, weights.offset, weights.unit)
