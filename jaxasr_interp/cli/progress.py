"""How far a command is, unless it is to be quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from jaxasr_interp.cli import output
from jaxasr_interp.report import progress as shown
from jaxasr_interp.runtime.progress import Progress

quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether progress is not shown, as the options of all commands say."""


@contextmanager
def progress() -> Iterator[Progress]:
    """Show on standard error how far work is, as `report.progress` does."""
    if quiet.get():
        yield lambda done, total, phase: None
        return
    with shown.progress(output.errors) as on_progress:
        yield on_progress
