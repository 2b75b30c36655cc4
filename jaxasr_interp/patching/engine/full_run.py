"""The sweep by whole runs: one by one, the plain way, or a batch of edits under `vmap`.

A patch is an edit, and the model runs under it from the beginning (of the stack that it patches).
Everything faster is held against this.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.interventions.where import At
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.cells import Cells
from jaxasr_interp.patching.engine.readout import MetricReadout
from jaxasr_interp.patching.runs import BaseRun, for_each_run


@functools.partial(jax.jit, static_argnames=("stack", "site"))
def run_batched(
    model: Whisper,
    bases: BaseRun,
    edits: Edit,
    cells: Cells,
    readouts: MetricReadout,
    *,
    stack: Stack,
    site: str,
) -> Float[Array, "batch patch metric"]:
    """Every patch of a chunk in a run of its own, all together."""

    def one(base: BaseRun, edit: Edit, readout: MetricReadout) -> Array:
        return jax.vmap(
            lambda cell: run_patched(model, base, edit, cell, readout, stack=stack, site=site)
        )(cells)

    return for_each_run(one, bases, edits, readouts)


@functools.partial(jax.jit, static_argnames=("stack", "site"))
def run_patched(
    model: Whisper,
    base: BaseRun,
    edit: Edit,
    cell: Cells,
    readout: MetricReadout,
    *,
    stack: Stack,
    site: str,
) -> Float[Array, " metric"]:
    """One patch in one run."""
    at = At(edit, cell.layer, cell.start, cell.stop, cell.head, cell.alpha, site)
    reads = jnp.asarray(readout.positions.pos)
    return readout(patched_logits(model, base, at, stack, reads))


def patched_logits(
    model: Whisper, base: BaseRun, edit: Edit, stack: Stack, at: Int[Array, " read"]
) -> Float[Array, "read d_vocab"]:
    """Logits of a run under an edit of one stack; what comes before it is the base run's."""
    if stack == "encoder":
        return model(base.mel, base.tokens, encoder_edit=edit, logits_at=at).logits
    run = model.decoder.run(base.tokens, base.states, edit, cross=base.cross, logits_at=at)
    return run.logits
