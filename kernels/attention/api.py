"""The public function of shared-key attention."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxasr_interp.errors import InputError

from . import cudnn, reference

_IMPLEMENTATIONS = {"xla": reference, "cudnn": cudnn}
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
            holds none and takes 16-bit numbers only; `None` for the best one available here.

    Raises:
        InputError: the implementation does not exist, or does not take this dtype or device.
    """
    if implementation is None:
        few = len(q) * k.shape[1] <= _FEW_SCORES
        if few or jnp.dtype(q.dtype) not in _OF_CUDNN or not has_cudnn():
            return reference.attend(q, k, v, mask)
        # Decided where the program is compiled for, which need not be where it is traced.
        return jax.lax.platform_dependent(
            q, k, v, mask, cuda=cudnn.attend, default=reference.attend
        )
    if implementation not in _IMPLEMENTATIONS:
        names = ", ".join(_IMPLEMENTATIONS)
        raise InputError(f"No attention kernel {implementation!r}: choose one of {names}.")
    problem = _unsuitable(q.dtype, jax.default_backend())
    if implementation == "cudnn" and problem:
        raise InputError(f"cuDNN's attention {problem}: choose the implementation 'xla'.")
    return _IMPLEMENTATIONS[implementation].attend(q, k, v, mask)


def holds_scores(dtype: jnp.dtype | str, platform: str) -> bool:
    """Return whether the implementation chosen on a platform holds the scores of all queries."""
    return _unsuitable(dtype, platform) is not None


def _unsuitable(dtype: jnp.dtype | str, platform: str) -> str | None:
    """Say why cuDNN cannot take numbers of a dtype on a platform; `None` if it can."""
    if jnp.dtype(dtype) not in _OF_CUDNN:
        return f"takes bfloat16 or float16, not {dtype}"
    return None if platform == "gpu" else f"runs on NVIDIA GPUs, not on {platform.upper()}"


@functools.cache
def has_cudnn() -> bool:
    """Tell whether JAX can write programs for cuDNN here, on a GPU or not."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return any("cuda" in plugin.name for plugin in plugins)
