"""A picture of the encoder lens, with one row of text for every depth."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from jaxasr_interp.evaluation.loops import is_loop
from jaxasr_interp.lens.encoder import EncoderLens
from jaxasr_interp.report.plots.canvas import INK, bare, finish, new_figure, plain

if TYPE_CHECKING:
    import matplotlib.figure

_LETTERS, _LINES = 118, 3
_LOOP = "#b3541e"


def plot_encoder_lens(lens: EncoderLens, title: str) -> "matplotlib.figure.Figure":
    """Draw the text generated from every depth, beside the probability of the reference.

    Args:
        lens: from `encoder_lens`.
        title: written above.

    Returns:
        The figure.
    """
    texts = [_wrapped(text) for text in lens.texts]
    heights = [max(1, text.count("\n") + 1) for text in texts]
    figure = new_figure(11.5, 1.5 + 0.2 * sum(heights) + 0.12 * len(texts))
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 7], sharey=True)
    edges = np.concatenate([[0], np.cumsum([height + 0.6 for height in heights])])
    middles = (edges[:-1] + edges[1:]) / 2
    mean = lens.log_probs.mean(1)
    left.barh(middles, mean, height=0.8, color="#4a78a8")
    left.set_yticks(middles, [str(depth) for depth in range(len(texts))], fontsize=9)
    left.set_ylabel("encoder layers heard")
    left.set_xlabel("mean log-prob (nats) of\na token of the reference", fontsize=9)
    left.tick_params(axis="x", labelsize=8)
    for middle, text, whole in zip(middles, texts, lens.texts, strict=True):
        right.text(
            0.0,
            middle,
            plain(text) or "(nothing)",
            va="center",
            fontsize=8.5,
            color=_LOOP if is_loop(whole) else INK if text else "#888888",
        )
    right.set_xlim(0, 1)
    right.set_xticks([])
    right.tick_params(labelleft=False)
    right.set_xlabel("text written (orange: it loops)", fontsize=9, loc="left")
    for axes in (left, right):
        axes.set_ylim(0, edges[-1])
        bare(axes)
    note = f"{lens.log_probs.shape[1]} tokens of the reference"
    finish(figure, title, note if lens.normed else f"{note}, without the final LayerNorm")
    return figure


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, _LETTERS)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: _LETTERS - 1] + "…"]
    return "\n".join(lines)
