"""The logit lens: the token that every layer would say next."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasr_interp.lens import LogitLens
from jaxasr_interp.plots.canvas import INK, axis_labels, bare, new_figure, plain, save, shorten
from jaxasr_interp.tokens import Tokenizer


def plot_lens(
    lens: LogitLens, tokenizer: Tokenizer, token_labels: Sequence[str], title: str, path: Path
) -> Path:
    """Draw the token each layer would say next, shaded by its probability.

    A frame marks the saturation layer, from which the top token stays the final one.

    Args:
        lens: from `logit_lens`.
        tokenizer: writes the tokens in the cells.
        token_labels: text of every token of the run.
        title: written above.
        path: PNG to write.

    Returns:
        The path.
    """
    from matplotlib.patches import Rectangle

    top = np.asarray(lens.top_tokens)[:, :, 0]
    probability = np.exp(np.asarray(lens.top_log_probs)[:, :, 0])
    rows, columns = top.shape
    figure = new_figure(3.0 + 0.72 * columns, 2.2 + 0.42 * rows)
    axes = figure.subplots()
    labels = [plain(shorten(label, 18)) for label in token_labels]
    axes.set_xticks(range(columns), labels, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(rows), [str(layer) for layer in range(rows)], fontsize=9)
    axes.set_ylabel("layer")
    bare(axes)
    image = axes.imshow(probability, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for layer, row in enumerate(top):
        for pos, label in enumerate(axis_labels(tokenizer, row)):
            colour = "white" if probability[layer, pos] > 0.6 else INK
            text = plain(shorten(label, 11))
            axes.text(pos, layer, text, ha="center", va="center", fontsize=7, color=colour)
    for pos, layer in enumerate(np.asarray(lens.saturation_layer)):
        cell = (pos - 0.5, int(layer) - 0.5)
        axes.add_patch(Rectangle(cell, 1, 1, fill=False, edgecolor="#d1495b", linewidth=1.5))
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("probability of the top token")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("token the decoder has just read (framed: saturation layer)")
    return save(figure, path)
