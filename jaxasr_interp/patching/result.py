"""What a sweep returns: numbers with named axes."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.metrics import recovered
from jaxasr_interp.patching.plan import SweepPlan

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A sweep's metrics.

    Attributes:
        plan: what was run.
        metrics: names of the metrics.
        patched: each metric with one cell patched.
        clean: each metric of the clean run.
        corrupted: each metric of the corrupted run.
    """

    plan: SweepPlan
    metrics: tuple[str, ...]
    patched: Float[np.ndarray, "metric layer pos"]
    clean: Float[np.ndarray, " metric"]
    corrupted: Float[np.ndarray, " metric"]

    @property
    def recovered(self) -> Float[np.ndarray, "metric layer pos"]:
        """`(patched - corrupted) / (clean - corrupted)`; NaN where the two runs agree."""
        return recovered(self.patched, self.clean, self.corrupted)

    def to_dataset(self, token_labels: Sequence[str] | None = None) -> "xarray.Dataset":
        """The arrays with named axes.

        Args:
            token_labels: the text of the decoder input's tokens, one for each position of the run.
        """
        import xarray

        axes = ("metric", "layer", "pos")
        dataset = xarray.Dataset(
            {
                "patched": (axes, self.patched),
                "recovered": (axes, self.recovered),
                "clean": ("metric", self.clean),
                "corrupted": ("metric", self.corrupted),
            },
            coords={
                "metric": list(self.metrics),
                "layer": list(self.plan.layers),
                "pos": list(self.plan.positions),
            },
            attrs={"site": self.plan.site, "stack": "decoder", "n_tokens": self.plan.n_tokens},
        )
        if token_labels is not None:
            labels = [token_labels[pos] for pos in self.plan.positions]
            dataset = dataset.assign_coords(token=("pos", labels))
        return dataset
