"""The command `sweep`: patching sweeps over all clips of a table."""

import dataclasses
from typing import Annotated

import typer

from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.cli import options
from jaxasr_interp.cli.output import print_json, say
from jaxasr_interp.cli.pairs import DEFAULT_SITES
from jaxasr_interp.cli.progress import progress
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.cli.sweep_plan import (
    OnOption,
    PlanOption,
    PlanRequest,
    SweepRequest,
    TokensOption,
    print_plan,
)
from jaxasr_interp.patching.dataset import DatasetSweep, sweep_dataset
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.questions import NoQuestionsError
from jaxasr_interp.runtime.runner import RunOptions, Share


def sweep(
    clips: Annotated[str, typer.Argument(help=f"The clips: {options.CLIPS}, with a column path.")],
    model: options.ModelOption = "tiny.en",
    dtype: options.DtypeOption = None,
    language: options.LanguageOption = None,
    reference: Annotated[
        str, typer.Option(help="Audio of the corrupted runs: noise, silence or column:NAME.")
    ] = "noise",
    text: Annotated[
        str, typer.Option(help="Transcript: own for the model's own, or a column of texts.")
    ] = "own",
    word: Annotated[
        str, typer.Option(help="Word that is asked for: last, each or column:NAME.")
    ] = "last",
    times: Annotated[
        bool, typer.Option("--times", help="Also find when the words of all tokens are said.")
    ] = False,
    site: options.SweptSiteOption = None,
    window: options.WindowOption = None,
    alpha: options.AlphaOption = "1",
    direction: options.DirectionOption = "clean_to_corrupted",
    metric: options.MetricOption = None,
    memory: options.MemoryOption = None,
    where: options.WhereOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of clips to take.")] = None,
    seed: options.SeedOption = 0,
    shard: Annotated[
        str | None,
        typer.Option(help="Compute one part of all units, such as 2/8; all parts share --out."),
    ] = None,
    devices: options.DevicesOption = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(
            help="Devices that share a copy of the model; by default as few as can hold it."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Questions that run together; by default 4 on each accelerator, 1 on a CPU."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Dask scheduler whose workers compute the units, as tcp://host:8786."),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Folder of the stores, or a URL such as s3://bucket/name.")
    ] = "runs/sweep",
    plan: PlanOption = False,
    on: OnOption = None,
    tokens: TokensOption = None,
    as_json: options.JsonOption = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Sweep all clips of a table: every component, layer and position, for every word asked for.

    The clean run of a clip is compared with a run that hears its reference, and both take the
    transcript before the word. The same command goes on where it was cut off. A clip that cannot be
    swept is left out and named at the end. `aggregate` summarises the store. With `--plan` nothing
    runs: memory and time are foretold, for this machine or another.
    """
    planned = PlanRequest.read(plan, on, tokens, as_json)
    cells = Selection.read(
        site or DEFAULT_SITES, positions=None, window=window, alpha=alpha, memory=memory
    )
    chosen = DatasetOptions(
        reference=reference,
        word=word,
        text=text,
        language=language,
        metrics=metric or DatasetOptions.metrics,
        direction=direction,
        times=times,
        seed=seed,
        where=options.parse_where(where or []),
        limit=limit,
    )
    share = Share() if shard is None else Share.parse(shard)
    run = RunOptions(share, batch, devices, tensor_parallel, overwrite, scheduler)
    if planned is not None:
        request = SweepRequest(clips, (model, dtype), cells.sites, chosen, cells.options, run, out)
        print_plan(request, planned)
        return
    whisper = load_model(model, dtype)
    try:
        with progress() as on_progress:
            swept = sweep_dataset(
                whisper,
                clips,
                out,
                sites=site or DEFAULT_SITES,
                options=chosen,
                plan=cells.options,
                run=run,
                on_progress=on_progress,
            )
    except NoQuestionsError as error:
        _say_left_out(error.problems)
        say("no clip is left")
        raise typer.Exit(1) from None
    _say_left_out(swept.problems)
    if as_json:
        print_json(dataclasses.asdict(swept) | {"path": str(swept.path)})
        return
    print(_summary(swept, out))


def _summary(swept: DatasetSweep, out: str) -> str:
    if swept.done < swept.questions:
        return (
            f"{swept.path}: {swept.done} of {swept.questions} questions are done; other shards "
            "compute the rest"
        )
    return (
        f"wrote {swept.path}: {swept.questions} questions\n"
        f"summarise it with: jaxasr-interp aggregate {out}"
    )


def _say_left_out(problems: tuple[tuple[str, str], ...]) -> None:
    for path, problem in problems:
        say(f"left out: {path}: {problem}")
