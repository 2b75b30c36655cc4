"""The memory of a sweep on a machine that is not here: its programs, compiled and never run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxasr_interp.interventions.kinds import Interchange
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.engine.readout import MetricReadout
from jaxasr_interp.patching.inputs import SweepInputs
from jaxasr_interp.patching.methods import group_chunks, run_chunks
from jaxasr_interp.patching.metrics import Metric, MetricPositions
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.prepared import Prepared
from jaxasr_interp.patching.runs import BaseRun, kept_sites
from jaxasr_interp.patching.unpatched import decode_both, decode_each, encode_each
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, ProgramMemory
from jaxasr_interp.runtime.devices import Lanes


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a sweep, with the shapes of what it is called with.

    Attributes:
        call: the jitted function.
        arguments: its arguments.
        static: its static arguments.
        alive: all arrays that exist while it runs, its arguments among them.
        results: what it returns.
    """

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    static: Mapping[str, Any]
    alive: Any
    results: Any

    @property
    def name(self) -> str:
        """The function's name, and the site if it has one."""
        site = self.static.get("site")
        name = getattr(self.call, "__name__", "program")
        return name if site is None else f"{name} of {site}"

    @property
    def least(self) -> int:
        """The bytes of what exists when it has run, without the padding of any device."""
        return sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves([self.alive, self.results])
        )


@dataclasses.dataclass(frozen=True)
class Peak:
    """The program during which a device holds the most.

    Attributes:
        program: its name.
        bytes: what the device holds then, the model included; at least that if it does not fit.
    """

    program: str
    bytes: int


def find_peak(programs: Sequence[Program], compiler: DeviceCompiler, memory: int) -> Peak:
    """Compile programs, and find the one during which the device holds the most.

    Args:
        programs: from `sweep_programs`.
        compiler: the device's compiler.
        memory: the device's bytes.

    Returns:
        The peak; the first one found beyond the memory if there is one.
    """
    peak = Peak("", 0)
    for program in sorted(programs, key=lambda one: -one.least):
        found = None
        if program.least <= memory:
            found = compiler.compile(program.call, program.arguments, dict(program.static))
        bytes = memory + 1 if found is None else compiler.size(program.alive) + _own(found)
        peak = max(peak, Peak(program.name, bytes), key=lambda one: one.bytes)
        if peak.bytes > memory:
            break
    return peak


def _own(found: ProgramMemory) -> int:
    return found.results + found.temporaries + found.code


def sweep_programs(
    model: Whisper, plan: SweepPlan, metrics: Sequence[Metric], pairs: int, mesh: Mesh
) -> list[Program]:
    """List the programs with which a device sweeps some pairs of runs.

    The sweep itself names them: it goes through its steps with arrays that have no values.

    Args:
        model: the model; its parameters need no values.
        plan: plan of each pair.
        metrics: metrics of each pair.
        pairs: number of pairs that the device has.
        mesh: the device.

    Returns:
        Each program once.
    """
    c = model.config
    programs: dict[Any, Program] = {}
    sweep = functools.partial(_sweep, plan, metrics, mesh, programs)
    jax.eval_shape(
        sweep,
        model,
        jax.ShapeDtypeStruct((pairs, c.n_mels, c.mel_frames), jnp.float32),
        jax.ShapeDtypeStruct((pairs, plan.n_tokens), jnp.int32),
    )
    return list(programs.values())


def _sweep(
    plan: SweepPlan,
    metrics: Sequence[Metric],
    mesh: Mesh,
    programs: dict[Any, Program],
    model: Whisper,
    mels: Float[Array, "batch n_mels mel_frame"],
    tokens: Int[Array, "batch pos"],
) -> None:
    """Go through the steps of `prepare` and `run_chunks`."""
    pairs, kept = len(tokens), kept_sites(plan.stack, frozenset(plan.sites))
    every = [tuple(metrics), MetricPositions.of(metrics, plan.n_tokens)]
    stacked, positions = jax.tree.map(lambda leaf: jnp.stack([leaf] * pairs), every)
    clips = [mels, mels]

    encoding = _Recorder(None, programs=programs, resident=(model, clips))
    given = (model.encoder, mels)
    # The other clip's run stays beside this one's.
    encoded = encoding.run(encode_each, *given, own=(), sites=kept.encoder, mesh=mesh)
    held = (model, clips, encoded, encoded, tokens)
    decoding = _Recorder(None, programs=programs, resident=held)
    given = (tokens, encoded.states, jnp.asarray(positions.pos))
    if plan.platform == "gpu":
        both = (model.decoder, given, given)
        (cross, acts, logits), _ = decoding.run(decode_both, *both, own=(), sites=kept.decoder)
    else:
        options = {"sites": kept.decoder, "mesh": None}
        given = (model.decoder, *given)
        ran = jax.eval_shape(functools.partial(decode_each, **options), *given)
        decoding = dataclasses.replace(decoding, resident=(decoding.resident, ran))
        cross, acts, logits = decoding.run(decode_each, *given, own=(), **options)

    base = BaseRun(mels, tokens, encoded.states, cross, encoded.acts, acts, logits)
    edits = Interchange(base.acts(plan.stack))
    readout = MetricReadout(stacked, positions, logits)
    resident = (model, clips, encoded.states, base, edits, readout)
    prepared = Prepared(
        model=model,
        plan=dataclasses.replace(plan, reads=positions.count),
        memory=plan.memory,
        inputs=SweepInputs((), (), ()),
        base=base,
        edits=edits,
        readout=readout,
        clean=jnp.zeros((pairs, len(metrics))),
        corrupted=jnp.zeros((pairs, len(metrics))),
        mesh=None,
        lanes=_Recorder(None, programs=programs, resident=resident),
    )
    for chunks, together in group_chunks(prepared, "minimal"):
        # All chunks of a group have the shapes of the first.
        run_chunks(prepared, "minimal", chunks[:1], together)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recorder(Lanes):
    """A lane that notes each program that it is given, and runs none.

    Attributes:
        programs: the programs so far.
        resident: the arrays that exist all the while.
    """

    programs: dict[Any, Program]
    resident: Any

    def take(self, value: jax.Array) -> list[np.ndarray]:
        """Return nothing, as there are no values."""
        return []

    def run(
        self,
        program: Callable[..., Any],
        *arguments: Any,
        own: tuple[int, ...],
        runs: tuple[int, ...] = (),
        **static: Any,
    ) -> Any:
        """Note a program; see `Lanes.run`."""
        results = program(*arguments, **static)
        alive = (self.resident, [arguments[i] for i in own])
        noted = Program(program, _shapes(arguments), static, _shapes(alive), _shapes(results))
        leaves, structure = jax.tree.flatten(noted.arguments)
        self.programs.setdefault((noted.name, structure, *leaves, *static.values()), noted)
        return results


def _shapes[Tree](tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
