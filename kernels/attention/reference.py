"""Shared-key attention in XLA: all scores exist at once, in float32 or wider."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxasr_interp.numerics import accumulation_dtype


def attend(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None,
) -> Float[Array, "query head d_head"]:
    """See `api.attend`."""
    wide = accumulation_dtype(q.dtype)
    # Heads come first on both sides of each dot: on CPU other layouts are twice as slow.
    q = jnp.swapaxes(q * q.shape[-1] ** -0.5, 0, 1)
    scores = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=wide)
    if mask is not None:
        scores = jnp.where(mask[None], scores, -jnp.inf)
    weights, total = weights_of(scores)
    z = jnp.einsum("hqk,hkd->hqd", weights.astype(q.dtype), v, preferred_element_type=wide) / total
    return jnp.swapaxes(z.astype(q.dtype), 0, 1)


def weights_of(
    scores: Float[Array, "*head query key"],
) -> tuple[Float[Array, "*head query key"], Float[Array, "*head query 1"]]:
    """The softmax's numerators and their sum; 0 and 1 for a query that may attend to no key.

    Dividing the result instead of the weights saves one pass over the scores.
    """
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(largest == -jnp.inf, 0.0, largest))
    total = weights.sum(-1, keepdims=True)
    return weights, jnp.where(total == 0, 1.0, total)
