"""What a data-set sweep will take on a machine: memory, time, and whether it fits."""

import dataclasses
import functools
import math

import jax

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching import cost
from jaxasr_interp.patching.array_sizes import base_bytes, row_bytes
from jaxasr_interp.patching.dataset_work import Grids
from jaxasr_interp.patching.footprint import Peak, find_peak, sweep_programs
from jaxasr_interp.patching.memory import sweep_bytes
from jaxasr_interp.patching.metric_names import make_metric
from jaxasr_interp.patching.metrics import Metric, MetricPositions
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.question_shapes import QuestionShapes, Shape
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler
from jaxasr_interp.runtime.devices import examples_each
from jaxasr_interp.runtime.targets import TargetMachine

_SHARE = {"cpu": 0.75, "gpu": 0.6, "tpu": 0.6}
"""The share of the roofline that sweeps reach."""
_PROMPT = 4
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a data-set sweep will take. Its text has a few lines.

    Attributes:
        machine: name of the machine.
        devices: number of its devices.
        grid: the grid of the largest question, in words.
        questions: number of questions.
        origin: where the numbers of questions and tokens come from.
        patches: number of patches of all questions.
        flops: FLOPs of all questions, with the runs that they start from.
        batch_size: number of questions that run together.
        bytes: the most that a device holds, the model included.
        memory: bytes of a device.
        peak: the program during which it holds the most.
        compiler: whose figures the bytes are; `None` for the plan's own.
        seconds: time by the roofline, without compilation and without finding the texts.
    """

    machine: str
    devices: int
    grid: str
    questions: int
    origin: str
    patches: int
    flops: int
    batch_size: int
    bytes: int
    memory: int
    peak: str
    compiler: str | None
    seconds: float

    def __str__(self) -> str:
        by = "the plan's own figure, not a compiler's"
        if self.compiler is not None:
            by = f"as {self.compiler} compiles it, in {self.peak}"
        many = "device" if self.devices == 1 else "devices"
        return (
            f"{self.grid}\n"
            f"  {self.questions} questions: {self.origin}\n"
            f"  {self.patches:.3g} patches, {self.flops / 1e12:.3g} TFLOP\n"
            f"on {self.machine}: {self.devices} {many}, {self.batch_size} questions together\n"
            f"  {self.bytes / _GB:.1f} GB of {self.memory / _GB:.1f} GB on each device ({by})\n"
            f"  about {_duration(self.seconds)}: an estimate, without compilation and without "
            "finding the texts"
        )


def forecast_sweep(
    grids: Grids, shapes: QuestionShapes, machine: TargetMachine, batch_size: int | None = None
) -> Forecast:
    """Foretell what a data-set sweep takes on a machine.

    For TPUs and GPUs whose compiler is installed here, the bytes are the compiler's: every program
    of the largest question is compiled for one device. Else they are the plan's own estimate.

    `seconds = Σ max(FLOPs / rate, bytes / bandwidth) / (share · devices)`, where the share of this
    roofline that sweeps reach is 0.6 (0.75 on a processor, whose rate is measured).

    Args:
        grids: grids of patches of the model, which needs no weights.
        shapes: the questions.
        machine: the machine.
        batch_size: see `RunOptions`.

    Raises:
        InputError: it does not fit; the message says which batch would.
    """
    memory = grids.options.memory or machine.memory // 4
    options = dataclasses.replace(grids.options, memory=memory)
    job = _Job(dataclasses.replace(grids, options=options), machine)
    each = examples_each(machine.platform, machine.devices, batch_size)
    peak, problem = job.peak(shapes.largest, each)
    if peak is None:
        raise InputError(
            f"{machine.devices * each} questions at a time, {each} on each device of "
            f"{machine.name}, {problem}: {_way_out(job, shapes, each)}."
        )
    plans = {shape: job.plan(shape) for shape in shapes.counts}
    return Forecast(
        machine=machine.name,
        devices=machine.devices,
        grid=_grid(plans[shapes.largest]),
        questions=shapes.total,
        origin=shapes.origin,
        patches=sum(plans[shape].runs * n for shape, n in shapes.counts.items()),
        flops=sum(job.flops(plans[shape]) * n for shape, n in shapes.counts.items()),
        batch_size=machine.devices * each,
        bytes=peak.bytes,
        memory=machine.memory,
        peak=peak.program,
        compiler=job.compiler.name if job.compiler is not None else None,
        seconds=sum(job.seconds(plans[shape], n, each) for shape, n in shapes.counts.items()),
    )


def _way_out(job: "_Job", shapes: QuestionShapes, each: int) -> str:
    """Say which smaller batch fits."""
    while each > 1:
        each //= 2
        peak, _ = job.peak(shapes.largest, each)
        if peak is not None:
            batch = each * job.machine.devices
            return f"--batch {batch} fits, in {peak.bytes / _GB:.1f} GB"
    return "no smaller batch fits; choose fewer sites, a smaller dtype or larger devices"


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """The questions of a sweep on a machine."""

    grids: Grids
    machine: TargetMachine

    @functools.cached_property
    def compiler(self) -> DeviceCompiler | None:
        """The compiler of the machine's devices, if it is here."""
        return DeviceCompiler(self.machine) if has_compiler(self.machine) else None

    def plan(self, shape: Shape) -> SweepPlan:
        """The plan of one question, as the machine will run it."""
        reads = MetricPositions.of(self._metrics(shape), shape[0]).count
        plan = self.grids.plan(shape)
        return dataclasses.replace(plan, platform=self.machine.platform, reads=reads)

    def _metrics(self, shape: Shape) -> list[Metric]:
        n_tokens = shape[0]
        prompt = min(_PROMPT, n_tokens)
        return [make_metric(name, [0] * n_tokens, prompt, (0, 1)) for name in self.grids.metrics]

    def peak(self, shape: Shape, each: int) -> tuple[Peak | None, str]:
        """Find what a device holds with so many questions; or why it cannot hold them."""
        plan, memory = self.plan(shape), self.machine.memory
        try:
            chunks = plan.chunks(utterances=each)
        except InputError:
            room = f"{plan.memory / _GB:.1f} GB"
            return None, f"do not fit the {room} that the sweep may use in addition to the model"
        if self.compiler is None:
            peak = Peak("", _nbytes(self.grids.model) + sweep_bytes(plan, chunks, each))
        else:
            metrics, mesh = self._metrics(shape), self.compiler.mesh
            programs = sweep_programs(self.grids.model, plan, metrics, each, mesh)
            peak = find_peak(programs, self.compiler, memory)
        if peak.bytes <= memory:
            return peak, ""
        where = f" in {peak.program}" if peak.program else " by the plan's own figures"
        return None, f"need more than its {memory / _GB:.1f} GB{where}"

    def flops(self, plan: SweepPlan) -> int:
        """FLOPs of one question."""
        config, n_tokens = plan.config, plan.n_tokens
        encoding = cost.encoder_flops(config) + cost.cross_flops(config)
        return plan.flops + 2 * (encoding + cost.decoder_flops(config, n_tokens))

    def seconds(self, plan: SweepPlan, questions: int, each: int) -> float:
        """Time of some questions; the last batch is filled up."""
        machine = self.machine
        batches = math.ceil(questions / (each * machine.devices))
        rate = machine.rate(plan.dtype) or cost.matmul_rate(plan.dtype)
        seconds = each * self.flops(plan) / rate
        if machine.bandwidth is not None:
            seconds = max(seconds, self._traffic(plan, each) / machine.bandwidth)
        return batches * seconds / _SHARE[machine.platform]

    def _traffic(self, plan: SweepPlan, each: int) -> float:
        """Bytes that a device's memory gives and takes in one batch.

        What a row has in a layer is written and read once, and each chunk reads the decoder's
        weights, and every question's keys and values.
        """
        config = plan.config
        of_row = cost.encoder_row if plan.stack == "encoder" else cost.decoder_row
        rows = each * plan.flops / of_row(config)
        chunks = len(plan.chunks(utterances=each))
        return 2 * rows * row_bytes(plan) + chunks * (
            _nbytes(self.grids.model.decoder) + base_bytes(plan, each) / 2
        )


def _grid(plan: SweepPlan) -> str:
    """Describe a plan by its sites rather than by each of their heads."""
    return f"sweep of {plan.stack} {', '.join(plan.sites)}: {plan.grid_text}"


def _nbytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
