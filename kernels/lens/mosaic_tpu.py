"""The lens readout fused for TPUs: logits exist in a core's fast memory only, a block at a time.

The grid has blocks of rows and, as its inner axis, blocks of the vocabulary. The blocks of the
vocabulary come one after another, and what is kept of each row stays in fast memory between them.
A block of logits is `[token, row]`: tokens are reduced along the first axis, where a TPU needs no
exchange between lanes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from . import reference

DEVICES, PLATFORMS = "TPUs", ("tpu", "cpu")
DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
MOST_TOP = 16
"""Top tokens that a row can keep: they are searched for one by one."""
_ROWS, _TOKENS = 512, 1024
_FAST_MEMORY = 64 << 20
_LOWEST = float(jnp.finfo(jnp.float32).min)
_FLOAT = (1, jnp.float32)


def readout(
    hidden: Float[Array, "*stack pos d_model"],
    final: Float[Array, "pos d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " pos"],
    top_k: int,
    *,
    interpret: bool = False,
) -> reference.Readout:
    """See `jaxasr_interp.kernels.lens.readout`; `interpret` runs the kernels on any device."""
    # The targets' logits and the divergence must be as exact as what the kernels compute.
    with jax.default_matmul_precision("highest"):
        return reference.readout_by(
            functools.partial(_see, interpret=interpret),
            functools.partial(mean_embedding, interpret=interpret),
            *(hidden, final, unembedding, targets, top_k),
        )


def mean_embedding(
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, " rows"], Float[Array, "rows d_model"]]:
    """See `jaxasr_interp.kernels.lens.mean_embedding`; `interpret` as in `readout`."""
    kernel = functools.partial(_mean_block, d_vocab=len(unembedding))
    kept = {"largest": _FLOAT, "total": _FLOAT, "mean": (hidden.shape[1], jnp.float32)}
    found = _over_vocabulary(kernel, hidden, unembedding, (), kept, interpret)
    total = found["total"][0]
    return found["largest"][0] + jnp.log(total), found["mean"].T / total[:, None]


def _see(
    rows: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " rows"],
    of_targets: Float[Array, " rows"],
    top_k: int,
    *,
    interpret: bool,
) -> reference.Seen:
    """See `reference.see`."""
    kernel = functools.partial(_see_block, d_vocab=len(unembedding))
    numbers = {"largest": _FLOAT, "total": _FLOAT, "depth": _FLOAT, "higher": (1, jnp.int32)}
    kept = numbers | {"top_logits": (top_k, jnp.float32), "top_tokens": (top_k, jnp.int32)}
    of_rows = targets[None], of_targets[None]
    found = _over_vocabulary(kernel, rows, unembedding, of_rows, kept, interpret)
    tops = {name: found[name].T for name in ("top_logits", "top_tokens")}
    return reference.Seen(**{name: found[name][0] for name in numbers}, **tops)


def _over_vocabulary(kernel, rows, unembedding, of_rows, kept, interpret):
    """Call `kernel(rows, embed, *of_rows, logits, **kept)` for each block of rows and vocabulary.

    Args:
        kernel: given references to a block of each array.
        rows: hidden states, `[rows, d_model]`.
        unembedding: `[d_vocab, d_model]`.
        of_rows: further arrays `[1, rows]`.
        kept: the size and dtype of what is kept of each row, by name.
        interpret: whether to run the kernel outside of a TPU.

    Returns:
        What is kept, `[size, rows]`, by name.
    """
    (n, d_model), d_vocab = rows.shape, len(unembedding)
    block, tokens = min(_ROWS, n), min(_TOKENS, d_vocab)
    in_rows = [pl.BlockSpec((1, block), lambda r, v: (0, r)) for _ in of_rows]
    names = list(kept)
    n_in = 2 + len(of_rows)

    def named(*refs):
        *refs, logits = refs
        kernel(*refs[:n_in], logits, **dict(zip(names, refs[n_in:], strict=True)))

    call = pl.pallas_call(
        named,
        grid=(pl.cdiv(n, block), pl.cdiv(d_vocab, tokens)),
        in_specs=[
            pl.BlockSpec((block, d_model), lambda r, v: (r, 0)),
            pl.BlockSpec((tokens, d_model), lambda r, v: (v, 0)),
            *in_rows,
        ],
        out_specs=[pl.BlockSpec((size, block), lambda r, v: (0, r)) for size, _ in kept.values()],
        out_shape=[jax.ShapeDtypeStruct((size, n), dtype) for size, dtype in kept.values()],
        scratch_shapes=[pltpu.VMEM((tokens, block), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_FAST_MEMORY
        ),
        interpret=interpret,
    )
    # Blocks are counted in 32 bits.
    with jax.enable_x64(False):
        found = call(rows, unembedding, *of_rows)
    return dict(zip(names, found, strict=True))


def _see_block(
    rows, embed, targets, of_targets, logits, *,
    largest, total, depth, higher, top_logits, top_tokens, d_vocab,
):  # fmt: skip
    """Add a block of the vocabulary to what is kept of a block of rows: see `reference.Seen`."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        largest[...] = jnp.full_like(largest, _LOWEST)
        for zero in (total, depth, higher, top_tokens):
            zero[...] = jnp.zeros_like(zero)
        top_logits[...] = jnp.full_like(top_logits, -jnp.inf)

    tokens = _tokens(logits.shape)
    logits[...] = _logits(rows, embed, tokens, d_vocab)
    best = logits[...].max(0, keepdims=True)
    old, new = largest[...], jnp.maximum(largest[...], best)
    fall, below = old - new, logits[...] - new
    weights, scale = jnp.exp(below), jnp.exp(fall)
    above = (logits[...] > of_targets[...]) & (tokens != targets[...])
    largest[...] = new
    depth[...] = (depth[...] + total[...] * fall) * scale + (weights * below).sum(0, keepdims=True)
    total[...] = total[...] * scale + weights.sum(0, keepdims=True)
    higher[...] += above.sum(0, dtype=jnp.int32, keepdims=True)
    jax.lax.while_loop(
        # `jnp.any` computes in float64 where that is enabled.
        lambda best: (best > top_logits[-1:]).astype(jnp.float32).max() > 0,
        functools.partial(_keep_best, logits, tokens, top_logits, top_tokens),
        best,
    )


def _keep_best(logits, tokens, top_logits, top_tokens, best):
    """Move the best logit of each row among its top ones, unless it is too low; return the next.

    What is there already comes first among equals: its tokens have lower ids.
    """
    ids = jnp.where(logits[...] == best, tokens, jnp.iinfo(jnp.int32).max)
    token = ids.min(0, keepdims=True)
    old, old_tokens = top_logits[...], top_tokens[...]
    # What each place gets if the new logit comes before it.
    previous = jnp.concatenate([jnp.full_like(best, jnp.inf), old[:-1]])
    previous_tokens = jnp.concatenate([token, old_tokens[:-1]])
    moved = jnp.where(previous >= best, token, previous_tokens)
    top_logits[...] = jnp.maximum(old, jnp.minimum(previous, best))
    top_tokens[...] = jnp.where(old >= best, old_tokens, moved)
    logits[...] = jnp.where(tokens == token, -jnp.inf, logits[...])
    return logits[...].max(0, keepdims=True)


def _mean_block(rows, embed, logits, *, largest, total, mean, d_vocab):
    """Add a block of the vocabulary to the means `[d_model, row]` of a block of rows."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        largest[...] = jnp.full_like(largest, _LOWEST)
        total[...] = jnp.zeros_like(total)
        mean[...] = jnp.zeros_like(mean)

    tokens = _tokens(logits.shape)
    logits[...] = _logits(rows, embed, tokens, d_vocab)
    new = jnp.maximum(largest[...], logits[...].max(0, keepdims=True))
    weights, scale = jnp.exp(logits[...] - new), jnp.exp(largest[...] - new)
    # Past the vocabulary there may be anything, even NaN, of which a weight of 0 makes NaN.
    exists = _tokens(embed.shape) < d_vocab
    embedding = jnp.where(exists, embed[...].astype(jnp.float32), 0)
    largest[...] = new
    total[...] = total[...] * scale + weights.sum(0, keepdims=True)
    mean[...] = mean[...] * scale + _dot(embedding, weights, 0)


def _tokens(shape: tuple[int, int]) -> Int[Array, "token x"]:
    """Return the token ids of this block's first axis, in an array of a shape."""
    return pl.program_id(1) * shape[0] + jax.lax.broadcasted_iota(jnp.int32, shape, 0)


def _logits(rows, embed, tokens, d_vocab):
    """Return a block's logits `[token, row]`: past the vocabulary the lowest finite number."""
    return jnp.where(tokens < d_vocab, _dot(embed[...], rows[...], 1), _LOWEST)


def _dot(a: Array, b: Array, axis: int) -> Array:
    """Contract an axis of both, in float32; products of float32 are not rounded to bfloat16."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((axis,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, exact, preferred_element_type=jnp.float32)
