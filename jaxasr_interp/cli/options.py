"""Options that several commands share, and functions that read their text."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Annotated, Any

import typer

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.kind_text import KINDS
from jaxasr_interp.patching.metric_names import METRICS
from jaxasr_interp.report.plots.canvas import FORMATS

CLIPS = (
    "a table (.tsv, .csv, .jsonl) or a Hugging Face dataset (a folder or an id, :SPLIT behind it)"
)
"""What a command takes clips from, in its help."""

ModelOption = Annotated[
    str, typer.Option("--model", help="Bundled name, local folder or hub id (see `models`).")
]
DtypeOption = Annotated[str | None, typer.Option(help="float32 (default), bfloat16 or float64.")]
LanguageOption = Annotated[
    str | None, typer.Option(help="Spoken language, code or name; detected by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CsvOption = Annotated[
    bool, typer.Option("--csv", help="Also write the results as a table beside the store.")
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format", help=f"Formats of the pictures: {', '.join(FORMATS)}, or several: png,svg."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace results in --out.")]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Print the plan and how long it would take, and stop.")
]
SweptSiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        help="Sites to sweep: STACK.SITE[@LAYERS[.HEADS]], such as decoder.resid_pre, "
        "encoder.mlp_out@0-3 or decoder.z@*.each (every head alone); repeatable.",
    ),
]
PositionsOption = Annotated[
    str | None,
    typer.Option(
        help="Tokens, or frames and times of sites that are counted in frames: 3, -1, 4:12, 4..12 "
        "(one window), 1.2s, 800ms:1600ms, word:grass, all."
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        help="Number of positions that one patch covers, and the distance between patches (by "
        "default equal): WIDTH[:STRIDE], numbers or times, such as 4 or 200ms:100ms."
    ),
]
AlphaOption = Annotated[
    str, typer.Option(help="Strengths, such as 0.25,0.5,1: ã = (1 - α) a + α · patch.")
]
DirectionOption = Annotated[str, typer.Option(help="clean_to_corrupted, or corrupted_to_clean.")]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(help=f"{', '.join(METRICS)}; repeatable."),
]
MemoryOption = Annotated[
    str | None, typer.Option(help="Memory to use in addition to the model, such as 2GB.")
]
DevicesOption = Annotated[
    int | None, typer.Option(help="Number of devices of this machine; by default all.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        help="COLUMN=VALUE, such as kind=gender: take only these clips; repeatable. A clip must "
        "match every column, by one of its values."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the noise.")]

EditsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        help="KIND:STACK.SITE@LAYERS.HEADS:KEY=VALUE, such as zero:decoder.cross_z@4.7 or "
        "mix:encoder.resid_post@*:alpha=0.5:ref=noise; repeatable: transcribe applies all, "
        "ablate-text each on its own. Kinds: " + ", ".join(KINDS) + ".",
    ),
]

picture_formats: ContextVar[tuple[str, ...]] = ContextVar("picture_formats", default=("png",))
"""The formats of the pictures of the command that runs, as `--format` says."""

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def draws(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that draws the option `--format`, which is read before any work is done."""

    @functools.wraps(command)
    def drawing(*, format_text: str, **given: Any) -> None:
        before = picture_formats.set(parse_formats(format_text))
        try:
            command(**given)
        finally:
            picture_formats.reset(before)

    added = inspect.Parameter(
        "format_text", inspect.Parameter.KEYWORD_ONLY, default="png", annotation=FormatOption
    )
    parameters = [*inspect.signature(command).parameters.values(), added]
    drawing.__dict__["__signature__"] = inspect.Signature(parameters)
    return drawing


def parse_formats(text: str) -> tuple[str, ...]:
    """Read `png,svg`.

    Raises:
        InputError: there is no such format.
    """
    formats = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for name in formats:
        if name not in FORMATS:
            raise InputError(
                f"Pictures cannot be written as {name!r}: choose from {', '.join(FORMATS)}."
            )
    return formats


def refuse_options(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Raise `InputError` if one of these parameters was given on the command line."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]} {why}.")


def parse_alphas(text: str) -> list[float]:
    """Read `0,0.25,1`.

    Raises:
        InputError: an item is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"The strengths {text!r} cannot be read: write them as 0,0.25,1."
        ) from None


def parse_memory(text: str | None) -> int | None:
    """Read `500MB`, `2GB`, `1.5GiB` or a number of bytes.

    Raises:
        InputError: the text cannot be read.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise InputError(f"The memory {text!r} cannot be read: write it as 500MB or 2GB.")
    return int(float(match[1]) * (_BINARY if match[3] else _BYTES)[match[2]])


def parse_where(conditions: Sequence[str]) -> dict[str, list[str]]:
    """Read conditions `COLUMN=VALUE` as the values allowed in each column.

    Raises:
        InputError: a condition cannot be read.
    """
    chosen: dict[str, list[str]] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals:
            raise InputError(f"The condition {condition!r} cannot be read: write COLUMN=VALUE.")
        chosen.setdefault(column, []).append(value)
    return chosen
