"""The lens readout in plain XLA: every other implementation is held against this one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.pytree import pytree_dataclass


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
