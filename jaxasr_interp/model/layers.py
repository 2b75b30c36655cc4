"""The parts of a Whisper block: linear maps, norms, attention and MLP.

A part is row-wise unless its docstring says otherwise: it takes and returns `[rows, ...]`, and
computes each row independently of the others.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.kernels.attention import attend, has_cudnn
from jaxasr_interp.model.edits import Tap
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.pytree import pytree_dataclass

LAYER_NORM_EPSILON = 1e-5


class Linear(nnx.Module):
    """Linear map `y = x W + b` of each row, accumulated in float32 or wider."""

    def __init__(self, d_in: int, d_out: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (d_in, d_out)) * d_in**-0.5)
        self.bias = nnx.Param(jnp.zeros(d_out)) if use_bias else None

    def __call__(self, x: Float[Array, "rows d_in"]) -> Float[Array, "rows d_out"]:
        """Apply the map to each row."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if bias is None or not has_cudnn() or accumulation_dtype(x.dtype) == x.dtype:
            return _product(x, kernel, bias)
        return jax.lax.platform_dependent(x, kernel, bias, cuda=_by_cublas, default=_product)


def _product(x: Array, kernel: Array, bias: Array | None) -> Array:
    """`x W + b`, rounded to the dtype of `x` once."""
    y = jnp.matmul(x, kernel, preferred_element_type=accumulation_dtype(x.dtype))
    if bias is not None:
        y = y + bias.astype(y.dtype)[None, :]
    return y.astype(x.dtype)


def _by_cublas(x: Array, kernel: Array, bias: Array) -> Array:
    """The same for cuBLAS, which adds a bias of the product's own dtype before it rounds.

    As `_product` says it, products are written to memory in 32 bits and read again: 7% of a sweep.
    """
    return jnp.matmul(x, kernel) + bias[None, :]


class LayerNorm(nnx.Module):
    """LayerNorm `y = (x - mean) / sqrt(var + 1e-5) · scale + bias` over the last axis."""

    def __init__(self, d_model: int):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model))

    def __call__(self, x: Float[Array, "rows d_model"]) -> Float[Array, "rows d_model"]:
        """Normalise each row."""
        wide = x.astype(accumulation_dtype(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        y = y * self.scale[...].astype(y.dtype)[None, :] + self.bias[...].astype(y.dtype)[None, :]
        return y.astype(x.dtype)


class Conv1d(nnx.Module):
    """Convolution of width 3 along the rows with one row of zeros on either side."""

    def __init__(self, d_in: int, d_out: int, *, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.kernel = nnx.Param(
            jax.random.normal(rngs.params(), (3, d_in, d_out)) * (3 * d_in) ** -0.5
        )
        self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "rows d_in"]) -> Float[Array, "rows_out d_out"]:
        """Convolve along the rows."""
        padded = jnp.pad(x, ((1, 1), (0, 0)))
        windows = [padded[tap : tap + len(x) : self.stride] for tap in range(3)]
        kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        y = jnp.matmul(
            jnp.concatenate(windows, axis=1),
            kernel,
            preferred_element_type=accumulation_dtype(x.dtype),
        )
        return (y + self.bias[...].astype(y.dtype)[None, :]).astype(x.dtype)


def gelu(x: Array) -> Array:
    """Compute `x · Φ(x) = x (1 + erf(x / √2)) / 2`, in float32 or wider.

    `jax.nn.gelu` computes it by `erfc`, whose tail is exact and which takes 2.5 times as long.
    """
    wide = x.astype(accumulation_dtype(x.dtype))
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@pytree_dataclass
class KeysValues:
    """Keys and values of attention, of one layer or (with a leading axis) of all layers.

    Heads come first, which is the layout of the dots: otherwise a step in which one query attends
    to 1500 frames would spend most of its time on transposing.
    """

    k: Float[Array, "*layer head key d_head"]
    v: Float[Array, "*layer head key d_head"]

    @classmethod
    def at_sites(
        cls,
        tap: Tap,
        prefix: str,
        k: Float[Array, "key head d_head"],
        v: Float[Array, "key head d_head"],
    ) -> "KeysValues":
        """Pass keys and values, positions first, through their sites."""
        k, v = tap(prefix + "k", k), tap(prefix + "v", v)
        return cls(k.swapaxes(0, 1), v.swapaxes(0, 1))


def write_rows(past: KeysValues, new: KeysValues, offset: Int[Array, ""] | int) -> KeysValues:
    """Put the keys and values of consecutive positions, the first at `offset`, into `past`."""
    return jax.tree.map(
        lambda old, rows: jax.lax.dynamic_update_slice_in_dim(old, rows, offset, old.ndim - 2),
        past,
        new,
    )


class Attention(nnx.Module):
    """Multi-head attention; its sites carry `prefix` (`""` or `"cross_"`)."""

    def __init__(self, d_model: int, n_heads: int, *, prefix: str = "", rngs: nnx.Rngs):
        self.n_heads = n_heads
        self.prefix = prefix
        self.query = Linear(d_model, d_model, rngs=rngs)
        self.key = Linear(d_model, d_model, use_bias=False, rngs=rngs)
        self.value = Linear(d_model, d_model, rngs=rngs)
        self.out = Linear(d_model, d_model, rngs=rngs)

    def queries(self, x: Float[Array, "rows d_model"]) -> Float[Array, "rows head d_head"]:
        """Compute `x W_Q + b_Q`, by head."""
        return self._by_head(self.query(x))

    def keys_values(
        self, x: Float[Array, "key d_model"]
    ) -> tuple[Float[Array, "key head d_head"], Float[Array, "key head d_head"]]:
        """Compute `x W_K` and `x W_V + b_V`, by head."""
        return self._by_head(self.key(x)), self._by_head(self.value(x))

    def attend(
        self,
        tap: Tap,
        q: Float[Array, "query head d_head"],
        kv: KeysValues,
        mask: Bool[Array, "query key"] | None = None,
    ) -> Float[Array, "query d_model"]:
        """Compute `softmax(q kᵀ / sqrt(d_head)) v W_O + b_O`.

        `mask` is true where a query may attend to a key.
        """
        return self.output(tap, self.mix(tap, q, kv, mask))

    def mix(
        self,
        tap: Tap,
        q: Float[Array, "query head d_head"],
        kv: KeysValues,
        mask: Bool[Array, "query key"] | None = None,
    ) -> Float[Array, "query head d_head"]:
        """Compute `softmax(q kᵀ / sqrt(d_head)) v` for each head, before `z` is edited."""
        if not tap.wants_patterns:
            return attend(q, kv.k, kv.v, mask)
        wide = accumulation_dtype(q.dtype)
        # Heads come first on both sides of each dot: on CPU other layouts are twice as slow.
        q = jnp.swapaxes(q * q.shape[-1] ** -0.5, 0, 1)
        scores = jnp.einsum("hqd,hkd->hqk", q, kv.k, preferred_element_type=wide)
        # The mask is applied again after each edit: no edit may unmask a key.
        scores = tap(self.prefix + "attn_scores", _masked(scores, mask, -jnp.inf))
        scores = _masked(scores, mask, -jnp.inf)
        pattern = tap(self.prefix + "pattern", jax.nn.softmax(scores, axis=-1).astype(q.dtype))
        pattern = _masked(pattern, mask, 0.0)
        z = jnp.einsum("hqk,hkd->hqd", pattern, kv.v, preferred_element_type=wide)
        return jnp.swapaxes(z.astype(q.dtype), 0, 1)

    def output(
        self, tap: Tap, z: Float[Array, "query head d_head"]
    ) -> Float[Array, "query d_model"]:
        """Compute `z W_O + b_O` of each row."""
        z = tap(self.prefix + "z", z)
        out = self.out(z.reshape(len(z), -1))
        kernel = self.out.kernel[...].reshape(self.n_heads, z.shape[-1], -1)
        wide = accumulation_dtype(z.dtype)
        # Heads come first, as in `mix`: XLA has no other bfloat16 dot of this kind on CPU.
        result = jnp.einsum("hqd,hdm->hqm", z.swapaxes(0, 1), kernel, preferred_element_type=wide)
        result = result.swapaxes(0, 1).astype(z.dtype)
        edited = tap(self.prefix + "result", result)
        if edited is not result:
            # Adding the change leaves `out` exactly as it was where the edit changes nothing.
            out = out + (edited - result).sum(1)
        return tap(self.prefix + "attn_out", out)

    def _by_head(self, rows: Float[Array, "rows d_model"]) -> Float[Array, "rows head d_head"]:
        return rows.reshape(len(rows), self.n_heads, -1)


def _masked(
    x: Float[Array, "head query key"], mask: Bool[Array, "query key"] | None, hidden: float
) -> Float[Array, "head query key"]:
    """Put `hidden` where a query may not attend to a key."""
    return x if mask is None else jnp.where(mask[None], x, jnp.asarray(hidden, x.dtype))


class MLP(nnx.Module):
    """The MLP of a block, `gelu(x W_1 + b_1) W_2 + b_2`."""

    def __init__(self, d_model: int, d_mlp: int, *, rngs: nnx.Rngs):
        self.up = Linear(d_model, d_mlp, rngs=rngs)
        self.down = Linear(d_mlp, d_model, rngs=rngs)

    def __call__(self, tap: Tap, x: Float[Array, "rows d_model"]) -> Float[Array, "rows d_model"]:
        """Apply the MLP to each row."""
        hidden = tap("mlp_post", gelu(tap("mlp_pre", self.up(x))))
        # Without the barrier a TPU computes the GELU anew for every block of the product's columns.
        return tap("mlp_out", self.down(jax.lax.optimization_barrier(hidden)))
