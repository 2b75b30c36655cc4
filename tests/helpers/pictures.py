"""Figures, and what stands in them."""

import io

from matplotlib.image import imread

from jaxasr_interp.generation.word_times import Word

WORDS = tuple(
    Word(text, text.strip(".").lower(), (3 + i, 4 + i), (3 * i, 3 * i + 3))
    for i, text in enumerate(["Cut", "the", "grass", "now."])
)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def panels(figure):
    """The heatmaps, without the colour bar."""
    return [axes for axes in figure.axes if axes.images and axes.get_visible()]


LABELS = ["<|startoftranscript|>", "<|notimestamps|>", "$my$", "cat", "sat", "on", "it"]


def inked(figure):
    """The share of a picture's pixels that are not nearly white."""
    written = io.BytesIO()
    figure.savefig(written, format="png")
    written.seek(0)
    return float((imread(written)[..., :3] < 0.9).any(-1).mean())
