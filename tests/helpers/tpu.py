"""The programs of a sweep, compiled for TPUs by their own compiler on a machine that has none."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxasr_interp as ji
from helpers.hlo import collectives
from jaxasr_interp.checkpoint.convert import abstract_model
from jaxasr_interp.patching.engine.decoder import propagate_rows
from jaxasr_interp.patching.engine.inject import inject
from jaxasr_interp.patching.engine.packing import pack
from jaxasr_interp.patching.engine.readout import MetricReadout, unembed_and_read
from jaxasr_interp.patching.metrics import LogProb, MetricPositions
from jaxasr_interp.patching.runs import CARRIED, BaseRun, kept_sites
from jaxasr_interp.patching.unpatched import decode_each, encode_each
from jaxasr_interp.runtime.devices import DATA, Lanes, make_mesh
from jaxasr_interp.runtime.placement import shardings


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one device holds and does in a program.

    Attributes:
        bytes: arguments, results and temporaries.
        temporary: the temporaries alone.
        flops: as the compiler counts them, a loop's body once.
        collectives: exchanges between devices.
        groups: the devices among which values are exchanged.
    """

    bytes: int
    temporary: int
    flops: float
    collectives: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]


def tpu_mesh(topology: str, count: int, tensor_parallel: int = 1) -> Mesh:
    """The mesh of the first cores of a topology such as `v5e:2x4`, which can only compile."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return make_mesh(found[:count], tensor_parallel)


def sweep_programs(
    config: ji.WhisperConfig, dtype: str, n_tokens: int, mesh: Mesh
) -> Iterator[tuple[str, Any]]:
    """Lower each program of a sweep of `z` for one pair of runs on each copy of the model.

    In "propagate, lanes" all devices have the same pair, and chunks of their own.

    Yields:
        A program's name, and the program, which can be compiled.
    """
    size = mesh.shape[DATA]
    shared, divided = (
        functools.partial(_placed_alike, NamedSharding(mesh, spec)) for spec in (P(), P(DATA))
    )
    model = abstract_model(config, dtype)
    model = _placed(model, shardings(model, mesh))
    blocks = model.decoder.blocks
    mels = divided(_array(size, config.n_mels, config.mel_frames, dtype="float32"))
    tokens, reads = divided((_array(size, n_tokens), _array(size, 1)))
    sites = kept_sites("decoder", frozenset({"z"})).decoder

    def lowered(program: Any, *arguments: Any, **static: Any) -> tuple[Any, Any]:
        """What a program returns, one part on each device, and the program."""
        returned = divided(jax.eval_shape(functools.partial(program, **static), *arguments))
        return returned, program.lower(*arguments, **static)

    def swept(program: Any, *arguments: Any, runs: tuple[int, ...], **static: Any) -> Any:
        """The same of a program that the devices run with their own runs."""
        given = {"own": (), "runs": runs, **static}
        return lowered(
            jax.jit(functools.partial(Lanes(mesh, True).run, program, **given)), *arguments
        )

    encoded, found = lowered(encode_each, model.encoder, mels, sites=frozenset(), mesh=mesh)
    yield "encode", found
    (cross, acts, logits), found = lowered(
        decode_each, model.decoder, tokens, encoded.states, reads, sites=sites, mesh=mesh
    )
    yield "decode", found
    base = divided(
        jax.eval_shape(BaseRun, mels, tokens, encoded.states, cross, encoded.acts, acts, logits)
    )
    edits = ji.Interchange(acts)
    plan = ji.plan_sweep(
        model, tokens=[0] * n_tokens, site="z", options=ji.PlanOptions(memory=1 << 33)
    )
    chunk = dataclasses.replace(plan, platform="tpu").chunks()[0]
    cells, packing = shared((chunk.cells, pack(chunk, n_tokens, everywhere=False)))
    layers = shared(_array(len(chunk.layers)))
    given = (blocks, base, edits, cells, layers)
    entries, found = swept(inject, *given, runs=(1, 2), site="z", width=chunk.width)
    yield "inject", found
    base = base.only(CARRIED)
    given = (model.decoder, base, entries, layers, packing, reads)
    resid, found = swept(propagate_rows, *given, runs=(1, 2, 5), schedule=chunk.schedule)
    yield "propagate", found
    readout = divided(jax.eval_shape(jax.vmap(_readout), _array(size), reads, logits))
    given = (model.decoder, (resid,), readout)
    _, found = swept(unembed_and_read, *given, runs=(1, 2), batch_size=chunk.size)
    yield "unembed and read", found

    one = shared(_first(base)), divided(_each(size, _first(entries)))
    own = divided(_each(size, (layers, packing)))

    @jax.jit
    def lanes(decoder: Any, base: Any, entries: Any, enters: Any, packing: Any, reads: Any) -> Any:
        given = (decoder, base, entries, enters, packing, reads)
        where = {"own": (2, 3, 4), "runs": (1, 2, 5)}
        return Lanes(mesh).run(propagate_rows, *given, **where, schedule=chunk.schedule)

    _, found = lowered(lanes, model.decoder, *one, *own, shared(_first(reads)))
    yield "propagate, lanes", found


def figures(compiled: Any) -> Figures:
    """Read what one device holds and does from a compiled program."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Figures(
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
        memory.temp_size_in_bytes,
        compiled.cost_analysis()["flops"],
        tuple(collectives(text)),
        tuple(_groups(text)),
    )


def _groups(program: str) -> Iterator[tuple[int, ...]]:
    """Find the groups in lists such as `{{0,1},{2,3}}`, or `[2,2]<=[2,2]T(1,0)` for short."""
    for found in re.findall(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", program):
        for group in re.findall(r"\{([\d,]+)\}", found):
            yield tuple(map(int, group.split(",")))
    short = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    for match in re.findall(short, program):
        shape, sizes, order = (tuple(map(int, text.split(","))) if text else None for text in match)
        every = np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(shape)
        yield from map(tuple, every.tolist())


def _readout(token: jax.Array, pos: jax.Array, clean_logits: jax.Array) -> MetricReadout:
    return MetricReadout((LogProb(token),), MetricPositions(pos, ((0,),)), clean_logits)


def _array(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed[Tree](tree: Tree, shardings: Any) -> Tree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _placed_alike[Tree](sharding: NamedSharding, tree: Tree) -> Tree:
    return _placed(tree, jax.tree.map(lambda _: sharding, tree))


def _first[Tree](tree: Tree) -> Tree:
    """The arrays of one pair."""
    return jax.tree.map(lambda leaf: _array(1, *leaf.shape[1:], dtype=leaf.dtype), tree)


def _each[Tree](devices: int, tree: Tree) -> Tree:
    """The arrays of all devices."""
    return jax.tree.map(lambda leaf: _array(devices, *leaf.shape, dtype=leaf.dtype), tree)
