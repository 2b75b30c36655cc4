"""AdamW on all examples at once, for linear probes and for those with a hidden layer.

Probes read features standardised by their own training examples. Loshchilov and Hutter 2019: the
strength decays the weights apart from the loss's gradient, so its
optimum is another than L-BFGS's.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxasr_interp.probes.families import Family
from jaxasr_interp.probes.fitting import Probe, Solver, Step
from jaxasr_interp.probes.linear import Linear, Task
from jaxasr_interp.probes.mlp import MLPProbe


@functools.cache
def adamw(learning_rate: float = 3e-3, n_hidden: int | None = None, seed: int = 0) -> Solver:
    """The solver.

    Args:
        learning_rate: of every step.
        n_hidden: units of a hidden layer, `None` for a linear probe.
        seed: of the hidden layer's first weights.
    """

    def optimizer(task: Task) -> optax.GradientTransformation:
        decayed = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        return optax.adamw(learning_rate, weight_decay=task.strength, mask=decayed)  # pyright: ignore

    def empty(n_features: int, n_outputs: int, dtype: jnp.dtype) -> Probe:
        if n_hidden is None:
            return Linear.zeros(n_features, n_outputs, dtype)
        return MLPProbe.random(jax.random.key(seed), n_features, n_hidden, n_outputs, dtype)

    def start(
        x: Float[Array, "example feature"], task: Task, family: Family, probe: Probe
    ) -> optax.OptState:
        return cast(Any, optimizer(task).init)(probe)

    def plain(task: Task, probe: Probe) -> Probe:
        return probe.unscaled(task.mean, task.scale)

    def step(
        x: Float[Array, "example feature"],
        task: Task,
        family: Family,
        probe: Probe,
        state: optax.OptState,
    ) -> Step:
        outputs, pull = jax.vjp(lambda probe: plain(task, probe).outputs(x), probe)
        (slope,) = pull(task.train[None, :] * family.slope(outputs, task.labels))
        # Inside, optax mixes types that JAX's strict promotion keeps apart.
        with jax.numpy_dtype_promotion("standard"):
            update, state = cast(Any, optimizer(task).update)(slope, state, probe)
        new = jax.tree.map(jnp.add, probe, update)
        return Step(outputs, new, state, jnp.full((), jnp.inf, x.dtype))

    return Solver(empty, start, step, plain)
