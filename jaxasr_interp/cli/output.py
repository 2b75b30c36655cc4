"""The output of the command line: consoles, a progress bar, JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    Progress as Bar,
)
from rich.progress import (
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.store import to_json

console = Console()
errors = Console(stderr=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show a progress bar if standard error is a terminal; yield `on_progress(done, total, phase)`.

    The phase is the bar's unit. When the phase or the total changes, the bar starts again.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        job = bar.add_task("", total=None, state="")
        under_way: tuple[int, str] | None = None

        def on_progress(done: int, total: int, phase: str) -> None:
            nonlocal under_way
            state = f"{done}/{total} {phase}"
            if (total, phase) != under_way:
                under_way = total, phase
                bar.reset(job, total=total, completed=done, state=state)
                return
            bar.update(job, completed=done)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(job, state=f"{state} {speed:.1f}/s" if speed else state)

        yield on_progress


def say(message: str) -> None:
    """Print a line on standard error without markup and without wrapping."""
    errors.print(message, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print JSON; numbers that are not finite become null."""
    print(to_json(content))
