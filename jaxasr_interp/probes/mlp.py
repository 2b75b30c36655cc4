"""A probe with one hidden layer, which can read what no linear map can."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.probes.linear import LinearProbe
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class MLPProbe:
    """`z = W₂ relu(W₁ x + b₁) + b₂`.

    Attributes:
        hidden: W₁ and b₁.
        readout: W₂ and b₂.
    """

    hidden: LinearProbe
    readout: LinearProbe

    @classmethod
    def random(
        cls, key: Array, n_features: int, n_hidden: int, n_outputs: int, dtype: jnp.dtype
    ) -> "MLPProbe":
        """Draw weights with which both layers keep the variance (He et al. 2015)."""
        first, second = jax.random.split(key)
        into = jax.random.normal(first, (n_hidden, n_features), dtype) * (2 / n_features) ** 0.5
        out = jax.random.normal(second, (n_outputs, n_hidden), dtype) * n_hidden**-0.5
        return cls(
            LinearProbe(into, jnp.zeros(n_hidden, dtype)),
            LinearProbe(out, jnp.zeros(n_outputs, dtype)),
        )

    def outputs(self, x: Float[Array, "example feature"]) -> Float[Array, "output example"]:
        """`z` of every example."""
        hidden = jax.nn.relu(self.hidden.outputs(x))
        return self.readout.kernel @ hidden + self.readout.bias[:, None]

    def unscaled(
        self, centre: Float[Array, " feature"], spread: Float[Array, " feature"]
    ) -> "MLPProbe":
        """The same map of `x`, where this is a map of `(x - centre) / spread`."""
        return MLPProbe(self.hidden.unscaled(centre, spread), self.readout)

    def rescaled(self, offset: Float[Array, ""], unit: Float[Array, ""]) -> "MLPProbe":
        """The probe whose outputs are `offset + unit · z`."""
        return MLPProbe(self.hidden, self.readout.rescaled(offset, unit))
