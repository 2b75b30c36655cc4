"""L-BFGS for linear probes: the search for one of them, a step at a time.

A linear map makes the line search cheap: along a direction D the outputs are `z + t X D`, so a step
costs two products with the activations, however often the search looks. Directions come from
optax's L-BFGS (Liu and Nocedal 1989).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxasr_interp.probes.families import Family
from jaxasr_interp.probes.fitting import Solver, Step
from jaxasr_interp.probes.linear import Linear, Task, gradient

_SEARCHES = 2
_OPTIMIZER = optax.scale_by_lbfgs(memory_size=5)


class Slope(NamedTuple):
    """Where the search stands.

    Attributes:
        outputs: of every example.
        gradient: of the objective.
        memory: of the optimizer.
    """

    outputs: Float[Array, "output example"]
    gradient: Linear
    memory: optax.ScaleByLBFGSState


def start(x: Float[Array, "example feature"], task: Task, family: Family, probe: Linear) -> Slope:
    """The slope at a probe, with nothing remembered."""
    outputs = probe.outputs(x)
    memory = cast(Any, _OPTIMIZER.init)(probe)
    return Slope(outputs, gradient(x, task, family, probe, outputs), memory)


def step(
    x: Float[Array, "example feature"], task: Task, family: Family, probe: Linear, slope: Slope
) -> Step:
    """Go to about the lowest point along the quasi-Newton direction."""
    # Inside, optax counts in other integers than JAX's strict promotion allows.
    with jax.numpy_dtype_promotion("standard"):
        away, memory = cast(Any, _OPTIMIZER.update)(slope.gradient, slope.memory, probe)
    decrement = jnp.asarray(optax.tree.vdot(away, slope.gradient)) / 2
    # Rounding can spoil the memory: then it is the gradient that leads on, and nothing is known of
    # what is left.
    spoilt = decrement < 0
    away = jax.tree.map(lambda a, g: jnp.where(spoilt, g, a), away, slope.gradient)
    decrement = jnp.where(spoilt, jnp.inf, decrement)
    direction = jax.tree.map(jnp.negative, away)
    along = direction.outputs(x)
    t = _search(_derivatives(task, family, probe, slope.outputs, direction, along))
    new = jax.tree.map(lambda w, d: w + t * d, probe, direction)
    outputs = slope.outputs + t * along
    moved = Slope(outputs, gradient(x, task, family, new, outputs), memory)
    return Step(slope.outputs, new, moved, decrement)


def _derivatives(
    task: Task,
    family: Family,
    probe: Linear,
    outputs: Float[Array, "output example"],
    direction: Linear,
    along: Float[Array, "output example"],
) -> Callable[[Array], tuple[Array, Array]]:
    """First and second derivative of the objective after a step of length t."""
    held = (task.strength * jnp.square(task.scale))[None, :] * direction.kernel
    slope, bend = jnp.vdot(held, probe.kernel), jnp.vdot(held, direction.kernel)

    def at(t: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        z = outputs + t * along
        first = task.train @ (family.slope(z, task.labels) * along).sum(0)
        second = task.train @ family.curvature(z, along)
        return first + slope + t * bend, second + bend

    return at


def _search(derivatives: Callable[[Array], tuple[Array, Array]]) -> Float[Array, ""]:
    """About where a convex function is lowest: Newton's method from 1, in a shrinking bracket."""
    t = jnp.ones(())
    low, high = jnp.zeros_like(t), jnp.full_like(t, jnp.inf)
    for _ in range(_SEARCHES):
        slope, curvature = derivatives(t)
        low, high = jnp.where(slope < 0, t, low), jnp.where(slope < 0, high, t)
        newton = t - slope / curvature
        halved = jnp.where(jnp.isinf(high), 2 * t, (low + high) / 2)
        t = jnp.where((newton > low) & (newton < high), newton, halved)
    return t


LBFGS = Solver(
    Linear.zeros,
    start,
    step,
    lambda task, probe: probe,
    # All probes have taken as many steps: one number says which slot of the memory is next.
    axes=Slope(
        outputs=0,  # pyright: ignore[reportArgumentType]
        gradient=0,  # pyright: ignore[reportArgumentType]
        memory=optax.ScaleByLBFGSState(
            count=None,  # pyright: ignore[reportArgumentType]
            params=0,
            updates=0,
            diff_params_memory=0,
            diff_updates_memory=0,
            weights_memory=0,  # pyright: ignore[reportArgumentType]
        ),
    ),
    warm=True,
)
