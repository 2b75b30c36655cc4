"""The inputs and outputs of a batch of rows.

Rows are interventions × clips, `[clip, row]`. What all rows share is stored once, and what differs
is stored for each row.
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
from jaxasr_interp.generation.prompts import Prompt, limit_new_tokens
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.pytree import pytree_dataclass, static


@pytree_dataclass
class EditRows:
    """Edits of the same structure, one for each row.

    Attributes:
        own: leaves that differ between rows, `[clip, row, ...]`.
        shared: leaves that are the same in all rows.
        count: number of rows of each clip.
        is_own: for each leaf, whether it is in `own` rather than in `shared`.
        structure: tree structure that makes an edit of its leaves.
    """

    own: tuple[Array, ...]
    shared: tuple[Array, ...]
    count: int = static()
    is_own: tuple[bool, ...] = static()
    structure: Any = static()

    def edit(self, own: tuple[Array, ...]) -> Edit:
        """Make the edit of one row from its own leaves."""
        owned, shared = iter(own), iter(self.shared)
        leaves = [next(owned) if mine else next(shared) for mine in self.is_own]
        return jax.tree.unflatten(self.structure, leaves)


@pytree_dataclass
class GenerationJob:
    """All inputs from which the rows of a batch are generated.

    Attributes:
        decoder: the decoder.
        cross: cross-attention keys and values, `[layer, clip, ...]`.
        prompt: tokens with which the rows begin.
        edits: one edit for each row.
        logit_filter: rules for which tokens may follow.
    """

    decoder: Decoder
    cross: CrossKV
    prompt: Prompt
    edits: EditRows
    logit_filter: LogitFilter

    def limit(self, max_new_tokens: int) -> int:
        """Count the new tokens that fit the decoder's context, at most `max_new_tokens`."""
        max_tokens = len(self.decoder.pos_embed[...])
        return limit_new_tokens(max_new_tokens, int(self.prompt.length), max_tokens)


@dataclasses.dataclass(frozen=True)
class GeneratedRows:
    """The tokens that were generated in each row; `lengths` does not count end-of-text."""

    tokens: Int[np.ndarray, "clip row step"]
    log_probs: Float[np.ndarray, "clip row step"]
    lengths: Int[np.ndarray, "clip row"]
    finished: Bool[np.ndarray, "clip row"]
    no_speech: Float[np.ndarray, "clip row"]


def stack_edits(edits: Sequence[Sequence[Edit]]) -> EditRows:
    """Make the rows of a batch from the edits of each clip.

    A leaf that is the same object in all edits is stored once, for example mean activations that
    many interventions share.

    Args:
        edits: edits of each clip, the same number for each, all of the same structure.

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
