"""Shared-key attention by NVIDIA's fused kernels, through JAX: no scores are written."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import reference


def attend(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None,
) -> Float[Array, "query head d_head"]:
    """See `api.attend`."""
    # JAX's own gradients of it cannot be batched in every way.
    return reference.differentiable(_attend, reference.attend)(q, k, v, mask)


def _attend(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    k, v = (x.swapaxes(0, 1)[None] for x in (k, v))
    among = None if mask is None else mask[None, None]
    (z,) = jax.nn.dot_product_attention(q[None], k, v, mask=among, implementation="cudnn")
    # Where no key may be seen, cuDNN takes the mean of all values.
    return z if mask is None else jnp.where(mask.any(-1)[:, None, None], z, jnp.zeros_like(z))
