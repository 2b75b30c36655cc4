"""Grouping of interventions that can share a batch, because their edits have one structure."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.where import At, CountedFrom, Several
from jaxasr_interp.model.edits import Edit, Identity
from jaxasr_interp.model.sites import SITES
from jaxasr_interp.pytree import replace


@dataclasses.dataclass(frozen=True)
class GenerationGroup:
    """Interventions whose decoder edits have one structure, so that they are rows of one batch.

    Attributes:
        members: numbers of the interventions.
        edits: decoder edit of each intervention, all of the same structure.
        encodes: whether they edit the encoder, so that each needs an encoder run of its own.
    """

    members: list[int]
    edits: list[Edit]
    encodes: bool


def generation_groups(interventions: Sequence[Intervention], prompt: int) -> list[GenerationGroup]:
    """Group the interventions that can be generated in one batch.

    Edits of single components differ in their site, which is part of the structure. Edits at sites
    that the decoder computes row by row get one common structure: each becomes an edit of all
    their sites that does nothing at the others.
    """
    edits = [one.decoder_edit(prompt) for one in interventions]
    single = [i for i, e in enumerate(edits) if _is_light(interventions[i], e)]
    slots = {_structure(edits[i]): edits[i] for i in single if not isinstance(edits[i], Identity)}
    idle = {key: _idle(edit) for key, edit in slots.items()}
    groups: dict[object, GenerationGroup] = {}
    for i, (one, edit) in enumerate(zip(interventions, edits, strict=True)):
        key: object = "light"
        if i in single and slots:
            own = {} if isinstance(edit, Identity) else {_structure(edit): edit}
            edit = Several(tuple((idle | own).values()))
        else:
            source = (one.reference, one.seed) if edit.needs_reference else None
            key = (_structure(edit), source, isinstance(one.encoder, Identity))
        encodes = not isinstance(one.encoder, Identity)
        group = groups.setdefault(key, GenerationGroup([], [], encodes))
        group.members.append(i)
        group.edits.append(edit)
    return list(groups.values())


def _is_light(intervention: Intervention, edit: Edit) -> bool:
    """Tell whether an edit can become one slot of an edit of many sites."""
    if not isinstance(intervention.encoder, Identity) or edit.needs_reference:
        return False
    cells = edit.edit if isinstance(edit, CountedFrom) else edit
    rowwise = isinstance(cells, At) and "pos" in SITES["decoder"][cells.site][:2]
    return rowwise or isinstance(edit, Identity)


def _idle(edit: Edit) -> Edit:
    """Make an edit of the same structure that acts at no position."""
    if isinstance(edit, CountedFrom):
        return replace(edit, edit=_idle(edit.edit))
    return replace(edit, start=0, stop=0)


def _structure(edit: Edit) -> object:
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(edit))
    return jax.tree.structure(edit), shapes
