"""The style that all pictures share: colours, cells with numbers, colour bars, titles, files."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxasr_interp.report.plots.fonts import use_fonts
from jaxasr_interp.report.plots.quantity import Quantity
from jaxasr_interp.runtime.store import new_file
from jaxasr_interp.speech.tokenizer import Tokenizer

INK = "#222222"
NOTHING = "#cfcfcf"
LEAST_WIDTH = 4.5
FORMATS = ("png", "svg", "pdf")
"""The formats in which `save` writes pictures."""
_PAGE = 17.0
_WORTH_WRITING = 0.03
_BAR, _LETTER, _TITLE_LETTER = 0.16, 0.075, 0.088
_ROOM_TO_WRITE = (0.42, 0.2)
_SHORT = {"<|startoftranscript|>": "‹start›", "<|notimestamps|>": "‹no times›"}


def axis_labels(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """Return the labels of tokens on an axis: their text without a leading space."""
    return [tokenizer.label(int(token)).strip() or "␣" for token in tokens]


def shorten(text: str, longest: int) -> str:
    """Cut `text` to at most `longest` characters, and write special tokens as `‹name›`."""
    text = _SHORT.get(text, text).replace("<|", "‹").replace("|>", "›")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def plain(text: str) -> str:
    """Escape `text` so that matplotlib reads no mathematics in it."""
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> Any:
    """Make an empty figure of this width and height in inches."""
    from jaxasr_interp.report.plots.figure import Picture

    return Picture(figsize=(width, height), layout="constrained")


def wrap_columns(columns: int, width: float) -> list[slice]:
    """Split columns of `width` inches into as few lines as the page allows, evenly filled."""
    fit = max(1, int(_PAGE / width))
    per_line = -(-columns // -(-columns // fit))
    return [slice(i, min(i + per_line, columns)) for i in range(0, columns, per_line)]


def finish(figure: Any, title: str, note: str = "") -> None:
    """Write the title and a note at the top left, and choose fonts for all texts of the figure."""
    text = f"{title} ({note})" if note else title
    letters = max(20, int(figure.get_figwidth() / _TITLE_LETTER))
    figure.suptitle(plain(textwrap.fill(text, letters)), x=0.01, ha="left", fontsize=11, color=INK)
    use_fonts(figure)


def bare(axes: Any) -> None:
    """Remove the frame and the tick marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)


def percent(share: float, _: object = None) -> str:
    """Write a share at the ticks of an axis."""
    return f"{100 * share:.3g}%"


def pointed(
    values: Float[np.ndarray, "*cells"], limit: float
) -> Literal["neither", "min", "max", "both"]:
    """Say which ends of a colour bar are pointed: those beyond which values lie."""
    below, above = bool((values < -limit).any()), bool((values > limit).any())
    return "both" if below and above else "min" if below else "max" if above else "neither"


def diverging() -> Any:
    """Return a colour map: blue below 0, red above, grey where there is no number."""
    import matplotlib

    return matplotlib.colormaps["RdBu_r"].with_extremes(bad=NOTHING)


def draw_cells(
    axes: Any,
    values: Float[np.ndarray, "row column"],
    quantity: Quantity,
    limit: float,
    cell: tuple[float, float],
) -> Any:
    """Colour a grid of cells, and write their numbers where there is room.

    Args:
        axes: where to draw.
        values: first row at the bottom.
        quantity: says how numbers are written.
        limit: value at which the colours end.
        cell: width and height of a cell in inches.

    Returns:
        The image.
    """
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=diverging(),
        vmin=-limit,
        vmax=limit,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    size = 8 if cell[0] >= 0.5 else 7
    if cell[0] >= _ROOM_TO_WRITE[0] and cell[1] >= _ROOM_TO_WRITE[1]:
        for (row, column), value in np.ndenumerate(values):
            if np.abs(value) >= _WORTH_WRITING * limit:
                colour = "white" if np.abs(value) > 0.6 * limit else INK
                text = quantity.text(float(value))
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    return image


def add_colour_bar(
    figure: Any,
    image: Any,
    axes: Any,
    quantity: Quantity,
    limit: float,
    size: tuple[float, float],
) -> None:
    """Add a colour bar with its label; an end is pointed if values lie beyond it.

    Args:
        figure: the figure.
        image: the image whose colours it explains.
        axes: the axes beside which it stands.
        quantity: the numbers that are shown.
        limit: value at which the colours end.
        size: width and height of those axes in inches.
    """
    values = quantity.values[np.isfinite(quantity.values)]
    width, height = size
    shares = {"format": percent, "ticks": np.linspace(-limit, limit, 5)}
    bar = figure.colorbar(
        image,
        ax=axes,
        fraction=_BAR / (width + _BAR),
        pad=_BAR / (width + _BAR),
        aspect=height / _BAR,
        extend=pointed(values, limit),
        extendfrac=min(0.1, 0.2 / height),
        **(shares if quantity.unit == "share" else {}),
    )
    label = quantity.label if len(values) else f"{quantity.label} (grey: the runs agree)"
    if quantity.beyond:
        label += f"; as far as {quantity.beyond}"
    bar.set_label(textwrap.fill(label, max(8, int(height / _LETTER))), fontsize=9)
    bar.ax.tick_params(labelsize=8)


def save(figure: Any, path: Path) -> Path:
    """Write a picture in the format that the path ends in; it appears complete or not at all.

    Args:
        figure: from one of the plot functions.
        path: path that ends in .png, .svg or .pdf.

    Returns:
        The path.
    """
    from jaxasr_interp.report.plots.figure import write

    with new_file(path) as partial:
        write(figure, partial, path.suffix[1:])
    return path
