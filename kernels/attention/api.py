"""The public function of shared-key attention."""

import functools
import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxasr_interp.errors import InputError

from . import cudnn, reference

_IMPLEMENTATIONS = ("xla", "cudnn", "mosaic_tpu")
_OF_CUDNN = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_FEW_SCORES = 1 << 14
"""Up to so many scores of a head, a fused kernel costs more than it saves."""


def attend(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None = None,
    *,
    implementation: str | None = None,
) -> Float[Array, "query head d_head"]:
    """`softmax(q kᵀ / sqrt(d_head)) v` of each head: rows of many runs attend to the same keys.

    Args:
        q: queries.
        k: keys, heads first.
        v: values, heads first.
        mask: true where a query may attend to a key; by default everywhere.
        implementation: `"xla"`, which holds all scores; `"cudnn"`, NVIDIA's fused attention, which
            holds none and takes 16-bit numbers only; `"mosaic_tpu"`, a kernel for TPUs, which holds
            none either (on other devices it is interpreted, slowly); `None` for the best one on
            the device that the program is compiled for.

    Returns:
        The mixed values; 0 for a query that may attend to no key.

    Raises:
        InputError: the implementation does not exist, or does not take this dtype or device.
    """
    if implementation is None:
        if len(q) * k.shape[1] <= _FEW_SCORES:
            return reference.attend(q, k, v, mask)
        # Decided where the program is compiled for, which need not be where it is traced.
        for_tpus = has_libtpu() and _mosaic_tpu().unsuitable(q, k) is None
        elsewhere = _mosaic_tpu().attend if for_tpus else reference.attend
        if jnp.dtype(q.dtype) not in _OF_CUDNN or not has_cudnn():
            return elsewhere(q, k, v, mask)
        return jax.lax.platform_dependent(q, k, v, mask, cuda=cudnn.attend, default=elsewhere)
    _check(implementation, q, k)
    if implementation == "xla":
        return reference.attend(q, k, v, mask)
    if implementation == "cudnn":
        return cudnn.attend(q, k, v, mask)
    return _mosaic_tpu().attend(q, k, v, mask, interpret=jax.default_backend() != "tpu")


def attend_part(
    q: Float[Array, "query head d_head"],
    k: Float[Array, "head key d_head"],
    v: Float[Array, "head key d_head"],
    mask: Bool[Array, "query key"] | None = None,
    *,
    implementation: str | None = None,
) -> reference.Attended:
    """Attend to a part of the keys, as `attend` does; `merge` joins parts to the whole.

    Args:
        q: see `attend`.
        k: the part's keys.
        v: its values.
        mask: see `attend`.
        implementation: see `attend`. JAX rounds cuDNN's log-sum-exp to 16 bits, so that merged
            values would be off by a percent: it is refused here.

    Returns:
        The mixed values, and `log Σ exp(q kᵀ / sqrt(d_head))` of the keys that each query sees, -∞
        if there is none, in float32 or wider.

    Raises:
        InputError: see `attend`.
    """
    if implementation is None:
        few = len(q) * k.shape[1] <= _FEW_SCORES
        fused = has_libtpu() and not few and _mosaic_tpu().unsuitable(q, k) is None
        return (_mosaic_tpu() if fused else reference).attend_part(q, k, v, mask)
    if implementation == "cudnn":
        raise InputError(
            "cuDNN's attention gives no exact log-sum-exp: choose the implementation 'xla'."
        )
    _check(implementation, q, k)
    if implementation == "xla":
        return reference.attend_part(q, k, v, mask)
    return _mosaic_tpu().attend_part(q, k, v, mask, interpret=jax.default_backend() != "tpu")


def merge(one: reference.Attended, other: reference.Attended) -> reference.Attended:
    """Join what queries get from two disjoint sets of keys, both from `attend_part`.

    `z = (e^a z_a + e^b z_b) / (e^a + e^b)` with the log-sum-exps `a` and `b`.
    """
    (z_a, a), (z_b, b) = one, other
    largest = jnp.maximum(a, b)
    top = jnp.where(largest == -jnp.inf, 0.0, largest)
    weights = jnp.exp(a - top), jnp.exp(b - top)
    total = weights[0] + weights[1]
    some = jnp.where(total == 0, 1.0, total)
    of_a, of_b = ((weight / some)[..., None] for weight in weights)
    z = of_a * z_a.astype(a.dtype) + of_b * z_b.astype(a.dtype)
    return z.astype(z_a.dtype), jnp.where(total == 0, -jnp.inf, top + jnp.log(some))


def holds_scores(dtype: jnp.dtype | str, platform: str, heads: int, d_head: int) -> bool:
    """Return whether the implementation chosen on a platform holds the scores of all queries."""
    if platform == "tpu":
        q = jax.ShapeDtypeStruct((1, heads, d_head), dtype)
        return (
            _mosaic_tpu().unsuitable(q, jax.ShapeDtypeStruct((heads, 1, d_head), dtype)) is not None
        )
    return _unsuitable(dtype, platform) is not None


def _mosaic_tpu() -> ModuleType:
    # Pallas takes long to import.
    return importlib.import_module(".mosaic_tpu", __package__)


def _check(implementation: str, q: Array, k: Array) -> None:
    """Raise `InputError` if there is no such implementation, or it cannot take such arguments."""
    if implementation not in _IMPLEMENTATIONS:
        names = ", ".join(_IMPLEMENTATIONS)
        raise InputError(f"No attention kernel {implementation!r}: choose one of {names}.")
    name, problem = "", None
    if implementation == "cudnn":
        name, problem = "cuDNN's attention", _unsuitable(q.dtype, jax.default_backend())
    elif implementation == "mosaic_tpu":
        name, problem = "The attention kernel for TPUs", _mosaic_tpu().unsuitable(q, k)
    if problem:
        raise InputError(f"{name} {problem}: choose the implementation 'xla'.")


def _unsuitable(dtype: jnp.dtype | str, platform: str) -> str | None:
    """Say why cuDNN cannot take numbers of a dtype on a platform; `None` if it can."""
    if jnp.dtype(dtype) not in _OF_CUDNN:
        return f"takes bfloat16 or float16, not {dtype}"
    return None if platform == "gpu" else f"runs on NVIDIA GPUs, not on {platform.upper()}"


@functools.cache
def has_libtpu() -> bool:
    """Tell whether JAX can write programs for TPUs here, on a TPU or not."""
    return importlib.util.find_spec("libtpu") is not None


@functools.cache
def has_cudnn() -> bool:
    """Tell whether JAX can write programs for cuDNN here, on a GPU or not."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return any("cuda" in plugin.name for plugin in plugins)
