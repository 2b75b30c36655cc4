"""Pictures of sweeps over tokens: a panel for each component, a line of panels for each α."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.report.plots.canvas import (
    INK,
    LEAST_WIDTH,
    add_colour_bar,
    bare,
    draw_cells,
    finish,
    new_figure,
    plain,
    shorten,
)
from jaxasr_interp.report.plots.quantity import Quantity, scales
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND

if TYPE_CHECKING:
    import matplotlib.figure

MOST_PANELS = 24
_WIDTH, _HEIGHT = 14.0, 12.0
_CELL_WIDTHS = (0.45, 0.3, 0.2)
_LOW_CELL = 0.27


@dataclasses.dataclass(frozen=True)
class Panel:
    """One heatmap of a picture with several heatmaps.

    Attributes:
        title: name of the component and α; the range of the colours where panels differ in it.
        values: the numbers.
        scale: the numbers of all panels that have the same colours.
    """

    title: str
    values: Float[np.ndarray, "layer pos"]
    scale: Quantity


def plot_sweep(
    quantity: Quantity, token_labels: Sequence[str], title: str
) -> "matplotlib.figure.Figure":
    """Draw a number for every layer and token, or stretch of time.

    Args:
        quantity: from `share` or `change`.
        token_labels: text of every token of the run.
        title: written above.

    Returns:
        The figure.
    """
    lines, note = panel_lines(quantity)
    plan = quantity.plan
    n_lines, per_line = len(lines), max(map(len, lines))
    rows, columns = len(plan.layers), len(plan.windows)
    cell = (
        float(np.clip(_WIDTH / (per_line * columns), 0.17, 0.72)),
        float(np.clip(_HEIGHT / (n_lines * rows), 0.13, 0.42)),
    )
    gap = 0.35 if n_lines * per_line > 1 else 0.0
    size = (per_line * (cell[0] * columns + gap), n_lines * (cell[1] * rows + gap))
    figure = new_figure(max(size[0] + 2.0, LEAST_WIDTH), size[1] + 2.0)
    grid = figure.subplots(n_lines, per_line, squeeze=False)
    images: dict[str, tuple[Quantity, Any]] = {}
    for i, line in enumerate(lines):
        for j, axes in enumerate(grid[i]):
            if j >= len(line):
                axes.set_visible(False)
                continue
            scale = line[j].scale
            image = draw_cells(axes, line[j].values, scale, scale.limit, cell)
            images[scale.label] = scale, image
            lowest = i + 1 == n_lines or j >= len(lines[i + 1])
            _label(axes, quantity, token_labels, cell, left=j == 0, bottom=lowest)
            if line[j].title:
                axes.set_title(line[j].title, loc="left", fontsize=9, color=INK)
    for scale, image in images.values():
        add_colour_bar(figure, image, grid, scale, scale.limit, (size[0], size[1] + 0.5))
    what = plan.component_names[0] if len(plan.components) == 1 else "activation"
    where = "time" if plan.counts_frames else "token"
    figure.supxlabel(f"{where} whose {what} is patched", fontsize=10)
    finish(figure, title, note)
    return figure


def panel_lines(quantity: Quantity) -> tuple[list[list[Panel]], str]:
    """Arrange panels in lines; return them and a note if the weakest components are left out."""
    plan, values = quantity.plan, quantity.values
    n_alphas, n_components = values.shape[:2]
    most = max(1, MOST_PANELS // n_alphas)
    kept, note = list(range(n_components)), ""
    if n_components > most:
        strength = np.nan_to_num(np.abs(values)).max(axis=(0, 2, 3))
        kept = sorted(np.argsort(-strength, kind="stable")[:most].tolist())
        note = f"the {most} of {n_components} components with the largest cells"
    names = list(plan.component_names if n_components > 1 else ("",))
    of_component = {i: scale for numbers, scale in scales(quantity) for i in numbers}
    if len({scale.label for scale in of_component.values()}) > 1:
        names = [f"{name} ({of_component[i].span})" for i, name in enumerate(names)]
    if n_alphas == 1:
        panels = [Panel(names[i], values[0, i], of_component[i]) for i in kept]
        per_line = _panels_per_line(len(panels), len(plan.layers), len(plan.windows))
        starts = range(0, len(panels), per_line)
        return [panels[start : start + per_line] for start in starts], note
    lines = [
        [Panel(f"{names[i]}  {line}".strip(), values[a, i], of_component[i]) for i in kept]
        for a, line in enumerate(quantity.line_names)
    ]
    return lines, note


def _panels_per_line(panels: int, rows: int, columns: int) -> int:
    """Choose the fewest panels for readable numbers, or more where the picture gets too high."""
    per_line = 1
    for width in _CELL_WIDTHS:
        per_line = min(panels, max(1, int(_WIDTH / (width * columns))))
        if -(-panels // per_line) * rows * _LOW_CELL <= _HEIGHT:
            break
    # The number of lines stays the same, but none of them is half empty.
    return -(-panels // -(-panels // per_line))


def _label(
    axes: Any,
    quantity: Quantity,
    token_labels: Sequence[str],
    cell: tuple[float, float],
    *,
    left: bool,
    bottom: bool,
) -> None:
    plan = quantity.plan
    if plan.counts_frames:
        labels = [place(plan, window) for window in plan.windows]
    else:
        labels = [_window_label(window, plan.n_tokens, token_labels) for window in plan.windows]
    slanted = {"rotation": 45, "ha": "right"} if cell[0] >= 0.3 else {"rotation": 90}
    size = 9 if cell[0] >= 0.3 else 7
    axes.set_xticks(range(len(labels)), labels if bottom else [], fontsize=size, **slanted)
    axes.set_yticks(range(len(plan.layers)), quantity.rows if left else [], fontsize=size)
    if left and plan.layers != (None,):
        axes.set_ylabel("layer")
    bare(axes)


def place(plan: SweepPlan, window: tuple[int, int]) -> str:
    """Return the positions of a window, or its time."""
    start, stop = window
    if plan.counts_frames:
        return f"{start / FRAMES_PER_SECOND:.2f}-{stop / FRAMES_PER_SECOND:.2f} s"
    return str(start) if stop == start + 1 else f"{start}-{stop - 1}"


def _window_label(window: tuple[int, int], n_tokens: int, token_labels: Sequence[str]) -> str:
    start, stop = window
    if window == (0, n_tokens) and n_tokens > 1:
        return "all tokens"
    return plain(" ".join(shorten(label, 18) for label in token_labels[start:stop][:3]))
