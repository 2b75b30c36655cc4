"""The lens readout fused for Hopper GPUs: logits exist in registers only, a block at a time.

The grid has blocks of rows and parts of the vocabulary, all of which run at the same time. Within
a part one warpgroup loads tiles of states and embeddings, and two others, with half of the rows
each, multiply them and keep what the readout needs of each row. The parts are merged afterwards.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from . import reference

DEVICES, PLATFORMS = "NVIDIA GPUs", ("gpu",)
DTYPES = (jnp.dtype(jnp.bfloat16),)
MOST_TOP = 16
"""Top tokens that a row can keep: they are searched for one by one."""
_HALVES, _ROWS, _TOKENS, _WIDTH = 2, 64, 128, 64
_STAGES = 4
_MULTIPROCESSORS = 132
_LOWEST = float(jnp.finfo(jnp.float32).min)
_NO_TOKEN = jnp.iinfo(jnp.int32).max
_LAYOUT = plgpu.Layout.WGMMA
_OF_ROWS = _LAYOUT.reduce(1)


def readout(
    hidden: Float[Array, "*stack pos d_model"],
    final: Float[Array, "pos d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " pos"],
    top_k: int,
) -> reference.Readout:
    """See `jaxasr_interp.kernels.lens.readout`."""
    # The divergence must be as exact as what the kernel computes.
    with jax.default_matmul_precision("highest"):
        arguments = hidden, final, unembedding, targets, top_k
        return reference.readout_by(_see, mean_embedding, *arguments)


def mean_embedding(
    hidden: Float[Array, "rows d_model"], unembedding: Float[Array, "d_vocab d_model"]
) -> tuple[Float[Array, " rows"], Float[Array, "rows d_model"]]:
    """See `jaxasr_interp.kernels.lens.mean_embedding`: XLA computes it."""
    return reference.mean_embedding(hidden, unembedding, _tokens_at_once)


def _tokens_at_once(rows: int) -> int:
    """Return how many tokens XLA reads at once, of which it holds 8 MB of logits."""
    return min(1 << 15, max(_TOKENS, (1 << 21) // rows))


def _see(
    rows: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " rows"],
    of_targets: Float[Array, " rows"],
    top_k: int,
) -> reference.Seen:
    """See `reference.see`."""
    n, d_vocab = len(rows), len(unembedding)
    rows = _pad(_pad(rows, 1, _WIDTH), 0, _HALVES * _ROWS)
    # Tiles of a product are loaded in groups of 8 rows: the matrix must have a multiple of them.
    unembedding = _pad(_pad(unembedding, 1, _WIDTH), 0, 8 if d_vocab > _TOKENS else _TOKENS)
    targets, of_targets = (_pad(x, 0, _HALVES * _ROWS) for x in (targets, of_targets))
    blocks = pl.cdiv(d_vocab, _TOKENS)
    row_blocks = len(rows) // (_HALVES * _ROWS)
    of_part = pl.cdiv(blocks, pl.cdiv(_MULTIPROCESSORS, row_blocks))
    parts = pl.cdiv(blocks, of_part)
    floats, ints = plgpu.kernel(
        functools.partial(_see_part, top_k=top_k, d_vocab=d_vocab, of_part=of_part),
        out_type=(
            jax.ShapeDtypeStruct((parts, 3 + top_k, len(rows)), jnp.float32),
            jax.ShapeDtypeStruct((parts, 1 + top_k, len(rows)), jnp.int32),
        ),
        grid=(row_blocks, parts),
        grid_names=("rows", "part"),
        num_threads=_HALVES + 1,
        thread_name="warpgroup",
        scratch_types=_scratch(top_k),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(rows, unembedding, targets, of_targets)
    return _merge(floats[..., :n], ints[..., :n], top_k)


def _pad(x: Array, axis: int, multiple: int) -> Array:
    """Pad an axis with zeros to a multiple."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _scratch(top_k: int) -> list:
    """Return what a block of threads shares, in the order of the arguments of `_see_part`."""
    tiled = (
        plgpu.TilingTransform((8, _WIDTH)),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
    )
    return [
        plgpu.SMEM((_STAGES, _HALVES, _ROWS, _WIDTH), jnp.bfloat16, transforms=tiled),
        plgpu.SMEM((_STAGES, _TOKENS, _WIDTH), jnp.bfloat16, transforms=tiled),
        plgpu.SMEM((_HALVES, _ROWS), jnp.int32),
        plgpu.SMEM((_HALVES, _ROWS), jnp.float32),
        plgpu.SMEM((_HALVES, 3 + top_k, _ROWS), jnp.float32),
        plgpu.SMEM((_HALVES, 1 + top_k, _ROWS), jnp.int32),
        plgpu.Barrier(num_arrivals=_HALVES + 1, num_barriers=_STAGES),
        plgpu.Barrier(num_arrivals=_HALVES, num_barriers=_STAGES),
        plgpu.Barrier(num_arrivals=2, num_barriers=_HALVES),
    ]


def _see_part(
    rows, embed, targets, of_targets, floats, ints,
    row_tiles, embed_tiles, own, of_own, kept_floats, kept_ints, loaded, used, ready, *,
    top_k, d_vocab, of_part,
):  # fmt: skip
    """Compute what is kept of a block of rows over a part of the vocabulary."""
    block, part = jax.lax.axis_index("rows"), jax.lax.axis_index("part")
    half = jax.lax.axis_index("warpgroup")
    n_tiles = rows.shape[1] // _WIDTH
    first_row = block * (_HALVES * _ROWS)

    def start(i):
        # The last block is moved back so that it ends with the matrix.
        return jnp.minimum((part * of_part + i) * _TOKENS, embed.shape[0] - _TOKENS)

    @pl.when(half == _HALVES)
    def _load():
        @pl.loop(0, of_part * n_tiles)
        def _(step):
            slot = jax.lax.rem(step, _STAGES)

            @pl.when(step >= _STAGES)
            def _():
                plgpu.barrier_wait(used.at[slot])

            width = pl.ds(jax.lax.rem(step, n_tiles) * _WIDTH, _WIDTH)
            for i in range(_HALVES):
                at = pl.ds(first_row + i * _ROWS, _ROWS), width
                plgpu.copy_gmem_to_smem(rows.at[at], row_tiles.at[slot, i], loaded.at[slot])
            at = pl.ds(start(jax.lax.div(step, n_tiles)), _TOKENS), width
            plgpu.copy_gmem_to_smem(embed.at[at], embed_tiles.at[slot], loaded.at[slot])

    @pl.when(half < _HALVES)
    def _compute():
        of_half = pl.ds(first_row + half * _ROWS, _ROWS)
        plgpu.copy_gmem_to_smem(targets.at[of_half], own.at[half], ready.at[half])
        plgpu.copy_gmem_to_smem(of_targets.at[of_half], of_own.at[half], ready.at[half])
        plgpu.barrier_wait(ready.at[half])
        target = plgpu.load(own.at[half], layout=_OF_ROWS)
        of_target = plgpu.load(of_own.at[half], layout=_OF_ROWS)

        def see_block(i, seen):
            def multiply(sums):
                @pl.loop(0, n_tiles)
                def _(tile):
                    slot = jax.lax.rem(i * n_tiles + tile, _STAGES)
                    plgpu.barrier_wait(loaded.at[slot])
                    embed_tile = embed_tiles.at[slot].transpose((1, 0))
                    plgpu.wgmma(sums, row_tiles.at[slot, half], embed_tile)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(used.at[slot])

                return sums[...]

            logits = pl.run_scoped(
                multiply, plgpu.WGMMAAccumulatorRef((_ROWS, _TOKENS), jnp.float32)
            )
            places = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=_LAYOUT)
            tokens = places + start(i)
            new = (tokens >= (part * of_part + i) * _TOKENS) & (tokens < d_vocab)
            return _see_block(seen, jnp.where(new, logits, _LOWEST), tokens, target, of_target)

        seen = jax.lax.fori_loop(0, of_part, see_block, _nothing(top_k))
        largest, total, depth, higher, top_logits, top_tokens = seen
        for kept, values in (
            (kept_floats, (largest, total, depth, *top_logits)),
            (kept_ints, (higher, *top_tokens)),
        ):
            for i, value in enumerate(values):
                kept[half, i] = value
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(kept_floats.at[half], floats.at[part, :, of_half])
        plgpu.copy_smem_to_gmem(kept_ints.at[half], ints.at[part, :, of_half])
        plgpu.wait_smem_to_gmem(0)


def _nothing(top_k: int):
    """Return what is kept of each row before the first block."""

    def full(value, dtype=jnp.float32):
        return plgpu.layout_cast(jnp.full((_ROWS,), value, dtype), _OF_ROWS)

    return (
        *(full(_LOWEST), full(0.0), full(0.0), full(0, jnp.int32)),
        (full(-jnp.inf),) * top_k,
        (full(0, jnp.int32),) * top_k,
    )


def _see_block(seen, logits, tokens, target, of_target):
    """Add a block of the vocabulary to what is kept of each row: see `reference.Seen`."""

    def wide(x):
        return jax.lax.broadcast_in_dim(x, logits.shape, [0])

    largest, total, depth, higher, top_logits, top_tokens = seen
    new = jnp.maximum(largest, logits.max(1))
    fall, below = largest - new, logits - wide(new)
    weights, scale = jnp.exp(below), jnp.exp(fall)
    above = (logits > wide(of_target)) & (tokens != wide(target))
    depth = (depth + total * fall) * scale + (weights * below).sum(1)
    total = total * scale + weights.sum(1)
    higher += jnp.where(above, jnp.int32(1), jnp.int32(0)).sum(1, dtype=jnp.int32)

    def keep_best(_, kept):
        logits, top_logits, top_tokens = kept
        best = logits.max(1)
        token = jnp.where(logits == wide(best), tokens, _NO_TOKEN).min(1)
        tops = _insert(top_logits, top_tokens, best, token)
        return jnp.where(tokens == wide(token), -jnp.inf, logits), *tops

    kept = logits, top_logits, top_tokens
    _, top_logits, top_tokens = jax.lax.fori_loop(0, len(top_logits), keep_best, kept)
    return new, total, depth, higher, top_logits, top_tokens


def _insert(top_logits, top_tokens, logit, token):
    """Insert a logit behind those of the top ones that are not lower; the last one falls out."""
    new_logits, new_tokens = [], []
    # What a place gets if its own logit moves on.
    before, token_before = logit, token
    for top, top_token in zip(top_logits, top_tokens, strict=True):
        stays = top >= logit
        new_logits.append(jnp.where(stays, top, before))
        new_tokens.append(jnp.where(stays, top_token, token_before))
        before, token_before = jnp.where(stays, logit, top), jnp.where(stays, token, top_token)
    return tuple(new_logits), tuple(new_tokens)


def _merge(
    floats: Float[Array, "part x rows"], ints: Int[Array, "part y rows"], top_k: int
) -> reference.Seen:
    """Merge what is kept of the parts of the vocabulary."""
    largest, total, depth = (floats[:, i] for i in range(3))
    new = largest.max(0)
    fall = largest - new[None]
    scale = jnp.exp(fall)
    tops = floats[:, 3:], ints[:, 1:]
    candidates, tokens = (x.transpose(2, 0, 1).reshape(x.shape[2], -1) for x in tops)
    # Earlier parts have lower ids, which come first among equal logits.
    top_logits, best = jax.lax.top_k(candidates, top_k)
    return reference.Seen(
        largest=new,
        total=(total * scale).sum(0),
        depth=((depth + total * fall) * scale).sum(0),
        higher=ints[:, 0].sum(0, dtype=jnp.int32),
        top_logits=top_logits,
        top_tokens=jnp.take_along_axis(tokens, best, 1),
    )
