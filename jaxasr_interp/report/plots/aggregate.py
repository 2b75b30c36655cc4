"""The picture of a data-set sweep: component × layer, a panel for each group of positions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxasr_interp.report.plots.canvas import (
    INK,
    bare,
    diverging,
    finish,
    new_figure,
    percent,
    plain,
    shorten,
)

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray

_CELL = (0.5, 0.24)
_LABELS, _BAR, _LETTER = 1.9, 1.0, 0.09
_NAMES = {
    "prompt": "prompt",
    "text": "text",
    "last": "token before the word",
    "before": "before the word",
    "word": "in the word",
    "after": "after the word",
}


def plot_aggregate(summary: "xarray.Dataset", title: str) -> "matplotlib.figure.Figure":
    """Draw the mean `recovered` of every component and layer; pale where the interval holds 0.

    Args:
        summary: from `aggregate`; of several strengths the last one is drawn.
        title: title of the picture.
    """
    if "alpha" in summary.dims:
        summary = summary.isel(alpha=-1)
    columns = _labels(summary, "layer")
    longest = max(16, round(len(columns) * _CELL[0] / _LETTER))
    panels = [
        (f"{plain(shorten(str(value), longest))}\n" if value else "", _NAMES[str(group)], where)
        for value in (summary["value"].values if "value" in summary.dims else [""])
        for group in summary["group"].values
        for where in [{"group": group} | ({"value": value} if "value" in summary.dims else {})]
    ]
    rows = _labels(summary, "component")
    n_groups = summary.sizes["group"]
    lines = len(panels) // n_groups
    width = _LABELS + n_groups * (len(columns) * _CELL[0] + 0.3) + _BAR
    height = 1.1 + lines * (len(rows) * _CELL[1] + 0.8)
    figure = new_figure(max(width, 6.0), max(height, 2.4))
    grid = figure.subplots(lines, n_groups, squeeze=False, sharey=True)
    limit = float(np.clip(np.nanmax(np.abs(summary["mean"].values), initial=0), 0.05, 1))
    image = None
    for axes, (value, group, where) in zip(grid.flat, panels, strict=True):
        cell = summary.sel(where)
        image = _draw(axes, cell, (len(rows), len(columns)), limit)
        axes.set_title(f"{value}{group}\n{int(cell['questions'])} questions", fontsize=9, color=INK)
        axes.set_xticks(range(len(columns)), columns, fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        bare(axes)
    for axes in grid[-1]:
        axes.set_xlabel("layer", fontsize=8)
    bar = figure.colorbar(image, ax=grid, fraction=0.03, pad=0.02, format=percent)
    bar.set_label(f"mean recovered {summary.attrs['metric']}", fontsize=8)
    bar.outline.set_visible(False)
    level, unit = 100 * summary.attrs["level"], summary.attrs["unit"]
    note = f"mean ± half the {level:g}% interval over {unit}s, in %; pale: the interval holds 0"
    finish(figure, title, note)
    return figure


def _labels(summary: "xarray.Dataset", axis: str) -> list[str]:
    return [str(label) for label in summary[axis].values] if axis in summary.dims else [""]


def _draw(axes: Any, cell: "xarray.Dataset", shape: tuple[int, int], limit: float) -> Any:
    """Colour one panel, and write its larger numbers and intervals in percent."""
    mean, low, high = (cell[name].values.reshape(shape) for name in ("mean", "low", "high"))
    sure = (low > 0) | (high < 0)
    image = axes.imshow(
        np.ma.masked_invalid(mean),
        cmap=diverging(),
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        alpha=np.where(sure, 1.0, 0.35),
    )
    for (row, column), value in np.ndenumerate(mean):
        if np.abs(value) >= 0.05 * limit:
            colour = "white" if sure[row, column] and np.abs(value) > 0.6 * limit else INK
            half = (high[row, column] - low[row, column]) / 2
            text = f"{100 * value:.0f}±{100 * half:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    return image
