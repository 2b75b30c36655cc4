"""The public functions of the lens readout."""

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.kernels.attention import has_cudnn
from jaxasr_interp.pytree import replace

from . import reference

_KERNELS = ("mosaic_tpu", "mosaic_gpu")


def readout(
    hidden: Float[Array, "*stack pos d_model"],
    final: Float[Array, "pos d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " pos"],
    *,
    top_k: int = 5,
    implementation: str | None = None,
) -> reference.Readout:
    """Statistics of the next-token distributions `softmax(hidden Eᵀ)`, in one pass.

    Only the logits of one chunk of the vocabulary exist at a time; where it is differentiated, the
    derivatives take all of them.

    Args:
        hidden: states after the final LayerNorm: of layers, of layers and heads, or of one layer.
        final: the last layer's states after the final LayerNorm, with which `kl` compares.
        unembedding: token embedding matrix.
        targets: the token whose log-probability and rank are read at each position.
        top_k: number of most probable tokens to return.
        implementation: `"xla"`; `"mosaic_tpu"`, a kernel for TPUs, which writes no logits to main
            memory and takes float32 and bfloat16; `"mosaic_gpu"`, one for Hopper GPUs, which takes
            bfloat16; `None` for the kernel on one TPU, else XLA. Kernels take a `top_k` up to 16
            and run on one device (or on each within `shard_map(check_vma=False)`). On a CPU the one
            for TPUs is interpreted, which is slow.

    Returns:
        One `Readout` with a value for each state, in float32 or wider.

    Raises:
        InputError: the implementation does not exist, or cannot take these arrays.
    """
    return _readout(implementation, top_k, hidden, final, unembedding, targets)


def log_sum_exp(
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    *,
    implementation: str | None = None,
) -> Float[Array, " rows"]:
    """`log Σ_v exp(h · E_v)` of each row, differentiable in both arguments.

    Forward and backward pass hold the logits of one chunk of the vocabulary at a time. When it is
    differentiated, the forward pass also computes `∂/∂h = softmax(h Eᵀ) E`, so that the backward
    pass has only to compute the gradient of `E`.

    Args:
        hidden: states after the final LayerNorm.
        unembedding: token embedding matrix.
        implementation: as in `readout`.

    Returns:
        One number for each row, in float32 or wider.

    Raises:
        InputError: the implementation does not exist, or cannot take these arrays.
    """
    return _log_sum_exp(implementation, hidden, unembedding)


def mean_embedding(
    hidden: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, " rows"], Float[Array, "rows d_model"]]:
    """`log Σ_v exp(h · E_v)` and `softmax(h Eᵀ) E` of each row, in one pass.

    With them, `KL(p_f ‖ p) = (h_f - h) · mean_f - lse_f + lse` takes no further pass.

    Args:
        hidden: states after the final LayerNorm.
        unembedding: token embedding matrix.
        implementation: as in `readout`.

    Returns:
        The log-sum-exp and the mean embedding, in float32 or wider.

    Raises:
        InputError: the implementation does not exist, or cannot take these arrays.
    """
    return _call("mean_embedding", implementation, hidden, unembedding)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _readout(implementation, top_k, hidden, final, unembedding, targets):
    arrays = hidden, final, unembedding, targets
    return _call("readout", implementation, *arrays, top_k=top_k)


@_readout.defjvp
def _differentiated_readout(implementation, top_k, primals, tangents):
    read = _readout(implementation, top_k, *primals)
    states, targets = primals[:-1], primals[-1]
    whole = functools.partial(reference.whole_readout, targets=targets, top_tokens=read.top_tokens)
    _, slopes = jax.jvp(whole, states, tangents[:-1])
    # Whole numbers have no derivatives.
    none = {
        name: np.zeros(getattr(read, name).shape, jax.dtypes.float0)
        for name in ("top_tokens", "target_rank")
    }
    return read, replace(read, **none, **slopes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_sum_exp(implementation, hidden, unembedding):
    return mean_embedding(hidden, unembedding, implementation=implementation)[0]


def _log_sum_exp_forward(implementation, hidden, unembedding):
    lse, mean = mean_embedding(hidden, unembedding, implementation=implementation)
    return lse, (hidden, unembedding, lse, mean)


def _log_sum_exp_backward(implementation, saved, cotangent):
    hidden, unembedding, lse, mean = saved
    return reference.log_sum_exp_gradients(hidden, unembedding, lse, mean, cotangent)


_log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


def _call(function: str, implementation: str | None, *arrays: Array, **static: int) -> Any:
    """Call a function of an implementation."""
    plain = functools.partial(_by_xla, function, static)
    if implementation == "xla":
        return plain(*arrays)
    name = implementation or "mosaic_tpu"
    if name not in _KERNELS:
        names = ", ".join(["xla", *_KERNELS])
        raise InputError(f"No lens kernel {name!r}: choose one of {names}.")
    if implementation is None and not _has_tpu():
        return plain(*arrays)
    # Pallas takes long to import.
    module, here = importlib.import_module(f".{name}", __package__), jax.default_backend()
    kernel = functools.partial(getattr(module, function), **static)
    problem = _unsuitable(module, *arrays, **static)
    if implementation is None:
        if problem:
            return plain(*arrays)
        # Decided where the program is compiled for, which need not be where it is traced.
        return jax.lax.platform_dependent(*arrays, tpu=kernel, default=plain)
    if here not in module.PLATFORMS:
        problem = f"runs on {module.DEVICES}, not on {here.upper()}"
    if problem:
        raise InputError(f"The lens kernel {name!r} {problem}: choose 'xla'.")
    if name == "mosaic_gpu":
        return kernel(*arrays)
    interpreted = functools.partial(kernel, interpret=True)
    return jax.lax.platform_dependent(*arrays, tpu=kernel, default=interpreted)


def _by_xla(function: str, static: dict[str, int], *arrays: Array) -> Any:
    """Call a function of the reference, with chunks for the device it is compiled for."""
    plain = functools.partial(getattr(reference, function), **static)
    if not has_cudnn():
        return plain(*arrays)
    on_gpu = functools.partial(plain, chunk=reference.chunk_on_gpu)
    return jax.lax.platform_dependent(*arrays, cuda=on_gpu, default=plain)


def _unsuitable(module: ModuleType, *arrays: Array, top_k: int = 1) -> str | None:
    """Say why a kernel cannot take these arrays; `None` if it can."""
    dtypes = {array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)}
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    # XLA cannot divide a kernel among devices.
    devices = max(1 if mesh.are_all_axes_manual else mesh.size for mesh in meshes)
    if len(dtypes) > 1 or not dtypes <= set(module.DTYPES):
        taken = " or ".join(map(str, module.DTYPES))
        return f"takes {taken}, not {' and '.join(sorted(map(str, dtypes)))}"
    if top_k > module.MOST_TOP:
        return f"gives up to {module.MOST_TOP} top tokens, not {top_k}"
    return f"runs on one device, not on {devices}" if devices > 1 else None


@functools.cache
def _has_tpu() -> bool:
    """Tell whether programs can be compiled for TPUs here, on one or not."""
    return importlib.util.find_spec("libtpu") is not None
