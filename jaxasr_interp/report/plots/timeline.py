"""Pictures of sweeps over time: layers under the spectrogram, with the words above it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.report.plots.canvas import (
    INK,
    add_colour_bar,
    bare,
    diverging,
    finish,
    new_figure,
    plain,
)
from jaxasr_interp.report.plots.quantity import Quantity
from jaxasr_interp.report.plots.sweep import panel_lines
from jaxasr_interp.speech.audio import SAMPLE_RATE, hz_to_mel
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND

if TYPE_CHECKING:
    import matplotlib.figure

_LETTER = 0.085
_SPECTROGRAM_HEIGHT = 1.1
_KHZ = np.array([0.5, 1.0, 2.0, 4.0, 7.0])


def plot_timeline(
    quantity: Quantity,
    mel: Float[np.ndarray, "n_mels mel_frame"],
    words: Sequence[Word],
    title: str,
) -> "matplotlib.figure.Figure":
    """Draw a number for every layer and window of time.

    Args:
        quantity: from `share` or `change`, of a sweep that counts frames.
        mel: spectrogram of the clip.
        words: the words of the clip and their times.
        title: written above.

    Returns:
        The figure.
    """
    windows = quantity.plan.windows
    start, stop = min(a for a, _ in windows), max(b for _, b in windows)
    edges = (start / FRAMES_PER_SECOND, stop / FRAMES_PER_SECOND)
    words = [word for word in words if edges[0] <= _middle(word) <= edges[1]]
    lines, note = panel_lines(quantity)
    panels = [panel for line in lines for panel in line]
    rows = len(quantity.plan.layers)
    width = float(np.clip(2.6 * (edges[1] - edges[0]), 7.0, 18.0))
    levels = _levels(words, edges, width / (edges[1] - edges[0]))
    height = float(np.clip(9.0 / len(panels), 0.22 * rows, 0.36 * rows)) + 0.25
    heights = [_SPECTROGRAM_HEIGHT, *[max(height, 0.6)] * len(panels)]
    above = 0.2 * (1 + max(levels, default=-1))
    figure = new_figure(width + 1.8, sum(heights) + above + 1.1)
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    _draw_spectrogram(axes[0], mel, edges)
    _write_words(axes[0], words, levels, edges)
    images: dict[str, tuple[Quantity, Any]] = {}
    for below, panel in zip(axes[1:], panels, strict=True):
        image = _draw_windows(below, panel.values, panel.scale, panel.scale.limit)
        images[panel.scale.label] = panel.scale, image
        _mark_words(below, words, edges)
        if panel.title:
            below.set_title(panel.title, loc="left", fontsize=9, color=INK)
    axes[-1].set_xlabel(f"time in s ({_patched(quantity)})")
    for scale, image in images.values():
        add_colour_bar(figure, image, list(axes), scale, scale.limit, (width, sum(heights)))
    finish(figure, title, note)
    return figure


def _patched(quantity: Quantity) -> str:
    """Say which site is patched, and how long a window is."""
    plan = quantity.plan
    what = plan.component_names[0] if len(plan.components) == 1 else "several activations"
    widths = {stop - start for start, stop in plan.windows[:-1]} or {
        stop - start for start, stop in plan.windows
    }
    each = f"{min(widths) / FRAMES_PER_SECOND:g} s" if len(widths) == 1 else "a window"
    return f"{what} patched {each} at a time"


def _draw_spectrogram(
    axes: Any, mel: Float[np.ndarray, "n_mels mel_frame"], edges: tuple[float, float]
) -> None:
    per_second = 2 * FRAMES_PER_SECOND
    first, last = (round(edge * per_second) for edge in edges)
    shown = np.asarray(mel)[:, first:last]
    axes.imshow(shown, cmap="Greys", origin="lower", aspect="auto", extent=(*edges, 0, len(shown)))
    # The centre of each mel band stands half a band above its lower edge.
    bands = (len(shown) + 1) * hz_to_mel(1000 * _KHZ) / hz_to_mel(SAMPLE_RATE / 2) - 0.5
    axes.set_yticks(bands, [f"{khz:g}" for khz in _KHZ], fontsize=7)
    axes.set_ylabel("kHz (mel scale)", fontsize=8)
    axes.set_xlim(edges)
    bare(axes)


def _draw_windows(
    axes: Any, values: Float[np.ndarray, "layer pos"], quantity: Quantity, limit: float
) -> Any:
    """Draw each window as a column, which ends where the next one starts."""
    windows = quantity.plan.windows
    starts = sorted(start for start, _ in windows)
    bounds = np.arange(len(values) + 1) - 0.5
    mesh = None
    for column, (start, stop) in zip(values.T, windows, strict=True):
        following = [other for other in starts if other > start]
        stop = min(stop, following[0]) if following else stop
        sides = np.array([start, stop]) / FRAMES_PER_SECOND
        mesh = axes.pcolormesh(
            sides,
            bounds,
            np.ma.masked_invalid(column[:, None]),
            cmap=diverging(),
            vmin=-limit,
            vmax=limit,
            linewidth=0,
        )
    axes.set_yticks(range(len(values)), quantity.rows, fontsize=8 if len(values) <= 16 else 6)
    axes.set_ylabel("layer" if quantity.plan.layers != (None,) else "")
    bare(axes)
    return mesh


def _levels(
    words: Sequence[Word], edges: tuple[float, float], inches_per_second: float
) -> list[int]:
    """Choose how high above the spectrogram each word stands, so that no word covers another."""
    ends: list[float] = []
    levels = []
    for word in words:
        centre = (_middle(word) - edges[0]) * inches_per_second
        half = (len(word.text) + 1) * _LETTER / 2
        free = [level for level, end in enumerate(ends) if end <= centre - half]
        level = free[0] if free else len(ends)
        ends[level : level + 1] = [centre + half]
        levels.append(level)
    return levels


def _write_words(
    axes: Any, words: Sequence[Word], levels: Sequence[int], edges: tuple[float, float]
) -> None:
    for word, level in zip(words, levels, strict=True):
        middle = _middle(word)
        axes.annotate(
            plain(word.text),
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 14 * level),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )
    _mark_words(axes, words, edges)


def _mark_words(axes: Any, words: Sequence[Word], edges: tuple[float, float]) -> None:
    """Draw thin lines where words begin."""
    for word in words:
        if edges[0] < word.seconds[0] < edges[1]:
            axes.axvline(word.seconds[0], color="#8a8a8a", linewidth=0.6, linestyle=":")


def _middle(word: Word) -> float:
    return sum(word.seconds) / 2
