"""The numbers that everything computes with."""

import jax.numpy as jnp


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which dots, norms and softmaxes of `dtype` values are computed."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
