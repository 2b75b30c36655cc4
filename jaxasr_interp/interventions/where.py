"""Where an edit acts: `At` some cells of one site, with a strength; `Several` one after another.

`At` confines an edit to a layer, head and window of positions: `ã = (1 - α) a + α edit(a)`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import (
    Edit,
    Identity,
    LayerIndex,
    apply_edit,
    check_edit,
    edited_sites,
    identity,
    indices_along,
    needs_source,
    shifted,
    with_source,
)
from jaxasr_interp.model.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    check_site,
    counts_frames,
    head_axis,
    layer_axes,
    position_axis,
)
from jaxasr_interp.pytree import pytree_dataclass, replace, static

EVERY = -1
"""Every layer, or every head."""
END = 2**30
"""Behind the last position of any run."""


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
        stack: whose site it is, where only one is meant: in the other the edit is refused.

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
    stack: Stack | None = static(default=None)

    def __post_init__(self):
        if self.stack is not None:
            check_site(self.stack, self.site)
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
        positions = indices_along(position_axis(site), value)
        chosen = (positions >= start) & (positions < stop)
        heads = head_axis(site)
        if heads is not None:
            chosen &= (indices_along(heads, value) == head) | (head == EVERY)
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

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if the edit is of the other stack, or the model has no such layer or
        head, where they are not traced.
        """
        if self.stack not in (None, stack):
            raise InputError(
                f"The edit is of {self.site!r} in the {self.stack}: it is refused in the {stack}, "
                "whose activations are others."
            )
        check_edit(self.edit, stack, config)
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

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if one of the edits names what the model lacks."""
        for edit in self.parts:
            check_edit(edit, stack, config)


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
