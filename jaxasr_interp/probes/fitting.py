"""Fitting many probes on the same activations: the loop that all solvers share.

One step of one probe is a solver's; here it is `vmap`ped over probes and repeated until each has
converged, has stopped getting better on its validation examples, or has taken all its steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.probes.families import FAMILIES, Family, Kind
from jaxasr_interp.probes.linear import Linear, Task, mean_loss
from jaxasr_interp.probes.mlp import MLPProbe
from jaxasr_interp.pytree import pytree_dataclass, replace

Probe = Linear | MLPProbe

# What can still be lost is estimated from the steps before, and has to look small twice.
_LEAST_STEPS = 4


class Step(NamedTuple):
    """What a solver's step gives.

    Attributes:
        outputs: of the probe that the step started from.
        probe: the next one.
        state: of the solver.
        decrement: estimate of what the objective can still lose, 0 to stop.
    """

    outputs: Float[Array, "output example"]
    probe: Probe
    state: Any
    decrement: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Solver:
    """How one probe is fitted, one step after another.

    Attributes:
        empty: `(n_features, n_outputs, dtype) -> probe` to begin with.
        start: `(x, task, family, probe) -> state`.
        step: `(x, task, family, probe, state) -> Step`.
        plain: `(task, probe) -> probe` for the activations, of what the solver calls its probe.
        axes: where a batch of states has its `probe` axis, as `jax.vmap` takes it.
        warm: whether to begin with the probe of the next larger strength.
    """

    empty: Callable[..., Probe]
    start: Callable[..., Any]
    step: Callable[..., Step]
    plain: Callable[..., Probe]
    axes: Any = 0
    warm: bool = False


@pytree_dataclass
class Solution:
    """A fitted probe.

    Attributes:
        probe: its weights.
        outputs: of every example, training or not.
        train_loss: `Σ train · ℓ`, without the penalty.
        validation_loss: the same on the validation examples.
    """

    probe: Probe
    outputs: Float[Array, "output example"]
    train_loss: Float[Array, ""]
    validation_loss: Float[Array, ""]


@pytree_dataclass
class _Best:
    """The probes with the lowest validation loss so far, and how many steps ago that was."""

    probe: Probe
    loss: Float[Array, " probe"]
    since: Int[Array, " probe"]


def fit_path(
    x: Float[Array, "example feature"],
    tasks: Task,
    strengths: Float[Array, " strength"],
    *,
    solver: Solver,
    kind: Kind,
    n_outputs: int,
    steps: int,
    tolerance: float,
    patience: int | None,
) -> Solution:
    """Fit one probe to each task with every strength.

    A convex search goes from the largest strength to the smallest, each beginning where the last
    one ended (the regularisation path of Friedman et al. 2010), which halves its steps.

    Args:
        x: activations, which all probes share.
        tasks: with a leading `probe` axis; their own strength is not looked at.
        strengths: the largest first.
        solver: how.
        kind: of the labels.
        n_outputs: of every probe.
        steps: most steps to take with each strength.
        tolerance: a probe is done when its objective seems to have no more than this share of an
            empty probe's loss left to lose, divided by the square of the outputs.
        patience: steps without a better validation loss after which a probe is done, and the best
            one is returned; `None` to go on until it has converged.

    Returns:
        The probes, with leading `strength` and `probe` axes.
    """
    n_probes = len(tasks.strength)
    empty = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (n_probes, *leaf.shape)),
        solver.empty(x.shape[1], n_outputs, x.dtype),
    )

    def with_strength(probe: Probe, strength: Float[Array, ""]) -> tuple[Probe, Solution]:
        own = replace(tasks, strength=jnp.broadcast_to(strength, (n_probes,)))
        begin = probe if solver.warm else empty
        return _fit(x, own, begin, n_outputs, solver, FAMILIES[kind], steps, tolerance, patience)

    return jax.lax.scan(with_strength, empty, strengths)[1]


def _fit(
    x: Float[Array, "example feature"],
    tasks: Task,
    probe: Probe,
    n_outputs: int,
    solver: Solver,
    family: Family,
    steps: int,
    tolerance: float,
    patience: int | None,
) -> tuple[Probe, Solution]:
    """Fit one probe to each task, beginning with `probe`."""
    state = jax.vmap(
        lambda task, probe: solver.start(x, task, family, probe), out_axes=solver.axes
    )(tasks, probe)
    step = jax.vmap(
        lambda task, probe, state: solver.step(x, task, family, probe, state),
        in_axes=(0, 0, solver.axes),
        out_axes=Step(0, 0, solver.axes, 0),  # pyright: ignore[reportArgumentType]
    )
    loss = jax.vmap(functools.partial(mean_loss, family))
    silent = jnp.zeros((len(tasks.strength), n_outputs, len(x)), x.dtype)
    # The more outputs, the less the few steps remembered show of what is left to lose.
    enough = tolerance / n_outputs**2 * loss(silent, tasks.labels, tasks.train)
    infinite = jnp.full_like(tasks.strength, jnp.inf)
    best = _Best(probe, infinite, jnp.zeros(len(infinite), jnp.int32))
    holds_out = (tasks.validation > 0).any(1)

    def advance(carry):
        taken, done, was_low, probe, state, best = carry
        new = step(tasks, probe, state)
        low = new.decrement <= enough
        stop = done | (low & was_low & (taken >= _LEAST_STEPS))
        if patience is not None:
            held_out = loss(new.outputs, tasks.labels, tasks.validation)
            # A task that holds nothing out goes on to its last step.
            better = ~done & ((held_out < best.loss) | ~holds_out)
            best = _Best(
                _where(better, probe, best.probe),
                jnp.where(better, held_out, best.loss),
                jnp.where(better, 0, best.since + 1),
            )
            stop |= best.since >= patience
        return taken + 1, stop, low, _where(done, probe, new.probe), new.state, best

    no = infinite < 0
    carry = (jnp.zeros((), jnp.int32), no, no, probe, state, best)
    going = lambda carry: (carry[0] < steps) & ~carry[1].all()  # noqa: E731
    *_, probe, _, best = jax.lax.while_loop(going, advance, carry)
    if patience is not None:
        probe = best.probe

    def read(found: Probe, task: Task) -> Solution:
        probe = solver.plain(task, found)
        outputs = probe.outputs(x)
        train, validation = (
            mean_loss(family, outputs, task.labels, weights)
            for weights in (task.train, task.validation)
        )
        return Solution(probe, outputs, train, validation)

    return probe, jax.vmap(read)(probe, tasks)


def _where(chosen: Bool[Array, " probe"], these: Probe, those: Probe) -> Probe:
    def pick(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, these, those)
