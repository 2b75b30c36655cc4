"""The search for many probes on the same activations: the loop that all solvers share.

A solver defines one step of one probe. Here the step is `vmap`ped over probes and repeated until
each probe has converged, has stopped getting better on its validation examples, or has taken all
its steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.probes.grid import Features, SplitWeights, make_tasks
from jaxasr_interp.probes.linear import LinearProbe, Task
from jaxasr_interp.probes.losses import Loss
from jaxasr_interp.probes.mlp import MLPProbe
from jaxasr_interp.pytree import pytree_dataclass, replace

Probe = LinearProbe | MLPProbe

# The steps before tell how much is left to lose, and that has to be little twice in a row.
_LEAST_STEPS = 4


class Step(NamedTuple):
    """The result of one step of a solver.

    Attributes:
        outputs: outputs of the probe that the step started from.
        probe: the next probe.
        state: the next state of the solver.
        decrement: estimate of how much the objective can still fall; 0 ends the search.
    """

    outputs: Float[Array, "output example"]
    probe: Probe
    state: Any
    decrement: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Solver:
    """How one probe is fitted, one step after another.

    Attributes:
        first: `(n_features, n_outputs, dtype) -> probe`, the probe that a search begins with.
        init: `(x, task, loss, probe) -> state`.
        step: `(x, task, loss, probe, state) -> Step`.
        plain: `(task, probe) -> probe`: turns the solver's probe into one that reads activations
            as they are.
        axes: the `probe` axis of a batch of states, as `jax.vmap` takes it.
        warm: whether a search begins with the probe of the next larger penalty.
    """

    first: Callable[..., Probe]
    init: Callable[..., Any]
    step: Callable[..., Step]
    plain: Callable[..., Probe]
    axes: Any = 0
    warm: bool = False


@dataclasses.dataclass(frozen=True)
class Search:
    """A solver, what it minimises, and when it ends.

    Attributes:
        solver: takes the steps.
        loss: loss of one example.
        n_outputs: number of outputs of every probe.
        steps: most steps to take with each penalty.
        tolerance: a probe is done when its objective seems to have no more than this share of an
            empty probe's loss left to lose, divided by the square of the outputs.
        patience: a probe is done after this many steps without a better validation loss, and the
            best probe is returned; `None` to go on until it has converged.
    """

    solver: Solver
    loss: Loss
    n_outputs: int
    steps: int
    tolerance: float
    patience: int | None


@pytree_dataclass
class Solution:
    """A fitted probe.

    Attributes:
        probe: its weights.
        outputs: its outputs for every example, training or not.
        train_loss: `Σ train · ℓ`, without the penalty.
        validation_loss: `Σ validation · ℓ`.
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


@functools.partial(jax.jit, static_argnames="search")
def fit_splits(
    features: Features,
    weights: SplitWeights,
    l2: Float[Array, " l2"],
    splits: Int[Array, " probe"],
    search: Search,
) -> Solution:
    """Search for the probes of some splits.

    Args:
        features: activations of one layer.
        weights: labels and weights of all splits.
        l2: penalties, the largest first.
        splits: indices of the splits.
        search: how to search.

    Returns:
        Solutions with leading axes `[l2, probe]`.
    """
    found = fit_path(features.x, make_tasks(features, weights, splits), l2, search)
    in_units = jax.vmap(rescale, in_axes=(0, None, None))
    return in_units(found, weights.offset[splits], weights.unit[splits])


def rescale(
    found: Solution, offset: Float[Array, " probe"], unit: Float[Array, " probe"]
) -> Solution:
    """Turn solutions for `(value - offset) / unit` into solutions for the values themselves."""

    def one(found: Solution, offset: Float[Array, ""], unit: Float[Array, ""]) -> Solution:
        return Solution(
            found.probe.rescaled(offset, unit),
            offset + unit * found.outputs,
            jnp.square(unit) * found.train_loss,
            jnp.square(unit) * found.validation_loss,
        )

    return jax.vmap(one)(found, offset, unit)


def fit_path(
    x: Float[Array, "example feature"], tasks: Task, l2: Float[Array, " l2"], search: Search
) -> Solution:
    """Fit one probe to each task with every penalty.

    A warm solver goes from the largest penalty to the smallest, and each search begins where the
    last one ended (the regularisation path of Friedman et al. 2010), which halves its steps.

    Args:
        x: activations, which all probes share.
        tasks: with a leading `probe` axis; their own `l2` is replaced.
        l2: penalties, the largest first.
        search: how to search.

    Returns:
        The probes, with leading `l2` and `probe` axes.
    """
    n_probes = len(tasks.l2)
    empty = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (n_probes, *leaf.shape)),
        search.solver.first(x.shape[1], search.n_outputs, x.dtype),
    )

    def with_penalty(probe: Probe, penalty: Float[Array, ""]) -> tuple[Probe, Solution]:
        own = replace(tasks, l2=jnp.broadcast_to(penalty, (n_probes,)))
        return _fit(x, own, probe if search.solver.warm else empty, search)

    return jax.lax.scan(with_penalty, empty, l2)[1]


def _fit(
    x: Float[Array, "example feature"], tasks: Task, probe: Probe, search: Search
) -> tuple[Probe, Solution]:
    """Fit one probe to each task, beginning with `probe`."""
    solver, loss = search.solver, search.loss
    state = jax.vmap(lambda task, probe: solver.init(x, task, loss, probe), out_axes=solver.axes)(
        tasks, probe
    )
    step = jax.vmap(
        lambda task, probe, state: solver.step(x, task, loss, probe, state),
        in_axes=(0, 0, solver.axes),
        out_axes=Step(0, 0, solver.axes, 0),  # pyright: ignore[reportArgumentType]
    )
    mean_loss = jax.vmap(loss.mean)
    zeros = jnp.zeros((len(tasks.l2), search.n_outputs, len(x)), x.dtype)
    # With more outputs, the few steps remembered show less of what is left to lose.
    enough = search.tolerance / search.n_outputs**2 * mean_loss(zeros, tasks.labels, tasks.train)
    infinite = jnp.full_like(tasks.l2, jnp.inf)
    best = _Best(probe, infinite, jnp.zeros(len(infinite), jnp.int32))
    validates = (tasks.validation > 0).any(1)

    def advance(carry):
        taken, done, was_low, probe, state, best = carry
        new = step(tasks, probe, state)
        low = new.decrement <= enough
        stop = done | (low & was_low & (taken >= _LEAST_STEPS))
        if search.patience is not None:
            validation_loss = mean_loss(new.outputs, tasks.labels, tasks.validation)
            # A task without validation examples goes on to its last step.
            better = ~done & ((validation_loss < best.loss) | ~validates)
            best = _Best(
                _where(better, probe, best.probe),
                jnp.where(better, validation_loss, best.loss),
                jnp.where(better, 0, best.since + 1),
            )
            stop |= best.since >= search.patience
        return taken + 1, stop, low, _where(done, probe, new.probe), new.state, best

    no = infinite < 0
    carry = (jnp.zeros((), jnp.int32), no, no, probe, state, best)
    going = lambda carry: (carry[0] < search.steps) & ~carry[1].all()  # noqa: E731
    *_, probe, _, best = jax.lax.while_loop(going, advance, carry)
    if search.patience is not None:
        probe = best.probe

    def read(found: Probe, task: Task) -> Solution:
        probe = solver.plain(task, found)
        outputs = probe.outputs(x)
        train, validation = (
            loss.mean(outputs, task.labels, weights) for weights in (task.train, task.validation)
        )
        return Solution(probe, outputs, train, validation)

    return probe, jax.vmap(read)(probe, tasks)


def _where(chosen: Bool[Array, " probe"], these: Probe, those: Probe) -> Probe:
    def pick(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, these, those)
