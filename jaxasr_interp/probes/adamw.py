"""AdamW on all examples at once, for linear probes and for those with a hidden layer.

Probes read features standardised by their own training examples. The penalty decays the weights
apart from the gradient of the loss (Loshchilov and Hutter 2019), so that its optimum differs from
that of L-BFGS.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxasr_interp.probes.linear import LinearProbe, Task
from jaxasr_interp.probes.losses import Loss
from jaxasr_interp.probes.mlp import MLPProbe
from jaxasr_interp.probes.solve import Probe, Solver, Step


@functools.cache
def adamw(learning_rate: float, n_hidden: int | None) -> Solver:
    """Make a solver that takes steps of AdamW.

    Args:
        learning_rate: size of every step.
        n_hidden: units of a hidden layer, `None` for a linear probe.
    """

    def optimizer(task: Task) -> optax.GradientTransformation:
        decayed = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        return optax.adamw(learning_rate, weight_decay=task.l2, mask=decayed)  # pyright: ignore

    def first(n_features: int, n_outputs: int, dtype: jnp.dtype) -> Probe:
        if n_hidden is None:
            return LinearProbe.zeros(n_features, n_outputs, dtype)
        return MLPProbe.random(jax.random.key(0), n_features, n_hidden, n_outputs, dtype)

    def init(
        x: Float[Array, "example feature"], task: Task, loss: Loss, probe: Probe
    ) -> optax.OptState:
        return cast(Any, optimizer(task).init)(probe)

    def plain(task: Task, probe: Probe) -> Probe:
        return probe.unscaled(task.mean, task.scale)

    def step(
        x: Float[Array, "example feature"],
        task: Task,
        loss: Loss,
        probe: Probe,
        state: optax.OptState,
    ) -> Step:
        outputs, pull = jax.vjp(lambda probe: plain(task, probe).outputs(x), probe)
        (gradient,) = pull(task.train[None, :] * loss.gradient(outputs, task.labels))
        # Inside, optax mixes types that JAX's strict promotion keeps apart.
        with jax.numpy_dtype_promotion("standard"):
            update, state = cast(Any, optimizer(task).update)(gradient, state, probe)
        new = jax.tree.map(jnp.add, probe, update)
        return Step(outputs, new, state, jnp.full((), jnp.inf, x.dtype))

    return Solver(first, init, step, plain)
