"""Edits of activations: pure functions `edit(site, layer, value, context) -> value`.

The model calls its edit at every site. `layer` is the (possibly traced) layer index, or `None` for
sites outside the layers; `value` is the activation of that layer; `context` says which positions
the value holds and what a reference run has there. Generation, which runs one position at a time,
and edits that take values from another run need the context.

`Edit` is the base class; `interventions.kinds` has the usual edits, and `interventions.where` says
where they act. A plain function `edit(site, layer, value) -> value` is an edit too, and so are the
text of an edit and an intervention: public functions read them with `edit_of`. An edit is a pytree,
so that it passes through `jax.jit`, is mapped with `jax.vmap` (a batch of edits is a sweep) and
differentiated with `jax.grad` (attribution patching).
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.sites import (
    PATTERN_SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    check_site,
    counts_frames,
    position_axis,
)
from jaxasr_interp.pytree import pytree_dataclass

type LayerIndex = int | Array | None
type Activations = EncoderActivations | DecoderActivations
type EditLike = Edit | RunEdit | str | Callable[[str, LayerIndex, Array], Array]


@pytree_dataclass
class EditContext:
    """What an edit is told about a value in addition to its site and layer.

    Attributes:
        positions: the token position in the run of each row that the value holds; `None` for a
            whole run, from position 0 on. A value that counts encoder frames holds all of them.
        reference: activations of the reference run at the same positions, where there is such a
            run.
    """

    positions: Int[Array, " pos"] | None = None
    reference: Activations | None = None

    def positions_of(self, site: str, value: Array) -> Int[Array, " pos"]:
        """Return the positions along the position axis of a site's value."""
        if self.positions is not None and not counts_frames("decoder", site):
            return self.positions
        return jnp.arange(value.shape[position_axis(site)], dtype=jnp.int32)


WHOLE_RUN = EditContext()
"""The context of a value that holds every position of its run, without a reference run."""


class Edit:
    """Base class of edits. A subclass is a pytree (see `pytree_dataclass`) and defines `__call__`.

    An edit that takes values from a reference run says so in `needs_reference`. One that knows
    which sites it may change names them in `touches`, so that the model need not compute what only
    other sites need. One that knows more about where it acts extends `check`.
    """

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the edited value, of the same shape and dtype."""
        raise NotImplementedError

    @property
    def touches(self) -> frozenset[str] | None:
        """The sites that the edit may change; `None` if it does not say."""
        return None

    @property
    def needs_reference(self) -> bool:
        """Whether the edit takes values from the context's reference run."""
        return False

    def check(self, stack: Stack, config: WhisperConfig) -> None:
        """Raise `InputError` if the edit names a site that the stack lacks: it would do nothing."""
        for site in sorted(self.touches or ()):
            check_site(stack, site)


class RunEdit:
    """Base class of edits of a whole run, encoder and decoder: see `interventions.intervention`."""


@pytree_dataclass
class Identity(Edit):
    """The edit that changes nothing."""

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return `value`."""
        return value

    @property
    def touches(self) -> frozenset[str]:
        """No site changes."""
        return frozenset()


@pytree_dataclass
class FunctionEdit(Edit):
    """The edit that a plain function `function(site, layer, value) -> value` makes."""

    function: Callable[[str, LayerIndex, Array], Array]

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Any:
        """Return the result of the function, which `apply_edit` checks."""
        return self.function(site, layer, value)


identity = Identity()


@functools.singledispatch
def edit_of(edit: EditLike, stack: Stack, config: WhisperConfig, prompt: int | None = None) -> Edit:
    """Return what a user's edit does in one stack of a run.

    `interventions` registers how the text of an edit, and an intervention, are read.

    Args:
        edit: an edit, a plain function, the text of an edit, or an intervention.
        stack: the stack that is run.
        config: sizes of the model.
        prompt: number of tokens of the prompt, where tokens are generated.

    Raises:
        InputError: it is none of these, or does what cannot be done in this stack.
    """
    return as_edit(edit)


def as_edit(edit: EditLike) -> Edit:
    """Return an edit unchanged, and a plain function wrapped so that it can cross `jax.jit`.

    Raises:
        InputError: `edit` is neither.
    """
    if isinstance(edit, Edit):
        return edit
    if isinstance(edit, type) or not callable(edit):
        what = f"the class {edit.__name__}" if isinstance(edit, type) else type(edit).__name__
        raise InputError(
            f"The edit is {what}: expected a function edit(site, layer, value), or an edit such as "
            "ji.Zero()."
        )
    check_parameters(edit, "The edit", "site", "layer", "value")
    is_leaf = any(leaf is edit for leaf in jax.tree.leaves(edit))
    return FunctionEdit(jax.tree_util.Partial(edit) if is_leaf else edit)


def apply_edit(
    edit: Edit, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
) -> Array:
    """Return the edited value; raise `InputError` unless it has the value's shape and dtype."""
    with traced_values_named(f"The edit at {site!r}"):
        edited: Any = edit(site, layer, value, context)
    if isinstance(edited, np.ndarray | np.generic):
        edited = jnp.asarray(edited)
    kept = f"{value.dtype}{list(value.shape)}"
    if not isinstance(edited, Array):
        raise InputError(
            f"The edit returned {type(edited).__name__} at {site!r}: expected {kept}, as an edit "
            "keeps shape and dtype; write jnp.full_like(value, 0)."
        )
    differs = [what for what in ("shape", "dtype") if getattr(edited, what) != getattr(value, what)]
    if differs:
        raise InputError(
            f"The edit turned {site!r} from {kept} into {edited.dtype}{list(edited.shape)}, of "
            f"another {' and '.join(differs)}: an edit keeps shape and dtype."
        )
    return edited


@contextlib.contextmanager
def traced_values_named(what: str) -> Iterator[None]:
    """Turn what JAX says of a function that asks for traced values into one `InputError`."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ) as error:
        raise InputError(
            f"{what} asks for the value of an argument, which is not known while the function is "
            "compiled: write jnp.where(condition, new, value) instead of if, and jnp instead of np."
        ) from error


def check_parameters(function: Callable[..., Any], what: str, *names: str) -> None:
    """Raise `InputError` unless a function can be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # Some functions that are not written in Python do not say.
        return
    try:
        signature.bind(*names)
    except TypeError:
        raise InputError(
            f"{what} takes {signature}: expected a function of ({', '.join(names)})."
        ) from None


type Keep = Callable[[dict[str, Array]], dict[str, Array]]
"""Chooses, or reduces, what is kept of a layer's activations."""


class Tap:
    """Passes each site's value through the edit and keeps the result to be returned.

    A block makes a tap, uses it during one call and returns `acts`; the tap does not outlive the
    call.
    """

    def __init__(
        self,
        edit: Edit,
        layer: LayerIndex,
        patterns: bool = False,
        context: EditContext = WHOLE_RUN,
    ):
        self.edit, self.layer, self.patterns, self.context = edit, layer, patterns, context
        self.acts: dict[str, Array] = {}

    @property
    def wants_patterns(self) -> bool:
        """Whether attention patterns are needed, by an edit or because they are returned."""
        touched = self.edit.touches
        return self.patterns or touched is None or bool(touched & PATTERN_SITES)

    def __call__(self, site: str, value: Array) -> Array:
        """Return the edited value of `site`, which must keep its shape and dtype."""
        edited = apply_edit(self.edit, site, self.layer, value, self.context)
        if self.patterns or site not in PATTERN_SITES:
            self.acts[site] = edited
        return edited


def untouched() -> Tap:
    """Make a tap that edits nothing, for parts of a block that are called alone on some rows."""
    return Tap(identity, None)


def value_at(acts: Any, site: str, layer: LayerIndex) -> Array | None:
    """Return the activation at a site (in `layer`, unless that is `None`); `None` if not kept."""
    value = getattr(acts, site, None)
    return value if layer is None or value is None else value[layer]


def along(axis: int, indices: Int[Array, " size"], ndim: int) -> Int[Array, "..."]:
    """Reshape indices of one axis so that they broadcast against a value of `ndim` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return indices.reshape(shape)
