"""A picture of cross-attention: where in the audio each token looks, with the words above."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.report.plots.canvas import (
    INK,
    bare,
    finish,
    new_figure,
    plain,
    shorten,
)
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND

if TYPE_CHECKING:
    import matplotlib.figure

_LEAST_GAP = 0.15


def plot_attention(
    pattern: Float[np.ndarray, "pos frame"],
    labels: Sequence[str],
    words: Sequence[Word],
    title: str,
) -> "matplotlib.figure.Figure":
    """Draw attention from tokens to frames.

    Args:
        pattern: one head's `cross_pattern`, or the mean of several, over the clip's frames.
        labels: text of every token.
        words: the words and their times, from `align_words`.
        title: written above.

    Returns:
        The figure.
    """
    rows, frames = pattern.shape
    seconds = frames / FRAMES_PER_SECOND
    width, height = max(6.0, min(20.0, 2.0 + 1.6 * seconds)), 0.22 if rows <= 40 else 0.15
    figure = new_figure(width, 1.9 + height * rows)
    axes = figure.subplots()
    # Each token has its own scale: the first tokens look at one frame and would hide all others.
    shown = pattern / np.maximum(pattern.max(1, keepdims=True), 1e-30)
    image = axes.imshow(
        shown, cmap="Blues", aspect="auto", extent=(0, seconds, rows - 0.5, -0.5), vmin=0, vmax=1
    )
    axes.set_yticks(range(rows), [plain(shorten(label, 18)) for label in labels])
    axes.tick_params(axis="y", labelsize=8 if rows <= 40 else 6.5)
    axes.set_xlabel("time in s")
    axes.set_ylabel("token read")
    bare(axes)
    top = axes.secondary_xaxis("top")
    shown_words = _apart(words, _LEAST_GAP * seconds / width)
    top.set_xticks(
        [word.seconds[0] for word in shown_words],
        [plain(word.text) for word in shown_words],
        rotation=45,
        ha="left",
        fontsize=8,
        color=INK,
    )
    top.spines[:].set_visible(False)
    for word in words:
        axes.axvline(word.seconds[0], color="#888888", linewidth=0.5)
    bar = figure.colorbar(image, ax=axes, fraction=0.3 / width, pad=0.02, aspect=30)
    bar.set_label("attention (1: the token's largest)")
    bar.outline.set_visible(False)
    finish(figure, title)
    return figure


def _apart(words: Sequence[Word], gap: float) -> list[Word]:
    """Keep the words that start at least `gap` seconds after the last one that was kept."""
    kept: list[Word] = []
    for word in words:
        if not kept or word.seconds[0] >= kept[-1].seconds[0] + gap:
            kept.append(word)
    return kept
