"""How far long work is: a bar in a terminal, lines in a log, or nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.progress import (
    Progress as Bar,
)
from rich.progress import (
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxasr_interp.cli import output
from jaxasr_interp.runtime.progress import Progress

quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether progress is not shown, as the options of all commands say."""
_SECONDS_BETWEEN_LINES = 10


@contextmanager
def progress() -> Iterator[Progress]:
    """Show how far work is on standard error; yield `on_progress(done, total, phase)`.

    The phase is what is counted. A terminal gets a bar, which starts again when the phase or the
    total changes; anything else, such as a batch system's log, a line every ten seconds.
    """
    if quiet.get():
        yield lambda done, total, phase: None
    elif output.errors.is_terminal:
        with _bar() as on_progress:
            yield on_progress
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=output.errors, transient=True) as bar:
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
    """Prints how far each phase is, how fast it goes and how long it takes, in lines."""

    def __init__(self) -> None:
        self._phase: tuple[int, str] | None = None
        self._started, self._from, self._said = 0.0, 0, 0.0

    def __call__(self, done: int, total: int, phase: str) -> None:
        now = time.monotonic()
        if (total, phase) != self._phase:
            self._phase, self._started, self._from, self._said = (total, phase), now, done, now
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        speed = (done - self._from) / (now - self._started)
        left = f", {speed:.3g}/s, {_duration((total - done) / speed)} left" if speed else ""
        output.say(f"{done}/{total} {phase}{left}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
