"""Shared-key attention in XLA: all scores exist at once, in float32 or wider."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxasr_interp.numerics import accumulation_dtype

type Attend = Callable[[Array, Array, Array, Array | None], Array]


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


def differentiable(run: Attend) -> Attend:
    """Give a fused kernel gradients by XLA, which computes the scores anew."""

    def forward(
        q: Array, k: Array, v: Array, mask: Array | None
    ) -> tuple[Array, tuple[Array, Array, Array, Array | None]]:
        return run(q, k, v, mask), (q, k, v, mask)

    def backward(
        saved: tuple[Array, Array, Array, Array | None], cotangent: Array
    ) -> tuple[Array, Array, Array, None]:
        q, k, v, mask = saved
        _, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
        return *pull(cotangent), None

    found = jax.custom_vjp(run)
    found.defvjp(forward, backward)
    return found


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
