"""The typer application: its commands, and the options and errors of all commands."""

import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import typer
from typer.core import TyperCommand

from jaxasr_interp._version import __version__
from jaxasr_interp.checkpoint.listing import list_models
from jaxasr_interp.cli.ablate import ablate
from jaxasr_interp.cli.ablate_text import ablate_text
from jaxasr_interp.cli.aggregate import aggregate_command
from jaxasr_interp.cli.attribution import attribution
from jaxasr_interp.cli.demo import run_demo
from jaxasr_interp.cli.encoder_lens import encoder_lens
from jaxasr_interp.cli.extract import extract_command
from jaxasr_interp.cli.lens import lens
from jaxasr_interp.cli.options import JsonOption, draws
from jaxasr_interp.cli.output import console, print_json, say
from jaxasr_interp.cli.patch import patch
from jaxasr_interp.cli.probe import probe
from jaxasr_interp.cli.progress import quiet
from jaxasr_interp.cli.reading import transcribe
from jaxasr_interp.cli.similarity import similarity
from jaxasr_interp.cli.study import study
from jaxasr_interp.cli.sweep import sweep
from jaxasr_interp.cli.tuned_lens import tuned_lens
from jaxasr_interp.cli.verify import verify
from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.compilation_cache import keep_compiled_programs
from jaxasr_interp.runtime.store import command_line

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mechanistic interpretability of Whisper speech recognition.",
)


class _Command(TyperCommand):
    """A command whose context is a `typer.Context`, as the function's annotation says."""

    context_class = typer.Context


for name, command in {
    "transcribe": transcribe,
    "lens": draws(lens),
    "tuned-lens": draws(tuned_lens),
    "encoder-lens": draws(encoder_lens),
    "patch": draws(patch),
    "attribution": draws(attribution),
    "sweep": sweep,
    "aggregate": draws(aggregate_command),
    "ablate": draws(ablate),
    "ablate-text": draws(ablate_text),
    "extract": extract_command,
    "probe": draws(probe),
    "similarity": draws(similarity),
    "verify": verify,
}.items():
    app.command(name, cls=_Command)(command)
app.add_typer(study, name="study")


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models that can be loaded here, and how."""
    rows = list_models()
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table()
    for name in ("model", "kind", "state", "how"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's results.")] = Path("demo"),
) -> None:
    """Transcribe two sentences that differ in one word, and show which activations decide it."""
    run_demo(out, console)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(
            f"jaxasr-interp {__version__} (jax {jax.__version__}, {jax.devices()[0].device_kind})"
        )
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
    without_progress: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not show how far work is.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is loaded, planned and run.")
    ] = False,
) -> None:
    quiet.set(without_progress)
    _log_to_stderr(verbose)
    keep_compiled_programs()


def _log_to_stderr(verbose: bool) -> None:
    """Print what the library logs as lines on standard error: warnings or, if asked, all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogLines())
    log = logging.getLogger("jaxasr_interp")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if verbose else logging.WARNING)


class _LogLines(logging.Formatter):
    """Says of a warning that it is one, as `_show_warning` does."""

    def format(self, record: logging.LogRecord) -> str:
        warns = record.levelno >= logging.WARNING
        return f"warning: {record.getMessage()}" if warns else record.getMessage()


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    """Print a warning as one line, without its place in the code."""
    say(f"warning: {message}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default with the arguments of the process."""
    given = sys.argv[1:] if arguments is None else arguments
    before = command_line.set(shlex.join(["jaxasr-interp", *given]))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(given)
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{error.strerror or error}.")
        sys.exit(2)
    finally:
        command_line.reset(before)
