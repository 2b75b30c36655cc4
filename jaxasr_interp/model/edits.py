"""Writing activations: an edit is a pure function `edit(site, layer, value) -> value`.

The model calls its edit at every site. `layer` is the (possibly traced) layer index, or `None` for
sites outside the layers; `value` is the whole activation of that layer. An edit that is a pytree
can pass through `jax.jit`, be mapped with `jax.vmap` (a batch of edits is a sweep) and be
differentiated with `jax.grad` (attribution patching). `interventions.kinds` has the usual ones, and
`interventions.where` says where.

Generation calls the decoder on one position at a time. An edit that treats positions differently
has a method `shifted(offset)`, which gives the edit for values that begin at position `offset`; one
that takes values from a reference run has `with_source(acts)`. One that says in `touches` which
sites it may change spares the model what only the other sites need.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.sites import PATTERN_SITES, Stack, check_site
from jaxasr_interp.pytree import pytree_dataclass

type LayerIndex = int | Array | None
type Edit = Callable[[str, LayerIndex, Array], Array]


@pytree_dataclass
class Identity:
    """The edit that changes nothing."""

    touches = frozenset[str]()

    def __call__(self, site: str, layer: LayerIndex, value: Array) -> Array:
        """Return `value`."""
        return value


identity = Identity()


def as_pytree(edit: Edit) -> Edit:
    """Return an edit that can cross `jax.jit`: plain functions become `jax.tree_util.Partial`."""
    if any(leaf is edit for leaf in jax.tree.leaves(edit)):
        return jax.tree_util.Partial(edit)
    return edit


def shifted(edit: Edit, offset: Array | int) -> Edit:
    """The edit for values whose first position is position `offset` of the run."""
    shift = getattr(edit, "shifted", None)
    return edit if shift is None else shift(offset)


def with_source(edit: Edit, acts: Any) -> Edit:
    """The edit, taking from `acts` what it takes from the reference run."""
    take = getattr(edit, "with_source", None)
    return edit if take is None else take(acts)


def needs_source(edit: Edit) -> bool:
    """Whether the edit takes values from a reference run that it does not have yet."""
    return bool(getattr(edit, "needs_source", False))


def edited_sites(edit: Edit) -> frozenset[str] | None:
    """The sites that the edit may change, its attribute `touches`; `None` if it does not say."""
    return getattr(edit, "touches", None)


def check_edit(edit: Any, stack: Stack, config: WhisperConfig) -> None:
    """Raise `InputError` if the edit names what the model lacks, where it would do nothing.

    Sites are those that it `touches`; an edit that knows more of its cells has a method
    `check(stack, config)`.
    """
    for site in sorted(edited_sites(edit) or ()):
        check_site(stack, site)
    check = getattr(edit, "check", None)
    if check is not None:
        check(stack, config)


def apply_edit(edit: Edit, site: str, layer: LayerIndex, value: Array) -> Array:
    """`edit(site, layer, value)`; raise `InputError` unless it has the value's shape and dtype."""
    edited = edit(site, layer, value)
    shape, dtype = jnp.shape(edited), jnp.result_type(edited)
    if not isinstance(edited, Array) or shape != value.shape or dtype != value.dtype:
        raise InputError(
            f"The edit turned {site!r} from {value.dtype}{list(value.shape)} into "
            f"{dtype}{list(shape)}: an edit keeps shape and dtype."
        )
    return edited


class Tap:
    """Passes each site's value through the edit and keeps the result to be returned.

    A block makes one, uses it for the length of one call and returns `acts`; nothing outlives the
    call.
    """

    def __init__(self, edit: Edit, layer: LayerIndex, patterns: bool = False):
        self.edit, self.layer, self.patterns = edit, layer, patterns
        self.acts: dict[str, Array] = {}

    @property
    def wants_patterns(self) -> bool:
        """Whether anybody may look at attention patterns: an edit, or who reads them."""
        edited = edited_sites(self.edit)
        return self.patterns or edited is None or bool(edited & PATTERN_SITES)

    def __call__(self, site: str, value: Array) -> Array:
        """Return the edited value of `site`, which must keep its shape and dtype."""
        edited = apply_edit(self.edit, site, self.layer, value)
        if self.patterns or site not in PATTERN_SITES:
            self.acts[site] = edited
        return edited


def untouched() -> Tap:
    """A tap that edits nothing, for parts of a block that are called on rows of their own."""
    return Tap(identity, None)


def indices_along(axis: int, value: Array) -> Int[Array, "..."]:
    """Indices along one axis, shaped to broadcast against `value`."""
    shape = [1] * value.ndim
    shape[axis] = -1
    return jnp.arange(value.shape[axis], dtype=jnp.int32).reshape(shape)
