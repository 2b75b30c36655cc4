"""One edit for each row of a batch: what the rows share once, what differs row by row."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxasr_interp.edits import Edit
from jaxasr_interp.errors import InputError
from jaxasr_interp.pytree import pytree_dataclass, static


@pytree_dataclass
class EditRows:
    """Edits of the same structure, one a row.

    Attributes:
        own: leaves that differ, `[clip, row, ...]`.
        shared: leaves that all rows have in common.
        is_own: of each leaf, which of the two it is.
        structure: how leaves make an edit.
    """

    own: tuple[Array, ...]
    shared: tuple[Array, ...]
    is_own: tuple[bool, ...] = static()
    structure: Any = static()

    def edit(self, own: tuple[Array, ...]) -> Edit:
        """The edit of the row whose own leaves these are."""
        owned, shared = iter(own), iter(self.shared)
        leaves = [next(owned) if mine else next(shared) for mine in self.is_own]
        return jax.tree.unflatten(self.structure, leaves)


def stack_edits(edits: Sequence[Sequence[Edit]]) -> EditRows:
    """Make rows of the edits of each clip.

    A leaf that is the same object in all edits is kept once: the mean activations that many
    interventions share, for example.

    Args:
        edits: of each clip, equally many, all of the same structure.

    Raises:
        InputError: the structures differ.
    """
    flat = [[jax.tree.flatten(edit) for edit in of_clip] for of_clip in edits]
    leaves, structure = flat[0][0]
    if any(other != structure for of_clip in flat for _, other in of_clip):
        raise InputError("The edits of one batch differ in structure: give them one after another.")
    own, shared, is_own = [], [], []
    for i, leaf in enumerate(leaves):
        values = [[row[i] for row, _ in of_clip] for of_clip in flat]
        mine = any(value is not leaf for of_clip in values for value in of_clip)
        is_own.append(mine)
        if mine:
            own.append(jnp.stack([jnp.stack(list(map(jnp.asarray, row))) for row in values]))
        else:
            shared.append(jnp.asarray(leaf))
    return EditRows(tuple(own), tuple(shared), tuple(is_own), structure)
