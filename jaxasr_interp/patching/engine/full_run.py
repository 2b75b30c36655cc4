"""The sweep by whole runs: one by one, the plain way, or a batch of edits under `vmap`.

A patch is an edit, and the model runs under it from the beginning (of the stack that it patches).
Everything faster is held against this.
"""

import functools

import jax
from jaxtyping import Array, Float

from jaxasr_interp.interventions.where import At
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.chunks import Cells
from jaxasr_interp.patching.engine.readout import Reads, evaluate
from jaxasr_interp.patching.metrics import Metric
from jaxasr_interp.patching.runs import Run


@functools.partial(jax.jit, static_argnames=("stack", "site"))
def run_batched(
    model: Whisper,
    bases: Run,
    edits: Edit,
    cells: Cells,
    metrics: tuple[Metric, ...],
    reads: Reads,
    clean_logits: Float[Array, "batch read d_vocab"],
    *,
    stack: Stack,
    site: str,
) -> Float[Array, "batch patch metric"]:
    """Every patch of a chunk in a run of its own, all together."""

    def one(base: Run, edit: Edit, metrics: tuple[Metric, ...], clean_logits: Array) -> Array:
        def patched(cell: Cells) -> Array:
            return run_patched(
                model, base, edit, cell, metrics, reads, clean_logits, stack=stack, site=site
            )

        return jax.vmap(patched)(cells)

    return jax.vmap(one)(bases, edits, metrics, clean_logits)


@functools.partial(jax.jit, static_argnames=("stack", "site"))
def run_patched(
    model: Whisper,
    base: Run,
    edit: Edit,
    cell: Cells,
    metrics: tuple[Metric, ...],
    reads: Reads,
    clean_logits: Float[Array, "read d_vocab"],
    *,
    stack: Stack,
    site: str,
) -> Float[Array, " metric"]:
    """One patch in one run."""
    at = At(edit, cell.layer, cell.start, cell.stop, cell.head, cell.alpha, site)
    if stack == "encoder":
        states, _ = model.encoder(base.mel, at)
        resid, _ = model.decoder(base.tokens, model.decoder.cross_keys_values(states))
    else:
        resid, _ = model.decoder(base.tokens, base.cross, at)
    logits, _ = model.decoder.unembed(resid[reads.pos])
    return evaluate(metrics, reads, logits, clean_logits)
