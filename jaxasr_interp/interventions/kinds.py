"""What an edit does to an activation: zero, scale, shift, replace, or disconnect.

Each is an edit of every cell that it is called on; `where` confines it to some.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import LayerIndex, indices_along
from jaxasr_interp.model.sites import (
    DecoderActivations,
    EncoderActivations,
    Stack,
    counts_frames,
    position_axis,
)
from jaxasr_interp.pytree import pytree_dataclass, replace


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
    """`a -> a + std · ε`: Gaussian ε of each site, layer and cell, the same for the same seed.

    A cell's ε depends on its position and head alone, not on how long the run is.
    """

    std: Float[Array, ""] | float
    seed: Int[Array, ""] | int = 0
    offset: Int[Array, ""] | int | None = None

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the noisy value."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(site.encode()))
        keys = jax.random.fold_in(key, 0 if layer is None else layer)[None]
        # The same frames are heard at every step.
        offset = None if counts_frames("decoder", site) else self.offset
        for axis, size in enumerate(value.shape[:-1]):
            indices = jnp.arange(size, dtype=jnp.int32)
            if offset is not None and axis == position_axis(site):
                indices = indices + jnp.asarray(offset, jnp.int32)
            keys = jax.vmap(lambda key, i=indices: jax.vmap(jax.random.fold_in, (None, 0))(key, i))(
                keys
            ).reshape(-1)
        draw = jax.vmap(lambda key: jax.random.normal(key, value.shape[-1:], value.dtype))
        return value + jnp.asarray(self.std, value.dtype) * draw(keys).reshape(value.shape)

    def shifted(self, offset: Array | int) -> "Noise":
        """The noise from position `offset` on."""
        return replace(self, offset=_moved(self.offset, offset))


@pytree_dataclass
class Interchange:
    """`a -> source`: the activation that another run, or the mean of several, has there.

    Args:
        source: activations of the other run, from `encode` or `decode` with the sites to patch.
            `None` where `generate` and `transcribe` supply them, from a reference run that writes
            the same tokens. In generation, positions behind the last of the source keep their
            value.
        offset: position of the value's first cell in the source, of a patch that was `shifted`.
    """

    source: EncoderActivations | DecoderActivations | None = None
    offset: Int[Array, ""] | int | None = None

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the source's value; raise `InputError` if it has none or another shape."""
        if self.source is None:
            raise InputError("Nothing is taken from a reference run: give one.")
        source = getattr(self.source, site, None)
        if source is None:
            raise InputError(f"The source of the patch lacks {site!r}: run it with that site.")
        source = source if layer is None else source[layer]
        axis = position_axis(site)
        if source.shape == value.shape and (self.offset is None or counts_frames("decoder", site)):
            return source.astype(value.dtype)
        if self.offset is None or source.shape[:axis] + source.shape[axis + 1 :] != (
            value.shape[:axis] + value.shape[axis + 1 :]
        ):
            raise InputError(
                f"The source of the patch at {site!r} has shape {source.shape} and the run "
                f"{value.shape}: align runs of different length."
            )
        positions = jnp.arange(value.shape[axis], dtype=jnp.int32) + self.offset
        taken = jnp.take(source, positions, axis=axis, mode="clip").astype(value.dtype)
        at = indices_along(axis, value) + self.offset
        return jnp.where((at >= 0) & (at < source.shape[axis]), taken, value)

    def shifted(self, offset: Array | int) -> "Interchange":
        """The patch from position `offset` on."""
        return replace(self, offset=_moved(self.offset, offset))

    def with_source(self, acts: EncoderActivations | DecoderActivations) -> "Interchange":
        """The patch from a reference run's activations, where it has no source of its own."""
        # They begin where the value does.
        return self if self.source is not None else Interchange(acts)

    @property
    def needs_source(self) -> bool:
        """Whether there is no source yet."""
        return self.source is None

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if the source is of the other stack."""
        other = DecoderActivations if stack == "encoder" else EncoderActivations
        if isinstance(self.source, other):
            raise InputError(
                f"The source of the patch is {other.__name__}: it is refused in the {stack}, whose "
                "activations are others."
            )


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


def _moved(before: Array | int | None, offset: Array | int) -> Array | int:
    """Where a shifted edit begins: `None`, which is no leaf of the tree, until it is shifted."""
    return offset if before is None else before + offset
