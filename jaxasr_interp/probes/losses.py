"""What a probe minimises: a convex loss for each kind of label, with its derivatives.

Each function takes the outputs of all examples, `[output, example]`, and returns one value for each
example.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kind = Literal["binary", "classes", "regression"]
Outputs = Float[Array, "output example"]
PerExample = Float[Array, " example"]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss `ℓ(z, y)` of outputs z and labels y.

    Attributes:
        value: ℓ.
        gradient: `∂ℓ/∂z`, for every output.
        curvature: `vᵀ (∂²ℓ/∂z²) v`, of the outputs and a change v of them.
    """

    value: Callable[[Outputs, PerExample], PerExample]
    gradient: Callable[[Outputs, PerExample], Outputs]
    curvature: Callable[[Outputs, Outputs], PerExample]

    def mean(
        self,
        outputs: Float[Array, "output example"],
        labels: Float[Array, " example"],
        weights: Float[Array, " example"],
    ) -> Float[Array, ""]:
        """`Σ weight · ℓ(z, y)`."""
        return weights @ self.value(outputs, labels)


def _binary_curvature(z: Outputs, v: Outputs) -> PerExample:
    p = jax.nn.sigmoid(z[0])
    return p * (1 - p) * jnp.square(v[0])


def indicators(labels: PerExample, n_classes: int) -> Float[Array, "class example"]:
    """Return 1 for the class of each example and 0 for the other classes."""
    numbers = jnp.arange(n_classes, dtype=labels.dtype)
    return (numbers[:, None] == labels[None, :]).astype(labels.dtype)


def _classes_curvature(z: Outputs, v: Outputs) -> PerExample:
    p = jax.nn.softmax(z, axis=0)
    return (p * jnp.square(v)).sum(0) - jnp.square((p * v).sum(0))


LOSSES: dict[Kind, Loss] = {
    "binary": Loss(
        lambda z, y: jax.nn.softplus(z[0]) - y * z[0],
        lambda z, y: jax.nn.sigmoid(z) - y[None, :],
        _binary_curvature,
    ),
    "classes": Loss(
        lambda z, y: jax.nn.logsumexp(z, axis=0) - (z * indicators(y, len(z))).sum(0),
        lambda z, y: jax.nn.softmax(z, axis=0) - indicators(y, len(z)),
        _classes_curvature,
    ),
    "regression": Loss(
        lambda z, y: jnp.square(z[0] - y) / 2,
        lambda z, y: z - y[None, :],
        lambda z, v: jnp.square(v[0]),
    ),
}
"""Cross-entropy of `σ(z)`, cross-entropy of `softmax(z)`, and half the squared error."""
