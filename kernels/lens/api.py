"""The public functions of the lens readout."""

from types import ModuleType

from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError

from . import reference

_IMPLEMENTATIONS = {"xla": reference}


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

    Only the logits of one chunk of the vocabulary exist at a time.

    Args:
        hidden: states after the final LayerNorm: of layers, of layers and heads, or of one layer.
        final: the last layer's states after the final LayerNorm, with which `kl` compares.
        unembedding: token embedding matrix.
        targets: the token whose log-probability and rank are read at each position.
        top_k: number of most probable tokens to return.
        implementation: `"xla"`, or `None` for the best one available here.

    Returns:
        One `Readout` with a value for each state, in float32 or wider.

    Raises:
        InputError: the implementation does not exist.
    """
    return _implementation(implementation).readout(hidden, final, unembedding, targets, top_k)


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
        InputError: the implementation does not exist.
    """
    return _implementation(implementation).log_sum_exp(hidden, unembedding)


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
        InputError: the implementation does not exist.
    """
    return _implementation(implementation).mean_embedding(hidden, unembedding)


def _implementation(name: str | None) -> ModuleType:
    if name is not None and name not in _IMPLEMENTATIONS:
        raise InputError(f"No lens kernel {name!r}: choose one of {', '.join(_IMPLEMENTATIONS)}.")
    return _IMPLEMENTATIONS[name or "xla"]
