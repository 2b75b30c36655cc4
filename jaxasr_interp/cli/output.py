"""The output of the command line: consoles and JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jaxasr_interp.cli.options import picture_formats
from jaxasr_interp.report.plots.canvas import save
from jaxasr_interp.runtime.store import new_file, to_json

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

console = Console()
errors = Console(stderr=True)


def say(message: str) -> None:
    """Print a line on standard error without markup and without wrapping."""
    errors.print(message, markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print JSON; numbers that are not finite become null."""
    print(to_json(content))


def name_model(stored: Mapping[str, Any]) -> str:
    """Return the name, for titles, of the model that the attributes of a store are of."""
    return Path(str(stored.get("model") or "unknown model").partition(" sha256:")[0]).name


def write_picture(figure: "matplotlib.figure.Figure", folder: Path, name: str) -> list[Path]:
    """Write a picture in every format that the command is asked for; return the paths."""
    return [save(figure, folder / f"{name}.{ending}") for ending in picture_formats.get()]


def write_csv(table: "pandas.DataFrame", store: Path) -> Path:
    """Write a result as a table beside its store; what is not known is an empty cell."""
    path = store.with_suffix(".csv")
    with new_file(path) as partial:
        table.to_csv(partial, index=False)
    return path
