"""The public face of the lens readout."""

from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError

from . import reference

_IMPLEMENTATIONS = {"xla": reference.readout}


def readout(
    hidden: Float[Array, "rows d_model"],
    final: Float[Array, "rows d_model"],
    unembedding: Float[Array, "d_vocab d_model"],
    targets: Int[Array, " rows"],
    *,
    top_k: int = 5,
    implementation: str | None = None,
) -> reference.Readout:
    """Statistics of the next-token distributions `softmax(hidden unembeddingᵀ)`.

    Args:
        hidden: states after the final LayerNorm.
        final: the last layer's states after the final LayerNorm, what `kl` compares with.
        unembedding: token embedding matrix.
        targets: the token whose log-probability and rank are read in each row.
        top_k: how many of the most probable tokens to return.
        implementation: `"xla"`, or `None` for the best one available here.

    Returns:
        One `Readout` with a value for each row, in float32 or wider.

    Raises:
        InputError: the implementation does not exist.
    """
    name = implementation or "xla"
    if name not in _IMPLEMENTATIONS:
        raise InputError(f"No lens kernel {name!r}: choose one of {', '.join(_IMPLEMENTATIONS)}.")
    return _IMPLEMENTATIONS[name](hidden, final, unembedding, targets, top_k)
