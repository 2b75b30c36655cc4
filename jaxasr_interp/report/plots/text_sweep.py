"""Pictures of sweeps on text: how transcripts change without each component."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.ablation.result import Cell, cell_of
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.where import EVERY
from jaxasr_interp.report.plots.canvas import (
    INK,
    LEAST_WIDTH,
    NOTHING,
    bare,
    finish,
    new_figure,
    percent,
)

if TYPE_CHECKING:
    import matplotlib.figure

_CELL = (0.5, 0.36)
_LARGEST_COLOUR = 2.0
_TITLE_CELLS = 3
_LETTER = 0.08


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A panel with layers from bottom to top, and heads or sublayers from left to right.

    Each column is (stack, site, head).
    """

    title: str
    columns: tuple[tuple[str, str, int], ...]
    names: tuple[str, ...]

    @property
    def by_head(self) -> bool:
        """Whether the panel shows single heads."""
        return any(head >= 0 for _, _, head in self.columns)


def plot_text_sweep(
    values: Float[np.ndarray, " intervention"],
    interventions: Sequence[Intervention],
    label: str,
    title: str,
) -> "matplotlib.figure.Figure | None":
    """Draw one number of every component; one line of panels for each strength.

    Args:
        values: a share or a rate for each intervention.
        interventions: the interventions; those on one component are drawn.
        label: what the numbers mean.
        title: written above.

    Returns:
        The figure, or `None` where no intervention is on one component, or two are on the same one.
    """
    known = [
        (cell, value)
        for cell, value in zip(map(cell_of, interventions), values, strict=True)
        if cell is not None
    ]
    cells = dict(known)
    if not cells or len(cells) < len(known):
        return None
    alphas = sorted({cell.alpha for cell in cells})
    layers = _rows([cell.layer for cell in cells])
    panels = _panels(list(cells))
    n_bars = len({panel.by_head for panel in panels})
    widths = [max(len(panel.columns), _TITLE_CELLS if panel.title else 1) for panel in panels]
    figure = new_figure(
        max(0.7 + 1.1 * n_bars + _CELL[0] * sum(widths) + 0.4 * len(panels), LEAST_WIDTH),
        1.7 + len(alphas) * (_CELL[1] * len(layers) + 0.6),
    )
    grid = figure.subplots(len(alphas), len(panels), squeeze=False, width_ratios=widths)
    # Single heads have smaller effects than whole sites, and colours of their own.
    largest = {
        by_head: float(np.nanmax([0.0, *(v for c, v in cells.items() if (c.head >= 0) == by_head)]))
        for by_head in sorted({panel.by_head for panel in panels})
    }
    limits = {kind: min(max(most, 1e-3), _LARGEST_COLOUR) for kind, most in largest.items()}
    images = {}
    for row, alpha in enumerate(alphas):
        for column, panel in enumerate(panels):
            axes = grid[row, column]
            shown = np.array(
                [
                    [
                        cells.get(Cell(stack, site, layer, head, alpha), np.nan)
                        for stack, site, head in panel.columns
                    ]
                    for layer in layers
                ]
            )
            limit = limits[panel.by_head]
            images[panel.by_head] = _draw(axes, shown, limit)
            span = f"\nto {percent(limit)}" if len(limits) > 1 else ""
            axes.set_xticks(range(len(panel.names)), panel.names, fontsize=8)
            if panel.title == "":
                axes.tick_params(axis="x", rotation=30)
            names = ["all" if layer == EVERY else str(layer) for layer in layers]
            axes.set_yticks(range(len(layers)), names if column == 0 else [], fontsize=8)
            name = f"α = {alpha:g}" if len(alphas) > 1 and column == 0 else ""
            what = f"{panel.title or ('site' if span else '')}  {name}".strip()
            axes.set_title(f"{what}{span}", loc="left", fontsize=9, color=INK)
            if column == 0:
                axes.set_ylabel("layer")
            bare(axes)
    letters = max(16, int(0.7 * figure.get_figheight() / _LETTER))
    for by_head, image in images.items():
        beyond = largest[by_head] > limits[by_head]
        extend = "max" if beyond else "neither"
        bar = figure.colorbar(
            image, ax=grid, fraction=0.03, pad=0.02, format=percent, extend=extend
        )
        kind = "heads: " if by_head else "sites: "
        meaning = f"{kind}{label}" if len(images) > 1 else label
        meaning += f"; as far as {100 * largest[by_head]:.0f}%" if beyond else ""
        bar.set_label(textwrap.fill(meaning, letters), fontsize=9)
    finish(figure, title)
    return figure


def _rows(layers: Sequence[int]) -> list[int]:
    """Return the layers from the first to the last edited alone, and last `EVERY`, if edited."""
    alone = [layer for layer in layers if layer != EVERY]
    rows = [*range(min(alone), max(alone) + 1)] if alone else []
    return [*rows, EVERY] if EVERY in layers else rows


def _panels(cells: Sequence[Cell]) -> list[_Panel]:
    places = list(dict.fromkeys((cell.stack, cell.site) for cell in cells))
    heads = {p: sorted({c.head for c in cells if (c.stack, c.site) == p}) for p in places}
    several = len({stack for stack, _ in places}) > 1
    names = {(stack, site): f"{stack}.{site}" if several else site for stack, site in places}
    whole = [place for place in places if heads[place] == [-1]]
    panels = [_Panel("", tuple((*p, -1) for p in whole), tuple(names[p] for p in whole))]
    return panels[: len(whole)] + [
        _Panel(
            f"{names[place]}, head",
            tuple((*place, head) for head in heads[place]),
            tuple("all" if head < 0 else str(head) for head in heads[place]),
        )
        for place in places
        if place not in whole
    ]


def _draw(axes, values: Float[np.ndarray, "layer column"], limit: float):
    import matplotlib

    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=matplotlib.colormaps["Oranges"].with_extremes(bad=NOTHING),
        vmin=0,
        vmax=limit,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    for (row, column), value in np.ndenumerate(values):
        if value >= 0.005:
            text = f"{100 * value:.0f}" if value < 10 else f"{value:.0f}×"
            colour = "white" if value > 0.6 * limit else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return image
