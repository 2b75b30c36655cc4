"""The lens readout in plain XLA, against which every other implementation is tested."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass

# Tokens in a chunk. Processor seconds of the readout of six layers of `base` (d_model 512), on two
# cores:
#   chunk           512   1024   2048   4096   8192   whole vocabulary
#   32 positions   0.23   0.20   0.21   0.23   0.25   0.24
#   128 positions  0.74   0.71   0.72   0.74   0.83   1.09
# Narrower chunks make the matrix products too small, wider ones do not fit into the cache.
_WIDEST = 1024
# With many rows (every head of a large model) a chunk of that width would be too large, so it is
# narrower, but not so narrow that the matrix products become inefficient.
_TILE, _NARROWEST = 1 << 24, 256
# A GPU spends more on starting a chunk's operations than on its products. Milliseconds of the
# readout of all layers at 32 positions on an H200, in bfloat16:
#   chunk      1024   8192   whole vocabulary
#   small      2.98   1.36   0.56
#   large-v3   4.36   3.09   1.27
# XLA of JAX 0.12 cannot compile all of an odd vocabulary at once for a GPU: a half at a time.
_WIDEST_OF_GPU, _TILE_OF_GPU = 1 << 15, 1 << 26

type Chunk = Callable[[int], int]
"""How many tokens make a chunk for so many rows."""


@pytree_dataclass
class Readout:
    """Statistics of the next-token distribution `p = softmax(h Eᵀ)` of each state.

    Attributes:
        top_tokens: the most probable tokens, best first; the lowest id first among equals.
        top_log_probs: their natural log-probabilities.
        target_log_prob: log-probability of the position's target token.
        target_rank: number of tokens with a higher logit than the target; 0 if it is the top one.
        entropy: `-Σ p log p`, in nats.
        kl: `KL(p_final ‖ p)`, in nats.
    """

    top_tokens: Int[Array, "*stack pos top"]
    top_log_probs: Float[Array, "*stack pos top"]
    target_log_prob: Float[Array, "*stack pos"]
    target_rank: Int[Array, "*stack pos"]
    entropy: Float[Array, "*stack pos"]
    kl: Float[Array, "*stack pos"]


def chunk_in_cache(rows: int) -> int:
    """Return how many tokens make a chunk that stays in a cache."""
    return min(_WIDEST, max(_NARROWEST, _TILE // rows))


def chunk_on_gpu(rows: int) -> int:
    """Return how many tokens make a chunk on a GPU."""
    return min(_WIDEST_OF_GPU, max(_NARROWEST, _TILE_OF_GPU // rows))


def _fold[T](
    step: Callable[[T, Array, Array, Array], T],
    carry: T,
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    chunk: Chunk,
) -> T:
    """Fold `carry = step(carry, logits, embed, start)` over chunks of the vocabulary.

    In each step `logits = hidden embedᵀ` is `[rows, chunk]` in float32 or wider, of the tokens from
    `start` on, whose embeddings are `embed`. The last chunk is moved back so that it ends with the
    vocabulary and the matrix is never padded. Logits there that an earlier chunk has already given
    are set to the lowest number of their dtype: it is finite, so that a probability of 0 times this
    number is 0.
    """
    d_vocab = len(unembedding)
    size = min(chunk(len(hidden)), d_vocab)
    wide = accumulation_dtype(hidden.dtype)

    def body(i: Array, carry: T) -> T:
        start = jnp.minimum(i * size, d_vocab - size)
        embed = jax.lax.dynamic_slice_in_dim(unembedding, start, size)
        logits = jnp.einsum("rd,vd->rv", hidden, embed, preferred_element_type=wide)
        unseen = start + jnp.arange(size, dtype=jnp.int32) >= i * size
        logits = jnp.where(unseen[None], logits, jnp.finfo(wide).min)
        return step(carry, logits, embed, start)

    first, end = jnp.zeros((), jnp.int32), jnp.asarray(-(-d_vocab // size), jnp.int32)
    return jax.lax.fori_loop(first, end, body, carry)


def mean_embedding(
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    chunk: Chunk = chunk_in_cache,
) -> tuple[Float[Array, " rows"], Float[Array, "rows d_model"]]:
    """See `jaxasr_interp.kernels.lens.mean_embedding`."""
    wide = accumulation_dtype(hidden.dtype)

    def step(carry, logits, embed, start):
        largest, total, mean = carry
        new = jnp.maximum(largest, logits.max(1))
        weights, kept = jnp.exp(logits - new[:, None]), jnp.exp(largest - new)
        # Weights in bfloat16 would give the mean embedding to 1 part in 500 only.
        added = jnp.einsum("rv,vd->rd", weights, embed.astype(wide))
        return new, total * kept + weights.sum(1), mean * kept[:, None] + added

    rows = len(hidden)
    start = jnp.full(rows, jnp.finfo(wide).min, wide), jnp.zeros(rows, wide)
    carry = (*start, jnp.zeros(hidden.shape, wide))
    largest, total, mean = _fold(step, carry, hidden, unembedding, chunk)
    return largest + jnp.log(total), mean / total[:, None]


def log_sum_exp_gradients(
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    lse: Float[Array, " rows"],
    mean: Float[Array, "rows d_model"],
    cotangent: Float[Array, " rows"],
) -> tuple[Float[Array, "rows d_model"], Float[Array, "d_vocab d_model"]]:
    """Use `∂lse/∂h = softmax(h Eᵀ) E`, kept by the forward pass; `∂lse/∂E = softmax(h Eᵀ)ᵀ h`."""
    wide_hidden = hidden.astype(lse.dtype)

    def step(gradient, logits, embed, start):
        weights = jnp.exp(logits - lse[:, None]) * cotangent[:, None]
        added = jnp.einsum("rv,rd->vd", weights, wide_hidden)
        old = jax.lax.dynamic_slice_in_dim(gradient, start, len(added))
        return jax.lax.dynamic_update_slice_in_dim(gradient, old + added, start, 0)

    start = jnp.zeros(unembedding.shape, lse.dtype)
    of_unembedding = _fold(step, start, hidden, unembedding, chunk_in_cache)
    of_hidden = cotangent[:, None] * mean
    return of_hidden.astype(hidden.dtype), of_unembedding.astype(unembedding.dtype)


@pytree_dataclass
class Seen:
    """Statistics of each row's distribution over the chunks of the vocabulary so far.

    Attributes:
        largest: largest logit.
        total: `Σ exp(logit - largest)`.
        depth: `Σ exp(logit - largest) (logit - largest)`.
        higher: number of logits above that of the target.
        top_logits: the highest logits, best first.
        top_tokens: the tokens that have them.
    """

    largest: Float[Array, " rows"]
    total: Float[Array, " rows"]
    depth: Float[Array, " rows"]
    higher: Int[Array, " rows"]
    top_logits: Float[Array, "rows top"]
    top_tokens: Int[Array, "rows top"]


def readout(
    hidden: Float[Array, "*stack pos d_model"],
    final: Float[Array, "pos d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " pos"],
    top_k: int,
    chunk: Chunk = chunk_in_cache,
) -> Readout:
    """See `jaxasr_interp.kernels.lens.readout`."""
    of_all = functools.partial(see, chunk=chunk)
    of_final = functools.partial(mean_embedding, chunk=chunk)
    return readout_by(of_all, of_final, hidden, final, unembedding, targets, top_k)


def whole_readout(
    hidden: Float[Array, "*stack pos d_model"],
    final: Float[Array, "pos d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " pos"],
    top_tokens: Int[Array, "*stack pos top"],
) -> dict[str, Array]:
    """Compute the real numbers of a `Readout`, whose top tokens are known, from all logits.

    It is for derivatives, which do not go through the loop over chunks or a kernel.
    """
    wide = accumulation_dtype(hidden.dtype)

    def log_probs(states: Float[Array, "*some d_model"]) -> Float[Array, "*some d_vocab"]:
        logits = jnp.einsum("...d,vd->...v", states, unembedding, preferred_element_type=wide)
        return jax.nn.log_softmax(logits)

    log_p, log_final = log_probs(hidden), log_probs(final)
    log_final = log_final.reshape((1,) * (log_p.ndim - log_final.ndim) + log_final.shape)
    followed = jnp.broadcast_to(targets, top_tokens.shape[:-1])[..., None]
    return {
        "top_log_probs": jnp.take_along_axis(log_p, top_tokens, -1),
        "target_log_prob": jnp.take_along_axis(log_p, followed, -1)[..., 0],
        "entropy": -(jnp.exp(log_p) * log_p).sum(-1),
        "kl": (jnp.exp(log_final) * (log_final - log_p)).sum(-1),
    }


def readout_by(
    see: Callable[[Array, Array, Array, Array, int], Seen],
    mean_embedding: Callable[[Array, Array], tuple[Array, Array]],
    hidden: Float[Array, "*stack pos d_model"],
    final: Float[Array, "pos d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " pos"],
    top_k: int,
) -> Readout:
    """Compute a readout by the two functions that go over the vocabulary, `see` of all states and
    `mean_embedding` of the final ones."""
    wide = accumulation_dtype(hidden.dtype)
    stack = hidden.reshape(-1, *final.shape)
    of_targets = jnp.einsum(
        "spd,pd->sp", stack, unembedding[targets], preferred_element_type=wide
    ).reshape(-1)
    rows, followed = stack.reshape(-1, stack.shape[-1]), jnp.tile(targets, len(stack))
    seen = see(rows, unembedding, followed, of_targets, top_k)
    log_total = jnp.log(seen.total)
    lse = seen.largest + log_total
    final_lse, mean = mean_embedding(final, unembedding)
    change = final.astype(wide)[None] - stack.astype(wide)
    kl = jnp.einsum("spd,pd->sp", change, mean).reshape(-1) - jnp.tile(final_lse, len(stack)) + lse
    read = Readout(
        top_tokens=seen.top_tokens,
        top_log_probs=seen.top_logits - lse[:, None],
        target_log_prob=of_targets - lse,
        target_rank=seen.higher,
        entropy=log_total - seen.depth / seen.total,
        # Rounding must not make the KL divergence negative.
        kl=jnp.maximum(kl, 0),
    )
    return jax.tree.map(lambda x: x.reshape(*hidden.shape[:-1], *x.shape[1:]), read)


def see(
    rows: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " rows"],
    of_targets: Float[Array, " rows"],
    top_k: int,
    chunk: Chunk = chunk_in_cache,
) -> Seen:
    """Compute the statistics that `readout` needs of each row, over the whole vocabulary."""

    def step(seen: Seen, logits: Array, embed: Array, start: Array) -> Seen:
        largest = jnp.maximum(seen.largest, logits.max(1))
        fall, below = seen.largest - largest, logits - largest[:, None]
        weights, kept = jnp.exp(below), jnp.exp(fall)
        tokens = start + jnp.arange(len(embed), dtype=jnp.int32)
        # The target's own logit comes from another dot product, so its last bit may differ.
        above = (logits > of_targets[:, None]) & (tokens[None] != targets[:, None])
        chunk_logits, places = jax.lax.top_k(logits, min(top_k, len(embed)))
        # Earlier chunks have lower ids, which come first among equal logits.
        candidates = jnp.concatenate([seen.top_logits, chunk_logits], 1)
        candidate_tokens = jnp.concatenate([seen.top_tokens, start + places], 1)
        top_logits, best = jax.lax.top_k(candidates, top_k)
        return Seen(
            largest=largest,
            total=seen.total * kept + weights.sum(1),
            depth=(seen.depth + seen.total * fall) * kept + (weights * below).sum(1),
            higher=seen.higher + above.sum(1, dtype=jnp.int32),
            top_logits=top_logits,
            top_tokens=jnp.take_along_axis(candidate_tokens, best, 1),
        )

    n, lowest = len(rows), jnp.finfo(of_targets.dtype).min
    zero = jnp.zeros_like(of_targets)
    start = Seen(
        largest=jnp.full_like(of_targets, lowest),
        total=zero,
        depth=zero,
        higher=jnp.zeros(n, jnp.int32),
        top_logits=jnp.full((n, top_k), -jnp.inf, of_targets.dtype),
        top_tokens=jnp.zeros((n, top_k), jnp.int32),
    )
    return _fold(step, start, rows, unembedding, chunk)
