"""The kinds of edits: they zero, scale, shift or replace activations, or knock out attention.

Each class edits every cell that it is called on; `where` confines an edit to some cells.
"""

import zlib
from collections.abc import Sequence

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
    """Zero ablation, `a -> 0`."""

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return zeros."""
        return jnp.zeros_like(value)


@pytree_dataclass
class Scale(Edit):
    """Scaling, `a -> factor · a`."""

    factor: Float[Array, ""] | float

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the scaled value."""
        return value * jnp.asarray(self.factor, value.dtype)


@pytree_dataclass
class Add(Edit):
    """Steering, `a -> a + vector`, with the same vector at every cell.

    Args:
        vector: vector of the size of the site's last axis.
    """

    vector: Float[Array, " d"]

    def __post_init__(self):
        if isinstance(self.vector, Sequence):
            raise InputError("The vector to add is a sequence: give an array, jnp.asarray([...]).")

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
    """Noise, `a -> a + std · ε`, with Gaussian ε for each site, layer and cell.

    The same seed gives the same ε. The ε of a cell depends on its position and head, not on the
    length of the run.
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
    """Interchange, `a -> source`, the activation there of another run or the mean of several runs.

    Args:
        source: activations of the other run, from `encode` or `decode` with the sites to patch.
            `None` to take them from the reference run in the context of the edit, which is given
            to `encode`, `generate` or `transcribe`. In generation, positions after the last of the
            source keep their value.
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
        # A reference run holds the same positions as the value; a source holds all of its run.
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
        """Raise `InputError` if the source holds activations of the other stack."""
        other = DecoderActivations if stack == "encoder" else EncoderActivations
        if isinstance(self.source, other):
            raise InputError(
                f"The source of the patch is {other.__name__}: it is refused in the {stack}, whose "
                "activations are others."
            )


@pytree_dataclass
class Mean(Edit):
    """Mean ablation, `a -> mean of a` over clips that are named but not run yet.

    Reading an edit from its text never runs the model. Before the model runs, the computed mean, an
    `Interchange`, replaces this edit: see `generation.means.resolve_means`.

    Args:
        references: the clips' audio files.
        stack: stack of the site.
        site: site at which the mean is taken.
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
    """Attention knockout: no query attends to the keys from `start` up to `stop`.

    `pattern -> pattern · m / Σ(pattern · m)`, where `m` is 0 at those keys; this is the softmax
    over the other keys. A query that has no other key attends to nothing. Geva et al. 2023.
    """

    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the edited pattern; raise `InputError` if the site is no pattern."""
        if site not in ("pattern", "cross_pattern"):
            raise InputError(
                f"Attention is knocked out at 'pattern' or 'cross_pattern', not at {site!r}."
            )
        keys = jnp.arange(value.shape[-1], dtype=jnp.int32)
        lost = (keys >= self.start) & (keys < self.stop)
        kept = jnp.where(lost[None, None, :], jnp.zeros_like(value), value)
        total = kept.sum(-1, keepdims=True)
        return jnp.where(total > 0, kept / jnp.where(total > 0, total, jnp.ones_like(total)), kept)
