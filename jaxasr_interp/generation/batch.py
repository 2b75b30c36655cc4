"""What a batch of rows is given and what it gives.

Rows are interventions × clips, `[clip, row]`. What all rows share is kept once, what differs is
kept row by row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.kv_cache import CrossKV
from jaxasr_interp.generation.logit_filters import LogitFilter
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.whisper import Decoder
from jaxasr_interp.pytree import pytree_dataclass, static


@pytree_dataclass
class Prompt:
    """What every row begins with.

    Attributes:
        tokens: of each clip, padded.
        length: how many of them are real.
        start: where the start-of-transcript token is.
    """

    tokens: Int[Array, "clip pos"]
    length: Int[Array, ""]
    start: Int[Array, ""]


@pytree_dataclass
class EditRows:
    """Edits of the same structure, one a row.

    Attributes:
        own: leaves that differ, `[clip, row, ...]`.
        shared: leaves that all rows have in common.
        count: rows of each clip.
        is_own: of each leaf, which of the two it is.
        structure: how leaves make an edit.
    """

    own: tuple[Array, ...]
    shared: tuple[Array, ...]
    count: int = static()
    is_own: tuple[bool, ...] = static()
    structure: Any = static()

    def edit(self, own: tuple[Array, ...]) -> Edit:
        """The edit of the row whose own leaves these are."""
        owned, shared = iter(own), iter(self.shared)
        leaves = [next(owned) if mine else next(shared) for mine in self.is_own]
        return jax.tree.unflatten(self.structure, leaves)


@pytree_dataclass
class GenerationJob:
    """All that the rows of a batch are written from.

    Attributes:
        decoder: the decoder.
        cross: cross-attention keys and values, `[layer, clip, ...]`.
        prompt: what the rows begin with.
        edits: one a row.
        logit_filter: which tokens may follow.
    """

    decoder: Decoder
    cross: CrossKV
    prompt: Prompt
    edits: EditRows
    logit_filter: LogitFilter

    def limit(self, max_new_tokens: int) -> int:
        """How many new tokens the decoder's context leaves room for, at most `max_new_tokens`."""
        return min(max_new_tokens, len(self.decoder.pos_embed[...]) - int(self.prompt.length) + 1)


@dataclasses.dataclass(frozen=True)
class GeneratedRows:
    """What was generated in each row; `lengths` does not count end-of-text."""

    tokens: Int[np.ndarray, "clip row step"]
    log_probs: Float[np.ndarray, "clip row step"]
    lengths: Int[np.ndarray, "clip row"]
    finished: Bool[np.ndarray, "clip row"]
    no_speech: Float[np.ndarray, "clip row"]


def stack_edits(edits: Sequence[Sequence[Edit]]) -> EditRows:
    """Make rows of the edits of each clip.

    A leaf that is the same object in all edits is kept once: the mean activations that many
    interventions share, for example.

    Args:
        edits: of each clip, equally many, all of the same structure.

    Raises:
        InputError: the structures, or the shapes of arrays, differ.
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
            shapes = {jnp.shape(value) for of_clip in values for value in of_clip}
            if len(shapes) > 1:
                raise InputError(
                    f"The edits of one batch hold arrays of different shapes, {sorted(shapes)}: "
                    "give them one after another."
                )
            own.append(jnp.stack([jnp.stack(list(map(jnp.asarray, row))) for row in values]))
        else:
            shared.append(jnp.asarray(leaf))
    return EditRows(tuple(own), tuple(shared), len(edits[0]), tuple(is_own), structure)
