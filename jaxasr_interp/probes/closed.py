"""Probes in closed form: ridge regression and linear discriminant analysis.

Both need one Gram matrix of the standardised training examples a split, and one Cholesky
factorisation a strength. Labels of classes are 1 for the class and 0 for the others in a ridge
regression (1 and -1 for two classes: the sign decides).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.probes.families import FAMILIES, Kind, Outputs, PerExample, indicators
from jaxasr_interp.probes.linear import Linear, Task


def ridge(
    x: Float[Array, "example feature"],
    task: Task,
    strengths: Float[Array, " strength"],
    kind: Kind,
    n_outputs: int,
) -> Linear:
    """Minimise `Σ train · ‖z - y‖² / 2 + λ/2 ‖W‖²` for every λ.

    Returns:
        Probes with a leading `strength` axis.
    """
    wanted = _wanted(task.labels, kind, n_outputs)
    centre = wanted @ task.train
    mean = task.train @ x
    own = (x - mean[None, :]) / task.scale[None, :]
    covariance = (own * task.train[:, None]).T @ own
    towards = ((wanted - centre[:, None]) * task.train[None, :]) @ own

    def solve(strength: Float[Array, ""]) -> Linear:
        probe = Linear(_solve(covariance, strength, towards), centre)
        return probe.unscaled(mean, task.scale)

    return jax.lax.map(solve, strengths)


def lda(
    x: Float[Array, "example feature"],
    task: Task,
    strengths: Float[Array, " strength"],
    kind: Kind,
    n_outputs: int,
) -> Linear:
    """Fisher's discriminant: `z_c = x Σ⁻¹ μ_c - μ_cᵀ Σ⁻¹ μ_c / 2 + log π_c`.

    Σ is the covariance within classes plus λ on its diagonal, μ_c the mean and π_c the share of
    class c in the training examples. With two classes the output is `z_1 - z_0`.

    Returns:
        Probes with a leading `strength` axis.
    """
    members = indicators(task.labels, 2 if kind == "binary" else n_outputs)
    weights = members * task.train[None, :]
    # A class that no training example has stays unlikely, and finite.
    shares = jnp.maximum(weights.sum(1), jnp.finfo(x.dtype).eps)
    mean = task.train @ x
    features = (x - mean[None, :]) / task.scale[None, :]
    means = (weights @ features) / shares[:, None]
    own = features - members.T @ means
    covariance = (own * task.train[:, None]).T @ own

    def solve(strength: Float[Array, ""]) -> Linear:
        kernel = _solve(covariance, strength, means)
        bias = jnp.log(shares) - (kernel * means).sum(1) / 2
        if kind == "binary":
            kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
        return Linear(kernel, bias).unscaled(mean, task.scale)

    return jax.lax.map(solve, strengths)


def _squared(outputs: Outputs, labels: PerExample, kind: Kind) -> PerExample:
    return jnp.square(outputs - _wanted(labels, kind, len(outputs))).sum(0) / 2


def _cross_entropy(outputs: Outputs, labels: PerExample, kind: Kind) -> PerExample:
    return FAMILIES[kind].loss(outputs, labels)


CLOSED = {"ridge": (ridge, _squared), "lda": (lda, _cross_entropy)}
"""The probes that need no search, each with the loss that it is judged by."""


def _wanted(labels: PerExample, kind: Kind, n_outputs: int) -> Outputs:
    """What the outputs of a ridge regression should be."""
    if kind == "classes":
        return indicators(labels, n_outputs)
    return (2 * labels - 1 if kind == "binary" else labels)[None, :]


def _solve(
    covariance: Float[Array, "feature feature_"],
    strength: Float[Array, ""],
    towards: Float[Array, "output feature"],
) -> Float[Array, "output feature"]:
    """`towards (covariance + λ I)⁻¹`."""
    ridged = covariance + strength * jnp.eye(len(covariance), dtype=covariance.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(ridged), True), towards.T).T
