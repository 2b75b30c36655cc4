"""The figures of this package."""

import io
from typing import Any

import matplotlib
import matplotlib.figure

from jaxasr_interp.report.plots.fonts import without_notes_on_fonts

_DOTS_PER_INCH = 130


class Picture(matplotlib.figure.Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: matplotlib.figure.Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    content = io.BytesIO()
    write(figure, content, "png")
    return content.getvalue()


def write(figure: matplotlib.figure.Figure, file: Any, form: str) -> None:
    """Write a figure as `"png"`, `"svg"` or `"pdf"`."""
    # Text stays text that can be searched and edited.
    as_text = matplotlib.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42})
    with as_text, without_notes_on_fonts():
        figure.savefig(file, format=form, dpi=_DOTS_PER_INCH)
