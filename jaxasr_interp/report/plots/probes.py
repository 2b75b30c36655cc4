"""A picture of probes: scores by layer with confidence bands, controls, and confusions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxasr_interp.probes.report import ProbeReport
from jaxasr_interp.report.plots.canvas import INK, finish, new_figure, plain, shorten

if TYPE_CHECKING:
    import matplotlib.figure

_COLOURS = {
    "probe": "#1f5fa8",
    "hidden layer": "#2a9d8f",
    "random weights": "#e08e2b",
    "shuffled": "#8a8a8a",
}
_LINES = {"mel": ("#8e4fa8", "--"), "majority": ("#555555", ":")}
_MOST_WRITTEN = 12


def plot_probes(
    report: ProbeReport, title: str, *, score: str | None = None
) -> "matplotlib.figure.Figure":
    """Draw one score of every layer, and beside it the confusions of the best layer.

    Args:
        report: from `probe_store`.
        title: written above.
        score: name of the score; by default the first of the target's kind.

    Returns:
        The figure.
    """
    score = score or report.scores[0]
    target = report.probes.target
    with_classes = bool(target.classes)
    width = 6.2 + (1.8 + 0.42 * min(len(target.classes), _MOST_WRITTEN) if with_classes else 0)
    figure = new_figure(max(width, 6.2), 4.4)
    if with_classes:
        left, right = figure.subplots(1, 2, width_ratios=(5.4, width - 5.4))
        _draw_confusion(figure, right, report)
    else:
        left = figure.subplots()
    _draw_curves(left, report, score)
    known = f"{int(target.known.sum())} examples"
    groups = report.probes.groups
    if groups is not None:
        known += f" of {len(np.unique(groups[target.known]))} groups"
    options = report.probes.options
    known += f", {options.n_folds} folds"
    if len(options.seeds) > 1:
        known += f" × {len(options.seeds)} seeds"
    finish(figure, title, known)
    return figure


def _draw_curves(axes: Any, report: ProbeReport, score: str) -> None:
    for name, scores in report.curves.items():
        estimate = scores.estimate[score]
        layers = np.arange(len(estimate))
        colour = _COLOURS[name]
        axes.plot(layers, estimate, color=colour, marker="o", markersize=3, label=name)
        axes.fill_between(
            layers, scores.low[score], scores.high[score], color=colour, alpha=0.15, linewidth=0
        )
    for name, line in report.lines.items():
        colour, style = _LINES[name]
        axes.axhline(line[score], color=colour, linestyle=style, linewidth=1.2, label=name)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"{score.replace('_', ' ')} (held out, 95% band)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if report.probes.target.classes:
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_confusion(figure: Any, axes: Any, report: ProbeReport) -> None:
    layer, classes = report.best_layer, report.probes.target.classes
    confusion = report.confusion(layer)
    image = axes.imshow(confusion, cmap="Blues", vmin=0, vmax=1)
    labels = [plain(shorten(name, 14)) for name in classes]
    size = 8 if len(classes) <= _MOST_WRITTEN else 6
    axes.set_xticks(range(len(classes)), labels, rotation=45, ha="right", fontsize=size)
    axes.set_yticks(range(len(classes)), labels, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class", labelpad=0)
    axes.set_title(f"layer {layer}: share of each class", fontsize=9, color=INK, loc="left")
    axes.tick_params(length=0)
    if len(classes) <= _MOST_WRITTEN:
        for (row, column), share in np.ndenumerate(confusion):
            colour = "white" if share > 0.6 else INK
            axes.text(
                column, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color=colour
            )
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
