"""A linear probe and what it is fitted to, each written for one probe.

Features standardised with the deviation of the probe's own training examples are a matter of the
penalty alone: `W ((x - mean) / scale) + b = V x + c` with `V = W / scale`, and `‖W‖² = ‖scale V‖²`.
So all probes share one matrix of activations and, under `vmap`, one matrix product.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.probes.families import Family
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Task:
    """What one probe learns.

    Attributes:
        labels: of every example: class numbers, or values.
        train: weight of each example in the training loss; they sum to 1.
        validation: the same in the validation loss; all 0 where nothing is held out.
        mean: of each feature over the training examples.
        scale: standard deviation of each feature there, 1 where it is constant.
        strength: λ, of the penalty on the weights of standardised features.
    """

    labels: Float[Array, " example"]
    train: Float[Array, " example"]
    validation: Float[Array, " example"]
    mean: Float[Array, " feature"]
    scale: Float[Array, " feature"]
    strength: Float[Array, ""]


@pytree_dataclass
class Linear:
    """`z = V x + c`.

    Attributes:
        kernel: V.
        bias: c, which no penalty holds.
    """

    kernel: Float[Array, "output feature"]
    bias: Float[Array, " output"]

    @classmethod
    def zeros(cls, n_features: int, n_outputs: int, dtype: jnp.dtype) -> "Linear":
        """A probe that says nothing yet."""
        return cls(jnp.zeros((n_outputs, n_features), dtype), jnp.zeros(n_outputs, dtype))

    def outputs(self, x: Float[Array, "example feature"]) -> Float[Array, "output example"]:
        """`z` of every example."""
        return self.kernel @ x.T + self.bias[:, None]

    def unscaled(
        self, centre: Float[Array, " feature"], spread: Float[Array, " feature"]
    ) -> "Linear":
        """The same map of `x`, where this is one of `(x - centre) / spread`."""
        kernel = self.kernel / spread[None, :]
        return Linear(kernel, self.bias - kernel @ centre)

    def rescaled(self, offset: Float[Array, ""], unit: Float[Array, ""]) -> "Linear":
        """`offset + unit · z`."""
        return Linear(unit * self.kernel, offset + unit * self.bias)


def mean_loss(
    family: Family,
    outputs: Float[Array, "output example"],
    labels: Float[Array, " example"],
    weights: Float[Array, " example"],
) -> Float[Array, ""]:
    """`Σ weight · ℓ(z, y)`."""
    return weights @ family.loss(outputs, labels)


def gradient(
    x: Float[Array, "example feature"],
    task: Task,
    family: Family,
    probe: Linear,
    outputs: Float[Array, "output example"],
) -> Linear:
    """Gradient of `Σ train · ℓ(z, y) + λ/2 ‖scale V‖²`."""
    slope = task.train[None, :] * family.slope(outputs, task.labels)
    held = task.strength * jnp.square(task.scale)
    return Linear(slope @ x + held[None, :] * probe.kernel, slope.sum(1))
