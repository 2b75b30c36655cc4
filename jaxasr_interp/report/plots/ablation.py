"""Pictures of ablations: layers × components, and layers × heads of sites with heads."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.report.plots.canvas import (
    INK,
    LEAST_WIDTH,
    add_colour_bar,
    bare,
    draw_cells,
    finish,
    new_figure,
)
from jaxasr_interp.report.plots.quantity import Quantity

if TYPE_CHECKING:
    import matplotlib.figure

_CELL = (0.62, 0.36)
_WIDTH = 18.0


@dataclasses.dataclass(frozen=True)
class _Block:
    """Components side by side: whole sites, or the heads of one site."""

    title: str
    names: tuple[str, ...]
    numbers: tuple[int, ...]


def plot_ablation(quantity: Quantity, title: str) -> "matplotlib.figure.Figure":
    """Draw the effect of each component of each layer, with one line of panels for each strength.

    Whole sites and single heads have separate colour scales, because a head has less effect.

    Args:
        quantity: from `change` or `share`; where there are several windows, the strongest counts.
        title: written above.

    Returns:
        The figure.
    """
    values = _strongest(quantity.values)
    groups = [blocks for blocks in _blocks(quantity) if blocks]
    widths = [len(block.names) for blocks in groups for block in blocks]
    n_lines, rows = len(values), len(quantity.plan.layers)
    cell = (
        float(np.clip(_WIDTH / sum(widths), 0.2, _CELL[0])),
        max(0.16, _CELL[1] * min(1, 24 / rows)),
    )
    figure = new_figure(
        max(1.6 + cell[0] * sum(widths) + 0.3 * len(widths) + 1.1 * len(groups), LEAST_WIDTH),
        1.9 + n_lines * (cell[1] * rows + 0.4),
    )
    grid = figure.subplots(n_lines, len(widths), squeeze=False, width_ratios=widths)
    column = 0
    for blocks in groups:
        numbers = [number for block in blocks for number in block.numbers]
        scale = dataclasses.replace(quantity, values=quantity.values[:, numbers])
        limit, image = scale.limit, None
        span = f" ({scale.span})" if len(groups) > 1 else ""
        for block in blocks:
            for line in range(n_lines):
                axes = grid[line, column]
                shown = values[line, list(block.numbers)].T
                image = draw_cells(axes, shown, quantity, limit, cell)
                bottom = line + 1 == n_lines
                slanted = {"rotation": 30, "ha": "right"} if block.title == "" else {}
                axes.set_xticks(
                    range(len(block.names)), block.names if bottom else [], fontsize=8, **slanted
                )
                axes.set_yticks(range(rows), quantity.rows if column == 0 else [], fontsize=8)
                if column == 0:
                    axes.set_ylabel("layer")
                name = quantity.line_names[line] if n_lines > 1 else ""
                title_of_block = f"{block.title or 'site'}{span}  {name}".strip()
                axes.set_title(title_of_block, loc="left", fontsize=9, color=INK)
                bare(axes)
            column += 1
        own = grid[:, column - len(blocks) : column]
        size = (cell[0] * sum(len(block.names) for block in blocks), n_lines * cell[1] * rows)
        add_colour_bar(figure, image, own, scale, limit, size)
    finish(figure, title)
    return figure


def _strongest(
    values: Float[np.ndarray, "alpha component layer pos"],
) -> Float[np.ndarray, "alpha component layer"]:
    """Return, over positions, the value of largest size."""
    sizes = np.nan_to_num(np.abs(values), nan=-1.0).argmax(-1)
    return np.take_along_axis(values, sizes[..., None], axis=-1)[..., 0]


def _blocks(quantity: Quantity) -> tuple[list[_Block], list[_Block]]:
    """Make one block of whole sites, and one block for each site that is patched by head."""
    whole = [(i, site) for i, (site, head) in enumerate(quantity.plan.components) if head is None]
    heads: dict[str, list[tuple[int, int]]] = {}
    for i, (site, head) in enumerate(quantity.plan.components):
        if head is not None:
            heads.setdefault(site, []).append((i, head))
    sites = [_Block("", tuple(s for _, s in whole), tuple(i for i, _ in whole))] if whole else []
    by_head = [
        _Block(f"{site}, head", tuple(str(h) for _, h in some), tuple(i for i, _ in some))
        for site, some in heads.items()
    ]
    return sites, by_head
