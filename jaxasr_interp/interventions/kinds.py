"""What an edit does to an activation: zero, scale, shift, replace, or disconnect.

Each is an edit of every cell that it is called on; `where` confines it to some.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import (
    WHOLE_RUN,
    Activations,
    Edit,
    EditContext,
    LayerIndex,
    along,
    value_at,
)
from jaxasr_interp.model.sites import (
    DecoderActivations,
    EncoderActivations,
    Stack,
    counts_frames,
    position_axis,
)
from jaxasr_interp.pytree import pytree_dataclass, static


@pytree_dataclass
class Zero(Edit):
    """`a -> 0`: ablation."""

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return zeros."""
        return jnp.zeros_like(value)


@pytree_dataclass
class Scale(Edit):
    """`a -> factor · a`."""

    factor: Float[Array, ""] | float

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the scaled value."""
        return value * jnp.asarray(self.factor, value.dtype)


@pytree_dataclass
class Add(Edit):
    """`a -> a + vector`: steering, the same vector at every cell.

    Args:
        vector: of the size of the site's last axis.
    """

    vector: Float[Array, " d"]

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the shifted value; raise `InputError` if the sizes differ."""
        if self.vector.shape != value.shape[-1:]:
            raise InputError(
                f"The vector to add has shape {self.vector.shape}: {site} has {value.shape[-1]} "
                "values in each cell."
            )
        vector = self.vector.astype(value.dtype)
        return value + vector.reshape((1,) * (value.ndim - 1) + vector.shape)


@pytree_dataclass
class Noise(Edit):
    """`a -> a + std · ε`: Gaussian ε of each site, layer and cell, the same for the same seed.

    A cell's ε depends on its position and head alone, not on how long the run is.
    """

    std: Float[Array, ""] | float
    seed: Int[Array, ""] | int = 0

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the noisy value."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(site.encode()))
        keys = jax.random.fold_in(key, 0 if layer is None else layer)[None]
        for axis, size in enumerate(value.shape[:-1]):
            indices = jnp.arange(size, dtype=jnp.int32)
            if axis == position_axis(site):
                indices = context.positions_of(site, value)
            keys = jax.vmap(lambda key, i=indices: jax.vmap(jax.random.fold_in, (None, 0))(key, i))(
                keys
            ).reshape(-1)
        draw = jax.vmap(lambda key: jax.random.normal(key, value.shape[-1:], value.dtype))
        return value + jnp.asarray(self.std, value.dtype) * draw(keys).reshape(value.shape)


@pytree_dataclass
class Interchange(Edit):
    """`a -> source`: the activation that another run, or the mean of several, has there.

    Args:
        source: activations of the other run, from `encode` or `decode` with the sites to patch.
            `None` to take them from the reference run that the context of the edit holds: a run
            beside this one, given to `encode`, `generate` or `transcribe`. In generation, positions
            behind the last of the source keep their value.
    """

    source: Activations | None = None

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the source's value; raise `InputError` if it has none or another shape."""
        acts = context.reference if self.source is None else self.source
        if acts is None:
            raise InputError("Nothing is taken from a reference run: give one.")
        source = value_at(acts, site, layer)
        if source is None:
            raise InputError(f"The source of the patch lacks {site!r}: run it with that site.")
        # A reference run has the value's own positions; a source has all of its run.
        whole = context.positions is None or counts_frames("decoder", site)
        if source.shape == value.shape and (whole or self.source is None):
            return source.astype(value.dtype)
        axis = position_axis(site)
        if whole or source.shape[:axis] + source.shape[axis + 1 :] != (
            value.shape[:axis] + value.shape[axis + 1 :]
        ):
            raise InputError(
                f"The source of the patch at {site!r} has shape {source.shape} and the run "
                f"{value.shape}: align runs of different length."
            )
        positions = context.positions_of(site, value)
        taken = jnp.take(source, positions, axis=axis, mode="clip").astype(value.dtype)
        at = along(axis, positions, value.ndim)
        return jnp.where((at >= 0) & (at < source.shape[axis]), taken, value)

    @property
    def needs_reference(self) -> bool:
        """Whether the values come from a reference run."""
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
class Mean(Edit):
    """`a -> mean of a` over clips that are named but not run yet.

    Reading an edit from its text never runs the model. What runs it puts the mean in this edit's
    place, an `Interchange`: see `generation.means.resolve_means`.

    Args:
        references: the clips' audio files.
        stack: whose site it is.
        site: where the mean is taken.
        from_first_step: whether positions count from the one that predicts the first token.
    """

    references: tuple[str, ...] = static()
    stack: Stack = static()
    site: str = static()
    from_first_step: bool = static(default=False)

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Raise `InputError`: the mean is not known yet."""
        raise InputError(
            f"The mean of {', '.join(self.references)} is not known yet: give the edit to "
            "transcribe or ablation_sweep, or to resolve_means first."
        )


@pytree_dataclass
class Knockout(Edit):
    """Attention does not look at the keys from `start` up to `stop`.

    `pattern -> pattern · m / Σ(pattern · m)`, `m` being 0 at those keys: what the softmax gives
    without them. A query that has no other key attends to nothing. Geva et al. 2023.
    """

    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
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
