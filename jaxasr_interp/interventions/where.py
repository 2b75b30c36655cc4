"""Where edits act: `At` confines an edit to cells of one site, `Several` applies edits in order.

`At` names a layer, a head, a window of positions and a strength: `ã = (1 - α) a + α edit(a)`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import (
    WHOLE_RUN,
    Edit,
    EditContext,
    EditLike,
    Identity,
    LayerIndex,
    along,
    apply_edit,
    as_edit,
    identity,
)
from jaxasr_interp.model.sites import (
    SITES,
    Stack,
    check_site,
    counts_frames,
    head_axis,
    layer_axes,
    position_axis,
)
from jaxasr_interp.pytree import pytree_dataclass, replace, static

EVERY = -1
"""This number means every layer, or every head."""
END = 2**30
"""A position after the last of any run."""


@pytree_dataclass
class At(Edit):
    """Confine an edit to some cells of one site, with a strength.

    `ã = (1 - α) a + α edit(a)` in the chosen layer, head and positions; `a` elsewhere.

    Args:
        edit: the edit of these cells: an `Edit`, or a plain function.
        layer: layer number, or `EVERY` (-1); ignored for a site outside the layers.
        start: first position (a token, or an encoder frame).
        stop: the position after the last; by default all positions from `start` on.
        head: head number, or `EVERY` (-1).
        alpha: strength; 1 gives `edit(a)` itself.
        site: a site with a position axis.
        stack: stack of the site, or `None` for either; the other stack refuses the edit.

    Raises:
        InputError: there is no such site.
    """

    edit: EditLike
    layer: Int[Array, ""] | int = EVERY
    start: Int[Array, ""] | int = 0
    stop: Int[Array, ""] | int = END
    head: Int[Array, ""] | int = EVERY
    alpha: Float[Array, ""] | float = 1.0
    site: str = static(default="resid_pre")
    stack: Stack | None = static(default=None)

    def __post_init__(self):
        object.__setattr__(self, "edit", as_edit(self.edit))
        if self.stack is not None:
            check_site(self.stack, self.site)
        if not any(self.site in sites for sites in SITES.values()):
            raise InputError(f"There is no site {self.site!r} in the encoder or the decoder.")
        if not {"pos", "frame", "query"}.intersection(layer_axes(self.site)):
            raise InputError(f"Site {self.site!r} counts neither tokens nor frames.")
        if isinstance(self.head, int) and self.head != EVERY and head_axis(self.site) is None:
            raise InputError(f"Site {self.site!r} has no heads: leave out head {self.head}.")

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return `value` with the chosen cells edited."""
        if site != self.site:
            return value
        start, stop, head = (jnp.asarray(x, jnp.int32) for x in (self.start, self.stop, self.head))
        positions = along(position_axis(site), context.positions_of(site, value), value.ndim)
        chosen = (positions >= start) & (positions < stop)
        heads = head_axis(site)
        if heads is not None:
            every_head = jnp.arange(value.shape[heads], dtype=jnp.int32)
            chosen &= (along(heads, every_head, value.ndim) == head) | (head == EVERY)
        if layer is not None:
            wanted = jnp.asarray(self.layer, jnp.int32)
            chosen &= (jnp.asarray(layer, jnp.int32) == wanted) | (wanted == EVERY)
        edited = apply_edit(self.inner, site, layer, value, context)
        return jnp.where(chosen, blend(self.alpha, value, edited), value)

    @property
    def inner(self) -> Edit:
        """The edit of the chosen cells."""
        return as_edit(self.edit)

    @property
    def needs_reference(self) -> bool:
        """Whether values are taken from a reference run."""
        return self.inner.needs_reference

    @property
    def touches(self) -> frozenset[str]:
        """The only site that may change."""
        return frozenset({self.site})

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if the edit is for the other stack, or layer or head does not exist.

        A layer or head that is traced is not checked.
        """
        super().check(stack, config)
        if self.stack not in (None, stack):
            raise InputError(
                f"The edit is of {self.site!r} in the {self.stack}: it is refused in the {stack}, "
                "whose activations are others."
            )
        self.inner.check(stack, config)
        sizes = {}
        if SITES[stack][self.site][0] == "layer":
            sizes["layer"] = config.layers(stack)
        if head_axis(self.site) is not None:
            sizes["head"] = config.heads(stack)
        for what, size in sizes.items():
            index = getattr(self, what)
            if not isinstance(index, Tracer) and int(index) not in (EVERY, *range(size)):
                raise InputError(
                    f"The edit acts at {what} {index} of {self.site!r}: the {stack} has {size}."
                )


@pytree_dataclass
class Several(Edit):
    """Several edits, applied one after another: `a -> edit_n(... edit_1(a))`.

    Args:
        parts: the edits in order.
    """

    parts: tuple[EditLike, ...]

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(map(as_edit, self.parts)))

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the value after all edits."""
        for edit in self.edits:
            value = apply_edit(edit, site, layer, value, context)
        return value

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The parts, each an `Edit`."""
        return tuple(map(as_edit, self.parts))

    @property
    def needs_reference(self) -> bool:
        """Whether one of the edits takes values from a reference run."""
        return any(edit.needs_reference for edit in self.edits)

    @property
    def touches(self) -> frozenset[str] | None:
        """The sites that may change; `None` unless all edits name theirs."""
        each = [edit.touches for edit in self.edits]
        known = [sites for sites in each if sites is not None]
        return frozenset().union(*known) if len(known) == len(each) else None

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if one of the edits names what the model lacks."""
        for edit in self.edits:
            edit.check(stack, config)


@pytree_dataclass
class CountedFrom(Edit):
    """An edit whose positions count from the position `origin` of the run.

    Args:
        edit: the edit.
        origin: the token position that the edit takes for position 0.
    """

    edit: Edit
    origin: Int[Array, ""] | int

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the edited value; the edit counts positions from `origin`."""
        if counts_frames("decoder", site):
            return self.edit(site, layer, value, context)
        positions = context.positions_of(site, value) - jnp.asarray(self.origin, jnp.int32)
        return self.edit(site, layer, value, replace(context, positions=positions))

    @property
    def needs_reference(self) -> bool:
        """Whether values are taken from a reference run."""
        return self.edit.needs_reference

    @property
    def touches(self) -> frozenset[str] | None:
        """The sites that the edit may change; `None` if it does not say."""
        return self.edit.touches

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if the edit names what the model lacks."""
        self.edit.check(stack, config)


def chain(edits: Sequence[Edit]) -> Edit:
    """Make one edit that applies all edits in order."""
    parts = [
        part
        for edit in edits
        if not isinstance(edit, Identity)
        for part in (edit.edits if isinstance(edit, Several) else (edit,))
    ]
    return identity if not parts else parts[0] if len(parts) == 1 else Several(tuple(parts))


def blend(alpha: Array | float, value: Array, edited: Array) -> Array:
    """Compute `(1 - α) value + α edited`; exactly `edited` at α = 1, exactly `value` at α = 0."""
    alpha = jnp.asarray(alpha, value.dtype)
    alpha = alpha.reshape(alpha.shape + (1,) * (value.ndim - alpha.ndim))
    mixed = (1 - alpha) * value + alpha * edited
    return jnp.where(alpha == 1, edited, jnp.where(alpha == 0, value, mixed))
