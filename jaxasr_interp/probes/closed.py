"""Probes in closed form: ridge regression and linear discriminant analysis.

Both need one Gram matrix of the standardised training examples for each split, and one Cholesky
factorisation for each penalty. A ridge regression of several classes aims at 1 for the class of an
example and 0 for the others; one of two classes aims at 1 and -1, and the sign decides.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.probes.grid import Features, SplitWeights, make_tasks
from jaxasr_interp.probes.linear import LinearProbe, Task
from jaxasr_interp.probes.losses import LOSSES, Kind, Outputs, PerExample, indicators
from jaxasr_interp.probes.solve import Solution, rescale


def ridge(
    x: Float[Array, "example feature"],
    task: Task,
    l2: Float[Array, " l2"],
    kind: Kind,
    n_outputs: int,
) -> LinearProbe:
    """Minimise `Σ train · ‖z - y‖² / 2 + λ/2 ‖W‖²` for every λ.

    Returns:
        Probes with a leading `l2` axis.
    """
    wanted = _wanted(task.labels, kind, n_outputs)
    centre = wanted @ task.train
    mean = task.train @ x
    own = (x - mean[None, :]) / task.scale[None, :]
    covariance = (own * task.train[:, None]).T @ own
    towards = ((wanted - centre[:, None]) * task.train[None, :]) @ own

    def solve(penalty: Float[Array, ""]) -> LinearProbe:
        probe = LinearProbe(_solve(covariance, penalty, towards), centre)
        return probe.unscaled(mean, task.scale)

    return jax.lax.map(solve, l2)


def lda(
    x: Float[Array, "example feature"],
    task: Task,
    l2: Float[Array, " l2"],
    kind: Kind,
    n_outputs: int,
) -> LinearProbe:
    """Compute Fisher's discriminant: `z_c = x Σ⁻¹ μ_c - μ_cᵀ Σ⁻¹ μ_c / 2 + log π_c`.

    Σ is the covariance within classes plus λ on its diagonal, μ_c the mean and π_c the share of
    class c in the training examples. With two classes the output is `z_1 - z_0`.

    Returns:
        Probes with a leading `l2` axis.
    """
    members = indicators(task.labels, 2 if kind == "binary" else n_outputs)
    weights = members * task.train[None, :]
    # A class without training examples stays unlikely, and its logarithm finite.
    shares = jnp.maximum(weights.sum(1), jnp.finfo(x.dtype).eps)
    mean = task.train @ x
    features = (x - mean[None, :]) / task.scale[None, :]
    means = (weights @ features) / shares[:, None]
    own = features - members.T @ means
    covariance = (own * task.train[:, None]).T @ own

    def solve(penalty: Float[Array, ""]) -> LinearProbe:
        kernel = _solve(covariance, penalty, means)
        bias = jnp.log(shares) - (kernel * means).sum(1) / 2
        if kind == "binary":
            kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
        return LinearProbe(kernel, bias).unscaled(mean, task.scale)

    return jax.lax.map(solve, l2)


def _squared(outputs: Outputs, labels: PerExample, kind: Kind) -> PerExample:
    return jnp.square(outputs - _wanted(labels, kind, len(outputs))).sum(0) / 2


def _cross_entropy(outputs: Outputs, labels: PerExample, kind: Kind) -> PerExample:
    return LOSSES[kind].value(outputs, labels)


CLOSED = {"ridge": (ridge, _squared), "lda": (lda, _cross_entropy)}
"""The methods that need no search, each with the loss that it is judged by."""


@functools.partial(jax.jit, static_argnames=("method", "kind", "n_outputs"))
def solve_closed(
    features: Features,
    weights: SplitWeights,
    l2: Float[Array, " l2"],
    method: str,
    kind: Kind,
    n_outputs: int,
) -> Solution:
    """Solve for the probes of all splits.

    Args:
        features: activations of one layer.
        weights: labels and weights of the splits.
        l2: penalties.
        method: `"ridge"` or `"lda"`.
        kind: of the labels.
        n_outputs: of every probe.

    Returns:
        Solutions with leading axes `[l2, split]`.
    """
    solve, loss = CLOSED[method]

    def split(task: Task) -> Solution:
        probes = solve(features.x, task, l2, kind, n_outputs)

        def read(probe: LinearProbe) -> Solution:
            outputs = probe.outputs(features.x)
            each = loss(outputs, task.labels, kind)
            return Solution(probe, outputs, task.train @ each, task.validation @ each)

        return jax.vmap(read)(probes)

    found = jax.lax.map(split, make_tasks(features, weights))
    return jax.vmap(rescale, in_axes=(1, None, None))(found, weights.offset, weights.unit)


def _wanted(labels: PerExample, kind: Kind, n_outputs: int) -> Outputs:
    """Return the outputs that a ridge regression aims at."""
    if kind == "classes":
        return indicators(labels, n_outputs)
    return (2 * labels - 1 if kind == "binary" else labels)[None, :]


def _solve(
    covariance: Float[Array, "feature feature_"],
    penalty: Float[Array, ""],
    towards: Float[Array, "output feature"],
) -> Float[Array, "output feature"]:
    """Return `towards (covariance + λ I)⁻¹`."""
    ridged = covariance + penalty * jnp.eye(len(covariance), dtype=covariance.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(ridged), True), towards.T).T
