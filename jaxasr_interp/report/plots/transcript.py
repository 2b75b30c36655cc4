"""The words of a transcript on the axis of time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxasr_interp.report.plots.canvas import bare, finish, new_figure, plain

if TYPE_CHECKING:
    import matplotlib.figure

type Spoken = tuple[str, float, float]
"""A text and its start and end in seconds."""

_INCHES_A_SECOND, _SECONDS_A_LINE = 1.5, 10.0


def plot_transcript(spoken: Sequence[Spoken], title: str) -> "matplotlib.figure.Figure":
    """Draw words, or whole segments, from their start to their end; ten seconds in each line.

    Args:
        spoken: the words or segments in their order.
        title: written above.

    Returns:
        The figure.
    """
    lines = 1 + int(max(start for _, start, _ in spoken) // _SECONDS_A_LINE)
    seconds = min(_SECONDS_A_LINE, max(stop for _, _, stop in spoken))
    figure = new_figure(max(6.0, _INCHES_A_SECOND * seconds), 1.1 + 1.1 * lines)
    panels = figure.subplots(lines, squeeze=False)[:, 0]
    for line, axes in enumerate(panels):
        begin = line * _SECONDS_A_LINE
        axes.set_xlim(begin, begin + seconds)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        bare(axes)
    for text, start, stop in spoken:
        axes = panels[int(start // _SECONDS_A_LINE)]
        axes.barh(0.15, stop - start, left=start, height=0.3, color="#4a78a8", edgecolor="white")
        middle = (start + stop) / 2
        axes.text(middle, 0.36, plain(text.strip()), ha="center", va="bottom", rotation=40)
    panels[-1].set_xlabel("seconds")
    finish(figure, title)
    return figure
