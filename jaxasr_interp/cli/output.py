"""The output of the command line: consoles and JSON."""

from typing import Any

from rich.console import Console

from jaxasr_interp.runtime.store import to_json

console = Console()
errors = Console(stderr=True)


def say(message: str) -> None:
    """Print a line on standard error without markup and without wrapping."""
    errors.print(message, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print JSON; numbers that are not finite become null."""
    print(to_json(content))
