"""A picture of the tuned lens beside the logit lens: divergence from the model by layer."""

from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.report.plots.canvas import INK, bare, finish, new_figure

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray

_COLOURS = {"logit": "#8a8a8a", "tuned": "#b3541e"}


def plot_tuned_lens(dataset: "xarray.Dataset", title: str) -> "matplotlib.figure.Figure":
    """Draw the mean divergence from the final layer of both lenses, by layer.

    Args:
        dataset: from `TunedLens.to_dataset`.
        title: written above.

    Returns:
        The figure.
    """
    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    last = dataset.sizes["layer"]
    layers = np.arange(last + 1)
    for lens in ("logit", "tuned"):
        divergence = [*dataset.kl.sel(lens=lens).values, 0.0]
        axes.plot(layers, divergence, marker="o", markersize=4, color=_COLOURS[lens])
        highest = int(np.argmax(divergence))
        axes.annotate(
            f"{lens} lens",
            (layers[highest], divergence[highest]),
            xytext=(8, 3),
            textcoords="offset points",
            fontsize=9,
            color=_COLOURS[lens],
        )
    axes.set_xticks(layers)
    axes.set_xlim(-0.3, last + 0.3)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("KL(final ‖ layer), nats", color=INK)
    bare(axes)
    finish(figure, title, f"mean over {dataset.attrs['held_out_rows']} held-out positions")
    return figure
