"""Pictures of direct logit attribution: what each component adds to the next token's logit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.lens.direct import DirectLogitAttribution
from jaxasr_interp.report.plots.canvas import (
    INK,
    bare,
    diverging,
    finish,
    new_figure,
    plain,
    pointed,
    shorten,
    wrap_columns,
)

if TYPE_CHECKING:
    import matplotlib.figure

_CELL = (0.46, 0.2)
_LOWEST = 0.13
_HEAD_CELL = (0.56, 0.32)
_BEYOND = 0.02


def plot_attribution(
    attribution: DirectLogitAttribution, target_labels: Sequence[str], title: str
) -> "matplotlib.figure.Figure":
    """Draw every component's contribution at every position, the first component at the bottom.

    Args:
        attribution: from `direct_logit_attribution`.
        target_labels: text of every position's target.
        title: written above.

    Returns:
        The figure.
    """
    components = attribution.by_component()
    values = np.stack([np.asarray(value) for value in components.values()])
    rows, columns = values.shape
    height = max(_LOWEST, _CELL[1] * min(1, 40 / rows))
    lines = wrap_columns(columns, _CELL[0])
    widest = lines[0].stop
    figure = new_figure(3.2 + _CELL[0] * widest, 0.9 + len(lines) * (1.15 + height * rows))
    panels = figure.subplots(len(lines), squeeze=False)[:, 0]
    limit, image = _limit(values), None
    labels = [plain(shorten(label, 16)) for label in target_labels]
    logits = [f"{logit:.1f}" for logit in np.asarray(attribution.logit)]
    for axes, line in zip(panels, lines, strict=True):
        image = _draw(axes, values[:, line], limit, size=6.5 if height >= 0.18 else None)
        axes.set_xlim(-0.5, widest - 0.5)
        ticks = range(line.stop - line.start)
        axes.set_xticks(ticks, labels[line], rotation=35, ha="right", fontsize=8.5)
        axes.set_yticks(range(rows), list(components), fontsize=8 if height >= 0.18 else 6)
        axes.tick_params(axis="x", pad=0)
        sums = axes.secondary_xaxis("top")
        sums.set_xticks(ticks, logits[line], fontsize=7.5, color=INK)
        bare(sums)
        bare(axes)
    panels[-1].set_xlabel("next token (above: its logit, the sum of the column)", loc="left")
    label = _label("contribution", attribution, values)
    ends = pointed(values, limit)
    _add_bar(figure, image, list(panels), 0.4 / (1 + widest), (label, ends))
    finish(figure, title)
    return figure


def plot_attribution_heads(
    attribution: DirectLogitAttribution, title: str, start: int = 0
) -> "matplotlib.figure.Figure":
    """Draw every head's mean contribution, self-attention on the left, cross-attention beside it.

    Args:
        attribution: from `direct_logit_attribution`.
        title: written above.
        start: first position that counts.

    Returns:
        The figure.
    """
    both = {
        "self-attention": attribution.attn_heads,
        "cross-attention": attribution.cross_attn_heads,
    }
    means = {name: np.asarray(heads)[..., start:].mean(-1) for name, heads in both.items()}
    layers, heads = means["self-attention"].shape
    figure = new_figure(2.8 + 2 * _HEAD_CELL[0] * heads, 1.8 + _HEAD_CELL[1] * layers)
    panels = figure.subplots(1, 2)
    values = np.stack(list(means.values()))
    limit, image = _limit(values), None
    for axes, (name, mean) in zip(panels, means.items(), strict=True):
        image = _draw(axes, mean, limit, size=8.0)
        axes.set_xticks(range(heads))
        axes.set_yticks(range(layers), [str(i) for i in range(layers)] if axes is panels[0] else [])
        axes.set_xlabel(f"head of {name}")
        bare(axes)
    panels[0].set_ylabel("layer")
    label = _label("mean contribution", attribution, values)
    _add_bar(figure, image, list(panels), 0.04, (label, pointed(values, limit)))
    n_tokens = len(attribution.logit) - start
    finish(figure, title, f"mean over {n_tokens} tokens")
    return figure


def _label(
    what: str, attribution: DirectLogitAttribution, values: Float[np.ndarray, "*cells"]
) -> str:
    """Say what the colours show, and the range of the values where colours do not reach it."""
    of = "logit" if attribution.others is None else "logit difference"
    beyond = np.abs(values).max() > _limit(values)
    ends = f"; from {values.min():.3g} to {values.max():.3g}" if beyond else ""
    return f"{what} to the {of}{ends}"


def _limit(values: Float[np.ndarray, "*cells"]) -> float:
    """Return where the colours end: a few large cells (the last MLP's) may lie beyond it."""
    return float(max(np.quantile(np.abs(values), 1 - _BEYOND), 1e-6))


def _draw(
    axes: Any, values: Float[np.ndarray, "row column"], limit: float, size: float | None
) -> Any:
    """Colour the cells, and write the larger numbers in letters of `size`, unless it is `None`."""
    image = axes.imshow(
        values, cmap=diverging(), vmin=-limit, vmax=limit, origin="lower", aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        if size is not None and abs(value) >= 0.05 * limit:
            colour = "white" if abs(value) > 0.6 * limit else INK
            text = f"{value:.1f}" if abs(value) < 99.5 else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    return image


def _add_bar(
    figure: Any, image: Any, panels: list[Any], fraction: float, labels: tuple[str, str]
) -> None:
    """Add a colour bar; `labels` are its label, and its pointed ends."""
    label, ends = labels
    bar = figure.colorbar(image, ax=panels, fraction=fraction, pad=0.01, aspect=30, extend=ends)
    bar.set_label(label, fontsize=9)
    bar.outline.set_visible(False)
