"""Pictures of the logit lens: the next token by layer, and the target's probability by head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxasr_interp.lens.logit import LogitLens
from jaxasr_interp.report.plots.canvas import (
    INK,
    axis_labels,
    bare,
    finish,
    new_figure,
    plain,
    shorten,
    wrap_columns,
)
from jaxasr_interp.speech.tokenizer import Tokenizer

if TYPE_CHECKING:
    import matplotlib.figure

_CELL = (0.72, 0.42)
_LOWEST = 0.24
_LETTERS = 11


def plot_lens(
    lens: LogitLens, tokenizer: Tokenizer, token_labels: Sequence[str] | None, title: str
) -> "matplotlib.figure.Figure":
    """Draw the token each layer would say next, shaded by its probability.

    A frame marks the saturation layer, from which on the top token is that of the model. Long texts
    are continued in panels below.

    Args:
        lens: from `logit_lens`, of a site without heads.
        tokenizer: writes the tokens in the cells.
        token_labels: text of every token of the run; without them columns are named by the token
            that is followed.
        title: written above.

    Returns:
        The figure.
    """
    columns = len(lens.targets)
    top = np.asarray(lens.top_tokens)[..., 0].reshape(-1, columns)
    probability = np.exp(np.asarray(lens.top_log_probs)[..., 0]).reshape(-1, columns)
    rows = len(top)
    height = max(_LOWEST, _CELL[1] * min(1, 16 / rows))
    lines = wrap_columns(columns, _CELL[0])
    widest = lines[0].stop
    figure = new_figure(2.6 + _CELL[0] * widest, 0.9 + len(lines) * (0.95 + height * rows))
    panels = figure.subplots(len(lines), squeeze=False)[:, 0]
    what = "token the decoder has just read"
    if token_labels is None:
        token_labels = axis_labels(tokenizer, np.asarray(lens.targets))
        what = "next token, which is followed"
    labels = [plain(shorten(label, 16)) for label in token_labels]
    image = None
    for axes, line in zip(panels, lines, strict=True):
        image = axes.imshow(
            probability[:, line], cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto"
        )
        # The cells of a shorter last line are as wide as those of the other lines.
        axes.set_xlim(-0.5, widest - 0.5)
        ticks = range(line.stop - line.start)
        axes.set_xticks(ticks, labels[line], rotation=35, ha="right", fontsize=8.5)
        axes.tick_params(axis="x", pad=0)
        axes.set_yticks(range(rows), _rows(lens, rows), fontsize=9)
        axes.set_ylabel("layer" if "layer" in lens.axes else "")
        bare(axes)
        for layer, row in enumerate(top[:, line]):
            for column, label in enumerate(axis_labels(tokenizer, row)):
                colour = "white" if probability[layer, line.start + column] > 0.6 else INK
                text = plain(shorten(label, _LETTERS))
                axes.text(column, layer, text, ha="center", va="center", fontsize=7, color=colour)
        _frame_saturation(axes, lens, line)
    bar = figure.colorbar(image, ax=list(panels), fraction=0.4 / (1 + widest), pad=0.01, aspect=30)
    bar.set_label("probability of the top token")
    bar.outline.set_visible(False)
    framed = "" if lens.saturation_layer is None else " (framed: saturation layer)"
    panels[-1].set_xlabel(f"{what}{framed}", loc="left")
    finish(figure, title)
    return figure


def _rows(lens: LogitLens, rows: int) -> list[str]:
    return [str(layer) for layer in range(rows)] if "layer" in lens.axes else [lens.site]


def _frame_saturation(axes: Any, lens: LogitLens, line: slice) -> None:
    from matplotlib.patches import Rectangle

    if lens.saturation_layer is None:
        return
    for column, layer in enumerate(np.asarray(lens.saturation_layer)[line]):
        if layer < len(lens.top_tokens):
            cell = (column - 0.5, int(layer) - 0.5)
            axes.add_patch(Rectangle(cell, 1, 1, fill=False, edgecolor="#d1495b", linewidth=1.5))


def plot_lens_heads(lens: LogitLens, title: str, start: int = 0) -> "matplotlib.figure.Figure":
    """Draw the mean log-probability of the target by every single head.

    Args:
        lens: from `logit_lens`, of a site with heads.
        title: written above.
        start: first position that counts.

    Returns:
        The figure.
    """
    mean = np.asarray(lens.target_log_prob)[..., start:].mean(-1)
    layers, heads = mean.shape
    figure = new_figure(2.4 + 0.62 * heads, 1.7 + 0.36 * layers)
    axes = figure.subplots()
    image = axes.imshow(mean, cmap="Blues", origin="lower", aspect="auto")
    middle = (mean.min() + mean.max()) / 2
    for (layer, head), value in np.ndenumerate(mean):
        colour = "white" if value > middle else INK
        axes.text(head, layer, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(heads))
    axes.set_yticks(range(layers))
    axes.set_xlabel(f"head ({lens.site})")
    axes.set_ylabel("layer")
    bare(axes)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("mean log-prob (nats) of\nthe token the model says", fontsize=9)
    bar.outline.set_visible(False)
    finish(figure, title, f"mean over {lens.target_log_prob.shape[-1] - start} tokens")
    return figure
