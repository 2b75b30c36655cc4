"""A linear probe and the task that it is fitted to, each written for one probe.

Each probe standardises the features with the mean and deviation of its own training examples. Only
the penalty depends on this: `W ((x - mean) / scale) + b = V x + c` with `V = W / scale`, and
`‖W‖² = ‖scale V‖²`. So all probes share one matrix of activations and, under `vmap`, one matrix
product.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.probes.losses import Loss
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Task:
    """What one probe learns.

    Attributes:
        labels: of every example: class numbers, or values.
        train: weight of each example in the training loss; they sum to 1.
        validation: weight of each example in the validation loss; all are 0 where no example
            validates.
        mean: of each feature over the training examples.
        scale: standard deviation of each feature over them, 1 where the feature is constant.
        l2: λ, the strength of the penalty on the weights of standardised features.
    """

    labels: Float[Array, " example"]
    train: Float[Array, " example"]
    validation: Float[Array, " example"]
    mean: Float[Array, " feature"]
    scale: Float[Array, " feature"]
    l2: Float[Array, ""]


@pytree_dataclass
class LinearProbe:
    """`z = V x + c`.

    Attributes:
        kernel: V.
        bias: c, which the penalty leaves out.
    """

    kernel: Float[Array, "output feature"]
    bias: Float[Array, " output"]

    @classmethod
    def zeros(cls, n_features: int, n_outputs: int, dtype: jnp.dtype) -> "LinearProbe":
        """A probe whose outputs are all 0."""
        return cls(jnp.zeros((n_outputs, n_features), dtype), jnp.zeros(n_outputs, dtype))

    def outputs(self, x: Float[Array, "example feature"]) -> Float[Array, "output example"]:
        """`z` of every example."""
        return self.kernel @ x.T + self.bias[:, None]

    def unscaled(
        self, centre: Float[Array, " feature"], spread: Float[Array, " feature"]
    ) -> "LinearProbe":
        """The same map of `x`, where this is a map of `(x - centre) / spread`."""
        kernel = self.kernel / spread[None, :]
        return LinearProbe(kernel, self.bias - kernel @ centre)

    def rescaled(self, offset: Float[Array, ""], unit: Float[Array, ""]) -> "LinearProbe":
        """The probe whose outputs are `offset + unit · z`."""
        return LinearProbe(unit * self.kernel, offset + unit * self.bias)


def gradient(
    x: Float[Array, "example feature"],
    task: Task,
    loss: Loss,
    probe: LinearProbe,
    outputs: Float[Array, "output example"],
) -> LinearProbe:
    """Gradient of the objective `Σ train · ℓ(z, y) + λ/2 ‖scale V‖²`."""
    by_output = task.train[None, :] * loss.gradient(outputs, task.labels)
    penalty = task.l2 * jnp.square(task.scale)
    return LinearProbe(by_output @ x + penalty[None, :] * probe.kernel, by_output.sum(1))
