"""What a patch does to an activation: edits that zero, scale, shift, replace or disconnect.

Each is an edit of every cell it is called on. `At` confines one to a site, layer, head and window
of positions, with a strength: `ã = (1 - α) a + α edit(a)`; `Several` applies one after another.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.edits import (
    Edit,
    Identity,
    LayerIndex,
    apply_edit,
    edited_sites,
    identity,
    needs_source,
    shifted,
    with_source,
)
from jaxasr_interp.errors import InputError
from jaxasr_interp.pytree import pytree_dataclass, replace, static
from jaxasr_interp.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    counts_frames,
    head_axis,
    layer_axes,
    position_axis,
)

EVERY = -1
"""Every layer, or every head."""
END = 2**30
"""Behind the last position of any run."""


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
        at = _along(axis, value) + self.offset
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
        layer: which layer, or `EVERY` (-1); not looked at for a site outside the layers.
        start: first position (a token, or an encoder frame).
        stop: the position after the last; by default all that follow.
        head: which head, or `EVERY` (-1).
        alpha: strength; 1 gives `edit(a)` itself.
        site: a site with a position axis.

    Raises:
        InputError: there is no such site.
    """

    edit: Edit
    layer: Int[Array, ""] | int = EVERY
    start: Int[Array, ""] | int = 0
    stop: Int[Array, ""] | int = END
    head: Int[Array, ""] | int = EVERY
    alpha: Float[Array, ""] | float = 1.0
    site: str = static(default="resid_pre")

    def __post_init__(self):
        if not any(self.site in sites for sites in SITES.values()):
            raise InputError(f"There is no site {self.site!r} in the encoder or the decoder.")
        if not {"pos", "frame", "query"}.intersection(layer_axes(self.site)):
            raise InputError(f"Site {self.site!r} counts neither tokens nor frames.")
        if isinstance(self.head, int) and self.head != EVERY and head_axis(self.site) is None:
            raise InputError(f"Site {self.site!r} has no heads: leave out head {self.head}.")

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return `value` with the chosen cells edited."""
        if site != self.site:
            return value
        start, stop, head = (jnp.asarray(x, jnp.int32) for x in (self.start, self.stop, self.head))
        positions = _along(position_axis(site), value)
        chosen = (positions >= start) & (positions < stop)
        heads = head_axis(site)
        if heads is not None:
            chosen &= (_along(heads, value) == head) | (head == EVERY)
        if layer is not None:
            wanted = jnp.asarray(self.layer, jnp.int32)
            chosen &= (jnp.asarray(layer, jnp.int32) == wanted) | (wanted == EVERY)
        edited = apply_edit(self.edit, site, layer, value)
        return jnp.where(chosen, blend(self.alpha, value, edited), value)

    def shifted(self, offset: Array | int) -> "At":
        """The same cells, their positions counted from `offset`."""
        if counts_frames("decoder", self.site):
            return self
        return replace(
            self,
            edit=shifted(self.edit, offset),
            start=self.start - offset,
            stop=self.stop - offset,
        )

    def with_source(self, acts: EncoderActivations | DecoderActivations) -> "At":
        """The same cells, edited with a reference run's activations."""
        return replace(self, edit=with_source(self.edit, acts))

    @property
    def needs_source(self) -> bool:
        """Whether a reference run is needed."""
        return needs_source(self.edit)

    @property
    def touches(self) -> frozenset[str]:
        """The one site that may change."""
        return frozenset({self.site})


@pytree_dataclass
class Several:
    """One edit after another: `a -> edit_n(... edit_1(a))`.

    Args:
        parts: the edits in order.
    """

    parts: tuple[Edit, ...]

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return the value after all edits."""
        for edit in self.parts:
            value = apply_edit(edit, site, layer, value)
        return value

    def shifted(self, offset: Array | int) -> "Several":
        """All edits from position `offset` on."""
        return Several(tuple(shifted(edit, offset) for edit in self.parts))

    def with_source(self, acts: EncoderActivations | DecoderActivations) -> "Several":
        """All edits with a reference run's activations."""
        return Several(tuple(with_source(edit, acts) for edit in self.parts))

    @property
    def needs_source(self) -> bool:
        """Whether one of them needs a reference run."""
        return any(needs_source(edit) for edit in self.parts)

    @property
    def touches(self) -> frozenset[str] | None:
        """The sites that may change, if all edits say."""
        each = [edited_sites(edit) for edit in self.parts]
        known = [sites for sites in each if sites is not None]
        return frozenset().union(*known) if len(known) == len(each) else None


def together(edits: Sequence[Edit]) -> Edit:
    """One edit that does what all do, in order."""
    parts = [
        part
        for edit in edits
        if not isinstance(edit, Identity)
        for part in (edit.parts if isinstance(edit, Several) else (edit,))
    ]
    return identity if not parts else parts[0] if len(parts) == 1 else Several(tuple(parts))


def blend(alpha: Array | float, value: Array, edited: Array) -> Array:
    """`(1 - α) value + α edited`; bit for bit `edited` itself at α = 1, and `value` at α = 0."""
    alpha = jnp.asarray(alpha, value.dtype)
    alpha = alpha.reshape(alpha.shape + (1,) * (value.ndim - alpha.ndim))
    mixed = (1 - alpha) * value + alpha * edited
    return jnp.where(alpha == 1, edited, jnp.where(alpha == 0, value, mixed))


def _moved(before: Array | int | None, offset: Array | int) -> Array | int:
    """Where a shifted edit begins: `None`, which is no leaf of the tree, until it is shifted."""
    return offset if before is None else before + offset


def _along(axis: int, value: Array) -> Int[Array, "..."]:
    """Indices along one axis, shaped to broadcast against `value`."""
    shape = [1] * value.ndim
    shape[axis] = -1
    return jnp.arange(value.shape[axis], dtype=jnp.int32).reshape(shape)
