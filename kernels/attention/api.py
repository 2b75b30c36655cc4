"""The public function of shared-key attention."""

import functools
import importlib.metadata
import importlib.util

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxasr_interp.errors import InputError

from . import cudnn, mosaic_tpu, reference

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
        for_tpus = has_libtpu() and mosaic_tpu.unsuitable(q, k) is None
        elsewhere = mosaic_tpu.attend if for_tpus else reference.attend
        if jnp.dtype(q.dtype) not in _OF_CUDNN or not has_cudnn():
            return elsewhere(q, k, v, mask)
        return jax.lax.platform_dependent(q, k, v, mask, cuda=cudnn.attend, default=elsewhere)
    if implementation not in _IMPLEMENTATIONS:
        names = ", ".join(_IMPLEMENTATIONS)
        raise InputError(f"No attention kernel {implementation!r}: choose one of {names}.")
    if implementation == "xla":
        return reference.attend(q, k, v, mask)
    backend = jax.default_backend()
    if implementation == "cudnn":
        name, problem = "cuDNN's attention", _unsuitable(q.dtype, backend)
    else:
        name, problem = "The attention kernel for TPUs", mosaic_tpu.unsuitable(q, k)
    if problem:
        raise InputError(f"{name} {problem}: choose the implementation 'xla'.")
    if implementation == "cudnn":
        return cudnn.attend(q, k, v, mask)
    return mosaic_tpu.attend(q, k, v, mask, interpret=backend != "tpu")


def holds_scores(dtype: jnp.dtype | str, platform: str, heads: int, d_head: int) -> bool:
    """Return whether the implementation chosen on a platform holds the scores of all queries."""
    if platform == "tpu":
        q = jax.ShapeDtypeStruct((1, heads, d_head), dtype)
        return mosaic_tpu.unsuitable(q, jax.ShapeDtypeStruct((heads, 1, d_head), dtype)) is not None
    return _unsuitable(dtype, platform) is not None


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
