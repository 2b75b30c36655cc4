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
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
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
    """See `api.attend`; `interpret` runs the kernel on any device.

    Otherwise it is the kernel on a TPU, and XLA elsewhere, and where the compiler divides arrays
    among devices, which it cannot do with a kernel.
    """

    def run(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        (z,) = _attend(q, k, v, mask, part=False, interpret=interpret)
        return z.reshape(q.shape)

    return reference.differentiable(run, reference.attend)(q, k, v, mask)


def attend_part(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None,
    *,
    interpret: bool = False,
) -> reference.Attended:
    """See `api.attend_part`, and `attend`."""

    def run(q: Array, k: Array, v: Array, mask: Array | None) -> reference.Attended:
        z, log_sum = _attend(q, k, v, mask, part=True, interpret=interpret)
        # Each head's is in all of its lanes.
        return z.reshape(q.shape), log_sum.reshape(q.shape)[..., 0]

    return reference.differentiable(run, reference.attend_part)(q, k, v, mask)


def _attend(
    q: Array, k: Array, v: Array, mask: Array | None, *, part: bool, interpret: bool
) -> list[Float[Array, "query d_model"]]:
    rows, keys, values = q.reshape(len(q), -1), *(_flat(x) for x in (k, v))
    masks = [] if mask is None else [mask[None]]
    arrays = (rows[None], keys[None], values[None], *masks)
    run = functools.partial(_run, interpret=True) if interpret else attend_p.bind
    return [x[0] for x in run(*arrays, d_head=q.shape[-1], part=part)]


def _flat(by_head: Float[Array, "head key d_head"]) -> Float[Array, "key d_model"]:
    return by_head.swapaxes(0, 1).reshape(by_head.shape[1], -1)


def _run(
    q: Float[Array, "batch query d_model"],
    k: Float[Array, "#batch key d_model"],
    v: Float[Array, "#batch key d_model"],
    *masks: Bool[Array, "#batch query key"],
    d_head: int,
    part: bool,
    interpret: bool = False,
) -> list[Float[Array, "batch query d_model"]]:
    """Run the kernel; examples may share keys, values and mask.

    Returns:
        The mixed values; if they are a `part`, also the log-sum-exp of each head's scores in all
        lanes of the head.
    """
    n_keys = k.shape[1]
    block = _block(q.shape[1], n_keys, q.dtype.itemsize)

    def spec(array: Array, shape: tuple[int, int], place: Any) -> pl.BlockSpec:
        shared = len(array) == 1
        return pl.BlockSpec(
            (None, *shape), lambda b, group, i: (0 if shared else b, *place(group, i))
        )

    of_rows = spec(q, (block, _LANES), lambda group, i: (i, group))
    of_keys = [spec(x, (n_keys, _LANES), lambda group, i: (0, group)) for x in (k, v)]
    call = pl.pallas_call(
        functools.partial(_kernel, d_head=d_head, masked=bool(masks)),
        grid=grid(q.shape, n_keys, q.dtype.itemsize),
        in_specs=[
            of_rows,
            *of_keys,
            *(spec(mask, (block, n_keys), lambda group, i: (i, 0)) for mask in masks),
        ],
        out_specs=[of_rows] * (1 + part),
        out_shape=[jax.ShapeDtypeStruct(q.shape, t) for t in (q.dtype, jnp.float32)[: 1 + part]],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="attend",
    )
    return list(call(q, k, v, *(mask.astype(jnp.int8) for mask in masks)))


def _by_xla(
    q: Float[Array, "batch query d_model"],
    k: Float[Array, "#batch key d_model"],
    v: Float[Array, "#batch key d_model"],
    *masks: Bool[Array, "#batch query key"],
    d_head: int,
    part: bool,
) -> list[Float[Array, "batch query d_model"]]:
    def one(q: Array, k: Array, v: Array, *masks: Array) -> list[Array]:
        q, k, v = (x.reshape(len(x), -1, d_head) for x in (q, k, v))
        mask = masks[0] if masks else None
        z, log_sum = reference.attend_part(q, k.swapaxes(0, 1), v.swapaxes(0, 1), mask)
        found = (z, jnp.broadcast_to(log_sum[..., None], z.shape).astype(jnp.float32))
        return [x.reshape(len(x), -1) for x in found[: 1 + part]]

    shared = [None if len(x) == 1 else 0 for x in (k, v, *masks)]
    rest = [x[0] if axis is None else x for x, axis in zip((k, v, *masks), shared, strict=True)]
    return jax.vmap(one, (0, *shared))(q, *rest)


def _shapes(q: Any, *_: Any, d_head: int, part: bool) -> list[Any]:
    z = q.update(weak_type=False)
    return [z, z.update(dtype=jnp.dtype(jnp.float32))][: 1 + part]


attend_p = Primitive("attend")
attend_p.multiple_results = True
attend_p.def_impl(jax.jit(_by_xla, static_argnames=("d_head", "part")))
attend_p.def_abstract_eval(_shapes)


def _lower(ctx: Any, *arrays: Any, **static: Any) -> Any:
    """Lower to the kernel where each device runs the program on arrays of its own."""
    context = ctx.module_context.axis_context
    if hasattr(context, "num_devices"):
        alone = context.num_devices == 1
    else:
        alone = set(context.manual_axes) == set(context.mesh.axis_names)
    return mlir.lower_fun(_run if alone else _by_xla, multiple_results=True)(ctx, *arrays, **static)


def _batch(arrays: Any, axes: Any, **static: Any) -> tuple[list[Array], list[int]]:
    """Make a batch of batches one batch; what all share stays shared."""
    size = next(x.shape[a] for x, a in zip(arrays, axes, strict=True) if a is not None)
    moved = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(arrays, axes, strict=True)]
    inner = max(x.shape[0 if a is None else 1] for x, a in zip(moved, axes, strict=True))

    def joined(x: Array, axis: int | None, shared: bool) -> Array:
        rest = x.shape[-2:]
        if shared and axis is None and len(x) == 1:
            return x
        x = x[None] if axis is None else x
        return jnp.broadcast_to(x, (size, inner, *rest)).reshape(-1, *rest)

    q, *others = [joined(x, a, n > 0) for n, (x, a) in enumerate(zip(moved, axes, strict=True))]
    found = [x.reshape(size, inner, *x.shape[1:]) for x in attend_p.bind(q, *others, **static)]
    return found, [0] * len(found)


mlir.register_lowering(attend_p, mlir.lower_fun(_by_xla, multiple_results=True))
mlir.register_lowering(attend_p, _lower, platform="tpu")
batching.primitive_batchers[attend_p] = _batch


def grid(shape: tuple[int, ...], n_keys: int, itemsize: int) -> tuple[int, int, int]:
    """Return the kernel's steps for queries of some shape: examples, registers, blocks of rows."""
    batch, n_queries, d_model = shape
    return batch, d_model // _LANES, pl.cdiv(n_queries, _block(n_queries, n_keys, itemsize))


def _block(n_queries: int, n_keys: int, itemsize: int) -> int:
    """Return how many queries a step takes: a multiple of 32, as tiles of a mask have 32 rows."""
    # Products of float32 hold it in parts of 16 bits, too.
    parts = itemsize // 2
    most = max(32, min(_QUERIES, _MOST_SCORES // n_keys) // parts // 32 * 32)
    return math.ceil(n_queries / math.ceil(n_queries / most) / 32) * 32


def _kernel(q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any, d_head: int, masked: bool) -> None:
    """Attention of a block of queries in the heads of one register.

    `refs` are a mask, if there is one, and the results.
    """
    mask_ref, (z_ref, *log_sum_ref) = refs[:masked], refs[masked:]
    q, k, v = q_ref[...], k_ref[...], v_ref[...]
    scale = jnp.asarray(d_head**-0.5, q.dtype)
    lane = jax.lax.broadcasted_iota(jnp.int32, q.shape, 1)
    z = log_sum = jnp.zeros(q.shape, jnp.float32)
    for first in range(0, _LANES, d_head):
        own = (lane >= first) & (lane < first + d_head)
        scores = _product(jnp.where(own, q * scale, jnp.zeros_like(q)), k, 1)
        if mask_ref:
            scores = jnp.where(mask_ref[0][...] != 0, scores, -jnp.inf)
        largest = scores.max(-1, keepdims=True)
        # A query that sees no key gets weights of 0, and then 0 / 1.
        weights = jnp.exp(scores - jnp.where(largest == -jnp.inf, 0.0, largest))
        total = weights.sum(-1, keepdims=True)
        total = jnp.where(total == 0, 1.0, total)
        z = jnp.where(own, _product(weights.astype(v.dtype), v, 0) / total, z)
        log_sum = jnp.where(own, largest + jnp.log(total), log_sum)
    z_ref[...] = z.astype(z_ref.dtype)
    if log_sum_ref:
        log_sum_ref[0][...] = log_sum


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
