"""Pictures of layer similarity, and of how many directions each layer uses."""

from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.report.plots.canvas import INK, NOTHING, bare, finish, new_figure
from jaxasr_interp.similarity.cka import Similarity
from jaxasr_interp.similarity.spectrum import Spectrum

if TYPE_CHECKING:
    import matplotlib.figure

_MOST_NUMBERS = 16
_CONTROL = "#8a8a8a"


def plot_similarity(similarity: Similarity, title: str) -> "matplotlib.figure.Figure":
    """Draw CKA as a matrix of layers, the first ones at the bottom left.

    Args:
        similarity: from `cka`.
        title: written above.

    Returns:
        The figure.
    """
    import matplotlib

    rows, columns = similarity.cka.shape
    cell = 0.45 if max(rows, columns) <= _MOST_NUMBERS else 0.22
    figure = new_figure(max(4.2, 2.0 + cell * columns), max(3.2, 1.6 + cell * rows))
    axes = figure.subplots()
    image = axes.imshow(
        np.ma.masked_invalid(similarity.cka),
        cmap=matplotlib.colormaps["viridis"].with_extremes(bad=NOTHING),
        vmin=0,
        vmax=1,
        origin="lower",
    )
    if max(rows, columns) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(similarity.cka):
            text = f"{value:.2f}" if np.isfinite(value) else "–"
            colour = INK if value > 0.6 or not np.isfinite(value) else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    for axis, size in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks(range(0, size, 1 if size <= _MOST_NUMBERS else 4))
    axes.set_ylabel(f"layer of {similarity.first}", fontsize=9)
    axes.set_xlabel(f"layer of {similarity.second}", fontsize=9)
    bare(axes)
    # An unbiased estimate may fall below 0.
    below = bool((similarity.cka < 0).any())
    bar = figure.colorbar(
        image, ax=axes, fraction=0.04, pad=0.03, extend="min" if below else "neither"
    )
    bar.set_label("CKA" if similarity.unbiased else "CKA (biased)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    finish(figure, title, f"{similarity.rows} rows")
    return figure


def plot_spectrum(
    spectrum: Spectrum, control: Spectrum | None, title: str
) -> "matplotlib.figure.Figure":
    """Draw the effective rank of each layer, and its share of variance by direction.

    Args:
        spectrum: from `spectrum`.
        control: the spectrum of a model with random weights, if there is one.
        title: written above.

    Returns:
        The figure.
    """
    import matplotlib

    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    layers = np.arange(len(spectrum.variances))
    left.plot(layers, spectrum.effective_rank, marker="o", markersize=4, color="#b3541e")
    if control is not None:
        left.plot(layers, control.effective_rank, "--", marker="o", markersize=3, color=_CONTROL)
        place = (layers[-1], control.effective_rank[-1])
        left.annotate(
            "random weights",
            place,
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_CONTROL,
        )
    left.set_ylim(bottom=0)
    left.set_xlabel("layer")
    left.set_ylabel(
        f"effective rank (at most {min(spectrum.rows - 1, spectrum.variances.shape[1])})"
    )
    left.set_xticks(layers if len(layers) <= _MOST_NUMBERS else layers[::4])
    colours = matplotlib.colormaps["viridis"]
    for layer, variances in enumerate(spectrum.variances):
        # Variances beyond the rank are rounding errors.
        kept = variances[variances > variances[0] * 1e-12]
        colour = colours(0.92 * layer / max(len(layers) - 1, 1))
        right.loglog(
            np.arange(1, len(kept) + 1), kept / kept.sum(), color=colour, label=f"layer {layer}"
        )
    right.set_xlabel("direction")
    right.set_ylabel("share of variance")
    if len(layers) <= _MOST_NUMBERS:
        right.legend(fontsize=7, frameon=False, loc="lower left")
    for axes in (left, right):
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        bare(axes)
    finish(figure, title, f"{spectrum.rows} rows")
    return figure
