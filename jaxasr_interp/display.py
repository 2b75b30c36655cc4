"""Results that show themselves: `plot()` returns the figure, a notebook has tables and figure."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.figure

# What draws a result stands above it, and takes long to import.
_DRAWS = "jaxasr_interp.report.display"


class Displayed:
    """A result with a picture and, in a notebook, the tables that its command prints."""

    def plot(self, title: str = "") -> "matplotlib.figure.Figure":
        """Draw the result.

        Args:
            title: written above; by default what is shown.

        Returns:
            The figure, which a notebook shows and `report.plots.save` writes.

        Raises:
            InputError: the result has nothing to draw.
        """
        return _drawing().figure_of(self, title)

    def _repr_html_(self) -> str:
        return _drawing().html_of(self)


def _drawing() -> Any:
    return importlib.import_module(_DRAWS)
