"""Shared-key attention in XLA: all scores exist at once, in float32 or wider."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxasr_interp.numerics import accumulation_dtype

type Attended = tuple[Float[Array, "query head d_head"], Float[Array, "query head"]]


def attend(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None,
) -> Float[Array, "query head d_head"]:
    """See `api.attend`."""
    return attend_part(q, k, v, mask)[0]


def attend_part(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None,
) -> Attended:
    """See `api.attend_part`."""
    wide = accumulation_dtype(q.dtype)
    # Heads come first on both sides of each dot: on CPU other layouts are twice as slow.
    q = jnp.swapaxes(q * q.shape[-1] ** -0.5, 0, 1)
    scores = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=wide)
    seen = None if mask is None else mask.any(-1, keepdims=True)
    if mask is not None and seen is not None:
        # A query that sees no key is let see all, so that its numbers, and gradients, are finite.
        scores = jnp.where((mask | ~seen)[None], scores, -jnp.inf)
    # Dividing the result instead of the weights saves one pass over the scores.
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    z = jnp.einsum("hqk,hkd->hqd", weights.astype(q.dtype), v, preferred_element_type=wide)
    z, log_sum = z / total, largest + jnp.log(total)
    if seen is not None:
        z = jnp.where(seen[None], z, jnp.zeros_like(z))
        log_sum = jnp.where(seen[None], log_sum, -jnp.inf)
    return jnp.swapaxes(z.astype(q.dtype), 0, 1), jnp.swapaxes(log_sum[..., 0], 0, 1)


def differentiable[Result](
    run: Callable[..., Result], by_xla: Callable[..., Result]
) -> Callable[..., Result]:
    """Give a fused kernel the gradients of `by_xla`, which computes the scores anew."""

    def forward(
        q: Array, k: Array, v: Array, mask: Array | None
    ) -> tuple[Result, tuple[Array, Array, Array, Array | None]]:
        return run(q, k, v, mask), (q, k, v, mask)

    def backward(
        saved: tuple[Array, Array, Array, Array | None], cotangent: Result
    ) -> tuple[Array, Array, Array, None]:
        q, k, v, mask = saved
        _, pull = jax.vjp(lambda q, k, v: by_xla(q, k, v, mask), q, k, v)
        return *pull(cotangent), None

    found = jax.custom_vjp(run)
    found.defvjp(forward, backward)
    return found
