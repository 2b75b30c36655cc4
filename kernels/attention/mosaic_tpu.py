"""Shared-key attention as one Pallas kernel for TPUs: scores stay in the chip's fast memory.

A step takes a block of queries and all keys of as many heads as fill the 128 lanes of a register,
two of Whisper's. Rows stay `[query, d_model]`: cutting them into heads would change the layout of
every array on the way, and pad each head of 64 numbers to 128. A head's scores are the product
with the other heads' lanes set to zero, which takes a matrix unit no longer. All keys are there at
once, so that one pass computes the softmax, without running maxima.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from . import reference

_LANES = 128
_QUERIES = 640
_MOST_SCORES = 1 << 20
"""Scores of one head that a step holds, in float32: 4 MiB of about 16."""


def unsuitable(q: Any, k: Any) -> str | None:
    """Say why the kernel cannot take arguments of such shapes; `None` if it can."""
    heads, d_head = q.shape[-2:]
    if jnp.dtype(q.dtype) not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        return f"takes bfloat16 or float32, not {q.dtype}"
    if _LANES % d_head or heads * d_head % _LANES:
        return f"takes heads that fill registers of {_LANES} lanes, not {heads} of {d_head}"
    if k.shape[1] > _MOST_SCORES // 8:
        return f"takes up to {_MOST_SCORES // 8} keys, not {k.shape[1]}"
    return None


def attend(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None,
    *,
    interpret: bool = False,
) -> Float[Array, "query head d_head"]:
    """See `api.attend`; `interpret` runs the kernel on any device."""
    return _attend(q, k, v, mask, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, mask: Array | None, interpret: bool) -> Array:
    n_queries, heads, d_head = q.shape
    n_keys = k.shape[1]
    k, v = (x.swapaxes(0, 1).reshape(n_keys, heads * d_head) for x in (k, v))
    block = _block(n_queries, n_keys)
    of_rows = pl.BlockSpec((block, _LANES), lambda group, i: (i, group))
    of_keys = pl.BlockSpec((n_keys, _LANES), lambda group, i: (0, group))
    masks = [] if mask is None else [mask.astype(jnp.int8)]
    found = pl.pallas_call(
        functools.partial(_kernel, d_head=d_head),
        grid=(heads * d_head // _LANES, pl.cdiv(n_queries, block)),
        in_specs=[
            of_rows,
            of_keys,
            of_keys,
            *(pl.BlockSpec((block, n_keys), lambda group, i: (i, 0)) for _ in masks),
        ],
        out_specs=of_rows,
        out_shape=jax.ShapeDtypeStruct((n_queries, heads * d_head), q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="attend",
    )(q.reshape(n_queries, heads * d_head), k, v, *masks)
    return found.reshape(q.shape)


def _block(n_queries: int, n_keys: int) -> int:
    """Return how many queries a step takes: a multiple of 32, as tiles of a mask have 32 rows."""
    most = max(32, min(_QUERIES, _MOST_SCORES // n_keys // 32 * 32))
    return math.ceil(n_queries / math.ceil(n_queries / most) / 32) * 32


def _kernel(q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any, d_head: int) -> None:
    """Attention of a block of queries in the heads of one register; `refs` are mask and result."""
    *mask_ref, z_ref = refs
    q, k, v = q_ref[...], k_ref[...], v_ref[...]
    scale = jnp.asarray(d_head**-0.5, q.dtype)
    lane = jax.lax.broadcasted_iota(jnp.int32, q.shape, 1)
    z = jnp.zeros(q.shape, jnp.float32)
    for first in range(0, _LANES, d_head):
        own = (lane >= first) & (lane < first + d_head)
        scores = _product(jnp.where(own, q * scale, jnp.zeros_like(q)), k, 1)
        if mask_ref:
            scores = jnp.where(mask_ref[0][...] != 0, scores, -jnp.inf)
        weights, total = reference.weights_of(scores)
        z = jnp.where(own, _product(weights.astype(v.dtype), v, 0) / total, z)
    z_ref[...] = z.astype(z_ref.dtype)


def _product(a: Array, b: Array, contracted: int) -> Array:
    """`a b` or `a bᵀ`, in float32; of float32 not rounded to fewer bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (contracted,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _forward(
    q: Array, k: Array, v: Array, mask: Array | None, interpret: bool
) -> tuple[Array, tuple[Array, Array, Array, Array | None]]:
    return _attend(q, k, v, mask, interpret), (q, k, v, mask)


def _backward(
    interpret: bool, saved: tuple[Array, Array, Array, Array | None], cotangent: Array
) -> tuple[Array, Array, Array, None]:
    """Gradients by XLA, which computes the scores anew."""
    q, k, v, mask = saved
    _, pull = jax.vjp(lambda q, k, v: reference.attend(q, k, v, mask), q, k, v)
    return *pull(cotangent), None


_attend.defvjp(_forward, _backward)
