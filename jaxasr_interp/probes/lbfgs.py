"""L-BFGS for linear probes: one step of the search for one probe.

A linear map makes the line search cheap: along a direction D the outputs are `z + t X D`, so a step
costs two products with the activations, however many lengths t the line search tries. Directions
come from optax's L-BFGS (Liu and Nocedal 1989).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxasr_interp.probes.linear import LinearProbe, Task, gradient
from jaxasr_interp.probes.losses import Loss
from jaxasr_interp.probes.solve import Solver, Step

_SEARCHES = 2
_OPTIMIZER = optax.scale_by_lbfgs(memory_size=5)


class LBFGSState(NamedTuple):
    """The state of the search for one probe.

    Attributes:
        outputs: outputs of the probe for every example.
        gradient: gradient of the objective at the probe.
        memory: the last steps, which optax's L-BFGS remembers.
    """

    outputs: Float[Array, "output example"]
    gradient: LinearProbe
    memory: optax.ScaleByLBFGSState


def init(
    x: Float[Array, "example feature"], task: Task, loss: Loss, probe: LinearProbe
) -> LBFGSState:
    """Return the state at a probe, with no steps remembered."""
    outputs = probe.outputs(x)
    memory = cast(Any, _OPTIMIZER.init)(probe)
    return LBFGSState(outputs, gradient(x, task, loss, probe, outputs), memory)


def step(
    x: Float[Array, "example feature"],
    task: Task,
    loss: Loss,
    probe: LinearProbe,
    state: LBFGSState,
) -> Step:
    """Move near the lowest point along the quasi-Newton direction."""
    # Inside, optax counts in other integers than JAX's strict promotion allows.
    with jax.numpy_dtype_promotion("standard"):
        away, memory = cast(Any, _OPTIMIZER.update)(state.gradient, state.memory, probe)
    decrement = jnp.asarray(optax.tree.vdot(away, state.gradient)) / 2
    # Rounding can spoil the memory. Then the step follows the gradient, and how much is left to
    # lose is not known.
    spoilt = decrement < 0
    away = jax.tree.map(lambda a, g: jnp.where(spoilt, g, a), away, state.gradient)
    decrement = jnp.where(spoilt, jnp.inf, decrement)
    direction = jax.tree.map(jnp.negative, away)
    along = direction.outputs(x)
    t = _search(_derivatives(task, loss, probe, state.outputs, direction, along), x.dtype)
    new = jax.tree.map(lambda w, d: w + t * d, probe, direction)
    outputs = state.outputs + t * along
    moved = LBFGSState(outputs, gradient(x, task, loss, new, outputs), memory)
    return Step(state.outputs, new, moved, decrement)


def _derivatives(
    task: Task,
    loss: Loss,
    probe: LinearProbe,
    outputs: Float[Array, "output example"],
    direction: LinearProbe,
    along: Float[Array, "output example"],
) -> Callable[[Array], tuple[Array, Array]]:
    """Return a function that gives both derivatives of the objective after a step of length t."""
    penalty = (task.l2 * jnp.square(task.scale))[None, :] * direction.kernel
    slope, bend = jnp.vdot(penalty, probe.kernel), jnp.vdot(penalty, direction.kernel)

    def at(t: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        z = outputs + t * along
        first = task.train @ (loss.gradient(z, task.labels) * along).sum(0)
        second = task.train @ loss.curvature(z, along)
        return first + slope + t * bend, second + bend

    return at


def _search(
    derivatives: Callable[[Array], tuple[Array, Array]], dtype: jnp.dtype
) -> Float[Array, ""]:
    """Find about where a convex function is lowest: Newton's method from 1, inside a bracket."""
    t = jnp.ones((), dtype)
    low, high = jnp.zeros_like(t), jnp.full_like(t, jnp.inf)
    for _ in range(_SEARCHES):
        slope, curvature = derivatives(t)
        low, high = jnp.where(slope < 0, t, low), jnp.where(slope < 0, high, t)
        newton = t - slope / curvature
        halved = jnp.where(jnp.isinf(high), 2 * t, (low + high) / 2)
        t = jnp.where((newton > low) & (newton < high), newton, halved)
    return t


LBFGS = Solver(
    LinearProbe.zeros,
    init,
    step,
    lambda task, probe: probe,
    # All probes have taken the same number of steps, so one count serves them all.
    axes=LBFGSState(
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
