"""The lens readout in plain XLA: every other implementation is held against this one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.layers import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass

_CHUNK = 2048


def _fold[T](
    step: Callable[[T, Array, Array, Array], T],
    carry: T,
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
) -> T:
    """Fold `carry = step(carry, logits, embed, start)` over chunks of the vocabulary.

    Step by step `logits = hidden embedᵀ`, `[rows, chunk]` in float32 or wider, of the tokens from
    `start` on, whose embeddings are `embed`. The last chunk is moved back to end with the
    vocabulary, so that the matrix is never padded; the logits there that an earlier chunk has shown
    are the dtype's lowest number: finite, so that times a probability of 0 it stays 0.
    """
    d_vocab = len(unembedding)
    chunk = min(_CHUNK, d_vocab)
    wide = accumulation_dtype(hidden.dtype)

    def body(i: Array, carry: T) -> T:
        start = jnp.minimum(i * chunk, d_vocab - chunk)
        embed = jax.lax.dynamic_slice_in_dim(unembedding, start, chunk)
        logits = jnp.einsum("rd,vd->rv", hidden, embed, preferred_element_type=wide)
        unseen = start + jnp.arange(chunk, dtype=jnp.int32) >= i * chunk
        logits = jnp.where(unseen[None], logits, jnp.finfo(wide).min)
        return step(carry, logits, embed, start)

    first, end = jnp.zeros((), jnp.int32), jnp.asarray(-(-d_vocab // chunk), jnp.int32)
    return jax.lax.fori_loop(first, end, body, carry)


@jax.custom_vjp
def log_sum_exp(
    hidden: Float[Array, "rows d_model"], unembedding: Float[Array, "d_vocab d_model"]
) -> Float[Array, " rows"]:
    """See `jaxasr_interp.kernels.lens.log_sum_exp`."""
    return mean_embedding(hidden, unembedding)[0]


def mean_embedding(
    hidden: Float[Array, "rows d_model"], unembedding: Float[Array, "d_vocab d_model"]
) -> tuple[Float[Array, " rows"], Float[Array, "rows d_model"]]:
    """See `jaxasr_interp.kernels.lens.mean_embedding`."""
    wide = accumulation_dtype(hidden.dtype)

    def step(carry, logits, embed, start):
        largest, total, mean = carry
        new = jnp.maximum(largest, logits.max(1))
        weights, kept = jnp.exp(logits - new[:, None]), jnp.exp(largest - new)
        # Narrow weights would say the embedding to within 1 in 500 only.
        added = jnp.einsum("rv,vd->rd", weights, embed.astype(wide))
        return new, total * kept + weights.sum(1), mean * kept[:, None] + added

    rows = len(hidden)
    start = jnp.full(rows, jnp.finfo(wide).min, wide), jnp.zeros(rows, wide)
    carry = (*start, jnp.zeros(hidden.shape, wide))
    largest, total, mean = _fold(step, carry, hidden, unembedding)
    return largest + jnp.log(total), mean / total[:, None]


def _log_sum_exp_forward(hidden, unembedding):
    value, mean = mean_embedding(hidden, unembedding)
    return value, (hidden, unembedding, value, mean)


def _log_sum_exp_backward(saved, cotangent):
    """`∂lse/∂h = softmax(h Eᵀ) E`, known from the forward pass; `∂lse/∂E = softmax(h Eᵀ)ᵀ h`."""
    hidden, unembedding, value, mean = saved
    wide_hidden = hidden.astype(value.dtype)

    def step(gradient, logits, embed, start):
        weights = jnp.exp(logits - value[:, None]) * cotangent[:, None]
        added = jnp.einsum("rv,rd->vd", weights, wide_hidden)
        old = jax.lax.dynamic_slice_in_dim(gradient, start, len(added))
        return jax.lax.dynamic_update_slice_in_dim(gradient, old + added, start, 0)

    of_unembedding = _fold(step, jnp.zeros(unembedding.shape, value.dtype), hidden, unembedding)
    of_hidden = cotangent[:, None] * mean
    return of_hidden.astype(hidden.dtype), of_unembedding.astype(unembedding.dtype)


log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


@pytree_dataclass
class Readout:
    """What the next-token distribution `p = softmax(h Eᵀ)` of each row says.

    Attributes:
        top_tokens: the most probable tokens, best first.
        top_log_probs: their natural log-probabilities.
        target_log_prob: log-probability of the row's target token.
        target_rank: how many tokens have a higher logit than the target (0: it is the top).
        entropy: `-Σ p log p`, in nats.
        kl: `KL(p_final ‖ p)`, in nats.
    """

    top_tokens: Int[Array, "rows top"]
    top_log_probs: Float[Array, "rows top"]
    target_log_prob: Float[Array, " rows"]
    target_rank: Int[Array, " rows"]
    entropy: Float[Array, " rows"]
    kl: Float[Array, " rows"]


def readout(
    hidden: Float[Array, "rows d_model"],
    final: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " rows"],
    top_k: int,
) -> Readout:
    """See `jaxasr_interp.kernels.lens.readout`; the logits of all rows are materialised."""
    logits, final_logits = _logits(hidden, unembedding), _logits(final, unembedding)
    log_p, log_final = jax.nn.log_softmax(logits), jax.nn.log_softmax(final_logits)
    p, p_final = jnp.exp(log_p), jnp.exp(log_final)
    top_log_probs, top_tokens = jax.lax.top_k(log_p, top_k)
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=1)
    return Readout(
        top_tokens=top_tokens,
        top_log_probs=top_log_probs,
        target_log_prob=jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0],
        target_rank=(logits > target_logits).sum(1, dtype=jnp.int32),
        entropy=-(p * log_p).sum(1),
        kl=(p_final * (log_final - log_p)).sum(1),
    )


def _logits(
    hidden: Float[Array, "rows d_model"], unembedding: Float[Array, "d_vocab d_model"]
) -> Float[Array, "rows d_vocab"]:
    wide = hidden.dtype if jnp.finfo(hidden.dtype).bits >= 32 else jnp.float32
    return jnp.einsum("rd,vd->rv", hidden, unembedding, preferred_element_type=wide)
