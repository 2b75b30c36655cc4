"""`sweep --plan`: what a sweep will take on this machine or on another, before it runs."""

import dataclasses
from typing import Annotated

import jax
import typer

from jaxasr_interp.checkpoint.sizes import model_without_weights
from jaxasr_interp.cli.output import print_json, say
from jaxasr_interp.errors import InputError
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.dataset_work import Grids
from jaxasr_interp.patching.forecast import forecast_sweep
from jaxasr_interp.patching.planning import PlanOptions
from jaxasr_interp.patching.question_shapes import find_shapes
from jaxasr_interp.patching.swept_sites import SweptSites
from jaxasr_interp.runtime.ahead_of_time import has_compiler
from jaxasr_interp.runtime.location import locate
from jaxasr_interp.runtime.runner import RunOptions
from jaxasr_interp.runtime.targets import TargetMachine, this_machine
from jaxasr_interp.speech.clips import choose, find_clips

PlanOption = Annotated[
    bool,
    typer.Option("--plan", help="Print the memory and the time that the sweep takes, and stop."),
]
OnOption = Annotated[
    str | None,
    typer.Option(
        help="Machine to plan for: cpu (this one), or a chip and how many, such as v5e-8, v6e-8, "
        "v5p-8, h100-1; by default this machine's devices."
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens of each run in the plan; by default those of texts in --out, or else 32."
    ),
]


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What `--plan` is asked for.

    Attributes:
        on: name of the machine; `None` for this one.
        tokens: number of tokens of each run; by default as the texts say.
        as_json: whether to print JSON.
    """

    on: str | None
    tokens: int | None
    as_json: bool

    @classmethod
    def read(
        cls, plan: bool, on: str | None, tokens: int | None, as_json: bool
    ) -> "PlanRequest | None":
        """Read the options; `None` if no plan is wanted.

        Raises:
            InputError: an option of a plan was given without `--plan`.
        """
        given = [name for name, value in (("--on", on), ("--tokens", tokens)) if value is not None]
        if given and not plan:
            raise InputError(f"{given[0]} says what to plan for: add --plan.")
        return cls(on, tokens, as_json) if plan else None


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """The sweep that is planned.

    Attributes:
        clips: the table or data set.
        model: name of the model, and dtype of its weights.
        sites: the sites.
        options: runs and questions.
        plan: windows, strengths and memory.
        run: how the work is run.
        out: folder of the stores.
    """

    clips: str
    model: tuple[str, str | None]
    sites: SweptSites
    options: DatasetOptions
    plan: PlanOptions
    run: RunOptions
    out: str


def print_plan(sweep: SweepRequest, request: PlanRequest) -> None:
    """Print what a sweep takes.

    Raises:
        InputError: the machine, the model or the table is unknown, or the sweep does not fit.
    """
    if request.on is not None:
        # No device of this machine is needed, and libtpu is to compile and not to look for one.
        jax.config.update("jax_platforms", "cpu")
    machine = this_machine() if request.on is None else TargetMachine.parse(request.on)
    if sweep.run.tensor_parallel not in (None, 1):
        raise InputError("--plan is for a copy of the model on each device: no --tensor-parallel.")
    if sweep.run.devices is not None:
        if not 1 <= sweep.run.devices <= machine.devices:
            raise InputError(
                f"The number of devices is {sweep.run.devices}: {machine.name} has "
                f"{machine.devices}."
            )
        machine = dataclasses.replace(machine, devices=sweep.run.devices)
    model = model_without_weights(*sweep.model)
    clips = choose(find_clips(sweep.clips), sweep.options.where, sweep.options.limit)
    grids = Grids(model, sweep.sites, sweep.plan, tuple(sweep.options.metrics))
    shapes = find_shapes(grids, clips, locate(sweep.out), sweep.options, request.tokens)
    if machine.platform != "cpu" and request.on is not None:
        say(
            f"compiling the programs of the sweep for {machine.name}, which takes minutes"
            if has_compiler(machine)
            else "the bytes are the plan's own: pip install "
            f"'jaxasr-interp[{machine.platform}]' for the compiler's"
        )
    found = forecast_sweep(grids, shapes, machine, sweep.run.batch_size)
    if request.as_json:
        print_json(dataclasses.asdict(found))
        return
    print(found)
