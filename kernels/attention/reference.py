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
    # Dividing the result instead of the weights saves one pass over the scores.
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    z = jnp.einsum("hqk,hkd->hqd", weights.astype(q.dtype), v, preferred_element_type=wide)
    z = z / weights.sum(-1, keepdims=True)
    return jnp.swapaxes(z.astype(q.dtype), 0, 1)
