"""The three methods by which a sweep runs its chunks; several devices run chunks side by side."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.edits import Edit
from jaxasr_interp.patching.array_sizes import base_bytes, row_bytes
from jaxasr_interp.patching.chunks import Chunk, chunks_read_together
from jaxasr_interp.patching.engine.cross_window import propagate_states
from jaxasr_interp.patching.engine.decoder import propagate_rows
from jaxasr_interp.patching.engine.encoder import propagate_frames
from jaxasr_interp.patching.engine.full_run import run_batched, run_patched
from jaxasr_interp.patching.engine.inject import inject
from jaxasr_interp.patching.engine.packing import pack
from jaxasr_interp.patching.engine.readout import MetricReadout, unembed_and_read
from jaxasr_interp.patching.prepared import Prepared
from jaxasr_interp.patching.runs import CARRIED, BaseRun

METHODS = ("minimal", "vmap", "reference")


def check_method(method: str) -> str:
    """Return `method`; raise `InputError` if there is no such method."""
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    return method


def group_chunks(sweep: Prepared, method: str) -> Iterator[tuple[list[Chunk], int]]:
    """Group chunks of one shape whose logits are computed in one call.

    Yields:
        The chunks, and the largest number of a group's chunks that one device runs.
    """
    chunks, lanes = sweep.plan.chunks(method, sweep.utterances_per_device), len(sweep.lanes)
    for site in sweep.plan.sites:
        some = [chunk for chunk in chunks if chunk.site == site]
        if not some:
            continue
        rows = some[0].size * sweep.readout.positions.count * sweep.utterances_per_device
        size = 1
        if method == "minimal":
            steps = -(-len(some) // lanes)
            size = chunks_read_together(steps, rows, _room(sweep) // row_bytes(sweep.plan))
        for start in range(0, len(some), size * lanes):
            yield some[start : start + size * lanes], size


def run_chunks(
    sweep: Prepared, method: str, chunks: Sequence[Chunk], together: int
) -> list[Float[Array, "*lane batch patch metric"]]:
    """Begin to run chunks of one shape; the device may go on when the call returns.

    Args:
        sweep: the sweep.
        method: one of `METHODS`.
        chunks: the chunks of a group.
        together: see `group_chunks`.

    Returns:
        Every metric of every patch, for each step of all lanes, and further values after them.
    """
    if method == "reference":
        return [_one_by_one(sweep, chunk) for chunk in chunks]
    lanes = sweep.lanes
    steps = [chunks[i : i + len(lanes)] for i in range(0, len(chunks), len(lanes))]
    if method == "minimal":
        return _minimal(sweep, steps, together)
    return [_batched(sweep, step) for step in steps]


def fetch_chunks(
    sweep: Prepared, method: str, values: Sequence[Array]
) -> list[Float[np.ndarray, "batch patch metric"]]:
    """Wait for what `run_chunks` began, and return the values of each chunk."""
    if method == "reference":
        return [np.asarray(value) for value in values]
    return [part for value in values for part in sweep.lanes.take(value)]


def _minimal(sweep: Prepared, steps: Sequence[Sequence[Chunk]], together: int) -> list[Array]:
    """Compute only what the patches change; several chunks share one call for their logits."""
    resid = [_propagate(sweep, step) for step in steps]
    idle = together - len(steps)
    return sweep.lanes.run(
        unembed_and_read,
        sweep.model.decoder,
        tuple(resid + resid[-1:] * idle),
        sweep.readout,
        own=(1,),
        runs=(1, 2),
        batch_size=_read_at_once(sweep, together * steps[0][0].size),
    )


def _batched(sweep: Prepared, step: Sequence[Chunk]) -> Array:
    """Run every patch from the beginning, all patches of a chunk in one batch."""
    return sweep.lanes.run(
        run_batched,
        sweep.model,
        sweep.base,
        sweep.edits,
        sweep.lanes.give([chunk.cells for chunk in step]),
        sweep.readout,
        own=(3,),
        runs=(1, 2, 4),
        stack=sweep.plan.stack,
        site=step[0].site,
    )


def _one_by_one(sweep: Prepared, chunk: Chunk) -> Float[Array, "batch patch metric"]:
    """Run every patch from the beginning, one after the other."""
    pairs = [sweep.pair(i) for i in range(sweep.utterances)]
    runs = [_run_each(sweep, chunk, base, edit, readout) for base, edit, readout in pairs]
    return jnp.stack(runs)


def _run_each(
    sweep: Prepared, chunk: Chunk, base: BaseRun, edit: Edit, readout: MetricReadout
) -> Array:
    where = {"stack": sweep.plan.stack, "site": chunk.site}
    return jnp.stack(
        [run_patched(sweep.model, base, edit, cell, readout, **where) for cell in chunk.each()]
    )


def _propagate(sweep: Prepared, step: Sequence[Chunk]) -> Array:
    """Compute the last residual stream at the positions that are read, under a chunk's patches.

    Args:
        sweep: the sweep.
        step: a chunk for each lane.
    """
    model, base, edits, reads = sweep.model, sweep.base, sweep.edits, sweep.readout.positions.pos
    lanes, site, width = sweep.lanes, step[0].site, step[0].width
    cells = lanes.give([chunk.cells for chunk in step])
    if site == "ln_final":
        base = base.only(("resid_mid",))
        given = (model.decoder, base, edits, cells, reads)
        return lanes.run(propagate_states, *given, own=(3,), runs=(1, 2, 4), width=width)
    layers, enters = (
        lanes.give([jax.device_put(np.asarray(of(chunk), np.int32)) for chunk in step])
        for of in (lambda chunk: chunk.layers, lambda chunk: chunk.enters)
    )
    blocks = (model.encoder if sweep.plan.stack == "encoder" else model.decoder).blocks
    # Where one layer's rows run alone, those that enter need no projection there.
    project = sweep.plan.stack == "encoder" or step[0].schedule.together == 1
    where = {"site": site, "width": width, "project": project}
    given = (blocks, base, edits, cells, layers)
    entries = lanes.run(inject, *given, own=(3, 4), runs=(1, 2), **where)
    base = base.only(CARRIED)
    if sweep.plan.stack == "encoder":
        given = (model, base, entries, enters, cells, reads)
        return lanes.run(propagate_frames, *given, own=(2, 3, 4), runs=(1, 2, 5))
    everywhere = sweep.plan.counts_frames
    packing = lanes.give([pack(c, sweep.plan.n_tokens, everywhere=everywhere) for c in step])
    given = (model.decoder, base, entries, enters, packing, reads)
    schedule = step[0].schedule
    return lanes.run(propagate_rows, *given, own=(2, 3, 4), runs=(1, 2, 5), schedule=schedule)


def _read_at_once(sweep: Prepared, patches: int) -> int:
    """Return the number of patches whose logits are held at once."""
    row = 4 * sweep.readout.clean_logits.dtype.itemsize * sweep.plan.config.d_vocab
    row *= sweep.readout.positions.count * sweep.utterances_per_device
    return max(1, min(patches, _room(sweep) // row))


def _room(sweep: Prepared) -> int:
    return sweep.plan.memory - base_bytes(sweep.plan, sweep.utterances_per_device)
