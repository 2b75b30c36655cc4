"""How far long work is: a bar in a terminal, one line in a notebook, lines in a log."""

import functools
import time
from collections.abc import Callable, Iterator
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

_SECONDS_IN_A_LOG, _SECONDS_IN_A_NOTEBOOK = 10.0, 0.5


@contextmanager
def progress(console: Console | None = None) -> Iterator[Progress]:
    """Show how far work is; yield the function that long work takes as `on_progress`.

    A terminal gets a bar, which starts again when the phase or the total changes; a notebook one
    line; anything else, such as a batch system's log, a line every ten seconds.

        with ji.progress() as on_progress:
            ji.activation_patching(model, plan, ..., on_progress=on_progress)

    Args:
        console: where to; by default standard error, or the notebook.
    """
    console = console or Console(stderr=True)
    if console.is_jupyter:
        yield _Lines(_NotebookLine(), _SECONDS_IN_A_NOTEBOOK, with_end=True)
    elif console.is_terminal:
        with _bar(console) as on_progress:
            yield on_progress
    else:
        yield _Lines(functools.partial(_print, console), _SECONDS_IN_A_LOG)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


class _NotebookLine:
    """A line of a cell's output that is written over."""

    def __init__(self) -> None:
        self._shown: Any = None

    def __call__(self, line: str) -> None:
        from IPython.display import Markdown, display  # pyright: ignore[reportMissingImports]

        if self._shown is None:
            self._shown = display(Markdown(line), display_id=True)
        else:
            self._shown.update(Markdown(line))


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
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


class _Lines:
    """Says how far each phase is, how fast it goes and how long it takes, in lines."""

    def __init__(
        self, say: Callable[[str], None], seconds: float, *, with_end: bool = False
    ) -> None:
        self._say, self._seconds, self._with_end = say, seconds, with_end
        self._phase: tuple[int, str] | None = None
        self._started, self._from, self._said = 0.0, 0, 0.0

    def __call__(self, done: int, total: int, phase: str) -> None:
        now = time.monotonic()
        if (total, phase) != self._phase:
            self._phase, self._started, self._from, self._said = (total, phase), now, done, now
        ended = self._with_end and done == total
        if now - self._said < self._seconds and not ended:
            return
        self._said = now
        speed = (done - self._from) / max(now - self._started, 1e-9)
        left = f", {speed:.3g}/s, {_duration((total - done) / speed)} left" if speed else ""
        self._say(f"{done}/{total} {phase}{left}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
