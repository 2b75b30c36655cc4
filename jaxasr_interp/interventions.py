"""What a patch does to an activation: edits that zero, scale, shift, replace or disconnect.

Each is an edit of every cell it is called on. `At` confines one to a site, layer, head and window
of positions, with a strength: `ã = (1 - α) a + α edit(a)`.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.edits import Edit, LayerIndex, apply_edit
from jaxasr_interp.errors import InputError
from jaxasr_interp.pytree import pytree_dataclass, static
from jaxasr_interp.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    head_axis,
    layer_axes,
    position_axis,
)


@pytree_dataclass
class Zero:
    """`a -> 0`: ablation."""

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return zeros."""
        return jnp.zeros_like(value)


@pytree_dataclass
class Scale:
    """`a -> factor · a`."""

    factor: Float[Array, ""] | float

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the scaled value."""
        return value * jnp.asarray(self.factor, value.dtype)


@pytree_dataclass
class Add:
    """`a -> a + vector`: steering, the same vector at every cell.

    Args:
        vector: of the size of the site's last axis.
    """

    vector: Float[Array, " d"]

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the shifted value; raise `InputError` if the sizes differ."""
        if self.vector.shape != value.shape[-1:]:
            raise InputError(
                f"The vector to add has shape {self.vector.shape}: {site} has {value.shape[-1]} "
                "values in each cell."
            )
        vector = self.vector.astype(value.dtype)
        return value + vector.reshape((1,) * (value.ndim - 1) + vector.shape)


@pytree_dataclass
class Noise:
    """`a -> a + std · ε`: Gaussian ε of each site, layer and cell, the same for the same seed."""

    std: Float[Array, ""] | float
    seed: Int[Array, ""] | int = 0

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the noisy value."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(site.encode()))
        key = jax.random.fold_in(key, 0 if layer is None else layer)
        std = jnp.asarray(self.std, value.dtype)
        return value + std * jax.random.normal(key, value.shape, value.dtype)


@pytree_dataclass
class Interchange:
    """`a -> source`: the activation that another run, or the mean of several, has there.

    Args:
        source: activations of the other run, from `encode` or `decode` with the sites to patch.
    """

    source: EncoderActivations | DecoderActivations

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the source's value; raise `InputError` if it has none or another shape."""
        source = getattr(self.source, site, None)
        if source is None:
            raise InputError(f"The source of the patch lacks {site!r}: run it with that site.")
        source = source if layer is None else source[layer]
        if source.shape != value.shape:
            raise InputError(
                f"The source of the patch at {site!r} has shape {source.shape} and the run "
                f"{value.shape}: align runs of different length."
            )
        return source.astype(value.dtype)


@pytree_dataclass
class Knockout:
    """Attention does not look at the keys from `start` up to `stop`.

    `pattern -> pattern · m / Σ(pattern · m)`, `m` being 0 at those keys: what the softmax gives
    without them. A query that has no other key attends to nothing. Geva et al. 2023.
    """

    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the pattern; raise `InputError` if the site is none."""
        if site not in ("pattern", "cross_pattern"):
            raise InputError(
                f"Attention is knocked out at 'pattern' or 'cross_pattern', not at {site!r}."
            )
        keys = jnp.arange(value.shape[-1], dtype=jnp.int32)
        lost = (keys >= self.start) & (keys < self.stop)
        kept = jnp.where(lost[None, None, :], jnp.zeros_like(value), value)
        total = kept.sum(-1, keepdims=True)
        return jnp.where(total > 0, kept / jnp.where(total > 0, total, jnp.ones_like(total)), kept)


@pytree_dataclass
class At:
    """Confine an edit to some cells of one site, with a strength.

    `ã = (1 - α) a + α edit(a)` in the chosen layer, head and positions; `a` elsewhere.

    Args:
        edit: what to do there.
        layer: which layer; not looked at for a site outside the layers.
        start: first position (a token, or an encoder frame).
        stop: the position after the last.
        head: which head, or -1 for all.
        alpha: strength; 1 gives `edit(a)` itself.
        site: a site with a position axis.

    Raises:
        InputError: there is no such site.
    """

    edit: Edit
    layer: Int[Array, ""] | int
    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int
    head: Int[Array, ""] | int = -1
    alpha: Float[Array, ""] | float = 1.0
    site: str = static(default="resid_pre")

    def __post_init__(self):
        if not any(self.site in sites for sites in SITES.values()):
            raise InputError(f"There is no site {self.site!r} in the encoder or the decoder.")
        if not {"pos", "frame", "query"}.intersection(layer_axes(self.site)):
            raise InputError(f"Site {self.site!r} counts neither tokens nor frames.")

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return `value` with the chosen cells edited."""
        if site != self.site:
            return value
        start, stop, head = (jnp.asarray(x, jnp.int32) for x in (self.start, self.stop, self.head))
        positions = _along(position_axis(site), value)
        chosen = (positions >= start) & (positions < stop)
        heads = head_axis(site)
        if heads is not None:
            chosen &= (_along(heads, value) == head) | (head < 0)
        if layer is not None:
            chosen &= jnp.asarray(layer, jnp.int32) == jnp.asarray(self.layer, jnp.int32)
        edited = apply_edit(self.edit, site, layer, value)
        return jnp.where(chosen, blend(self.alpha, value, edited), value)


def blend(alpha: Array | float, value: Array, edited: Array) -> Array:
    """`(1 - α) value + α edited`; bit for bit `edited` itself at α = 1, and `value` at α = 0."""
    alpha = jnp.asarray(alpha, value.dtype)
    alpha = alpha.reshape(alpha.shape + (1,) * (value.ndim - alpha.ndim))
    mixed = (1 - alpha) * value + alpha * edited
    return jnp.where(alpha == 1, edited, jnp.where(alpha == 0, value, mixed))


def _along(axis: int, value: Array) -> Int[Array, "..."]:
    """Indices along one axis, shaped to broadcast against `value`."""
    shape = [1] * value.ndim
    shape[axis] = -1
    return jnp.arange(value.shape[axis], dtype=jnp.int32).reshape(shape)
