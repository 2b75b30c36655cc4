"""Where the command line writes: consoles, a progress bar, JSON."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxasr_interp.runtime.store import to_json

console = Console()
errors = Console(stderr=True)


def _bar() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on standard error; yields `advance(n)`."""
    with _bar() as bar:
        job = bar.add_task("", total=total, unit=unit, rate="")

        def advance(steps: int) -> None:
            bar.advance(job, steps)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(job, rate=f"{speed:.1f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def progress_of_total(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """The same for work that reports how much of it is done in all."""
    with progress(total, unit) as advance:
        done = 0

        def on_progress(now: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        yield on_progress


@contextmanager
def progress_of_sound(unit: str) -> Iterator[Callable[[int, int, float], None]]:
    """A bar for work that hears sound; yields `on_progress(done, total, seconds_heard)`."""
    started = time.monotonic()
    with _bar() as bar:
        job = bar.add_task("", total=None, unit=unit, rate="")

        def on_progress(done: int, total: int, heard: float) -> None:
            if not heard:
                bar.reset(job, completed=done, total=total)
                return
            rate = f"{heard / (time.monotonic() - started):.1f}× real time"
            bar.update(job, completed=done, rate=rate)

        yield on_progress


@contextmanager
def progress_of_stages(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work in named stages; yields `on_progress(done, total, stage)`."""
    with _bar() as bar:
        jobs: dict[str, TaskID] = {}

        def on_progress(done: int, total: int, stage: str) -> None:
            if stage not in jobs:
                jobs[stage] = bar.add_task("", total=total, unit=f"{unit} ({stage})", rate="")
            bar.update(jobs[stage], completed=done, total=total)

        yield on_progress


def print_json(content: Any) -> None:
    """Print JSON, numbers that are not finite as null."""
    print(to_json(content))


@contextmanager
def steps_done() -> Iterator[Callable[[int, int, str], None]]:
    """A line on standard error that says which step is under way; yields `say(done, of, name)`."""
    if not errors.is_terminal:
        yield lambda done, of, name: None
        return
    with errors.status("") as line:
        yield lambda done, of, name: line.update(f"{done}/{of} {name}")
