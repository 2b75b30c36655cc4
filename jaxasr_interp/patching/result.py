"""The result of a sweep: metrics with named axes."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.display import Displayed
from jaxasr_interp.patching.metrics import recovered
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND
from jaxasr_interp.speech.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclasses.dataclass(frozen=True)
class SweepResult(Displayed):
    """A sweep's metrics.

    Attributes:
        plan: plan of the sweep; `plan.axes` names the cells' axes.
        metrics: names of the metrics.
        patched: each metric under each patch: `[metric, (alpha), (component), (layer), pos]`.
        clean: each metric of the clean run.
        corrupted: each metric of the corrupted run.
        direction: which run was patched with which.
        method: `"exact"`, or the approximation that `patched` comes from.
        tokens: the decoder's input in the run that was patched.
        tokenizer: the model's, which writes them; `None` if it has none.
    """

    plan: SweepPlan
    metrics: tuple[str, ...]
    patched: Float[np.ndarray, "metric *cells"]
    clean: Float[np.ndarray, " metric"]
    corrupted: Float[np.ndarray, " metric"]
    direction: str = "clean_to_corrupted"
    method: str = "exact"
    tokens: tuple[int, ...] = ()
    tokenizer: Tokenizer | None = None

    __repr__ = summary

    @property
    def recovered(self) -> Float[np.ndarray, "metric *cells"]:
        """`(patched - corrupted) / (clean - corrupted)`; NaN where the two runs agree.

        0 is the corrupted run and 1 the clean one, whichever of them was patched.
        """
        return recovered(self.patched, self.clean, self.corrupted)

    def to_dataset(self, token_labels: Sequence[str] | None = None) -> "xarray.Dataset":
        """Return the arrays with named axes.

        Args:
            token_labels: text of each token of the decoder's input, one for each position.
        """
        import xarray

        plan = self.plan
        axes = ("metric", *plan.axes)
        coords = {
            "metric": ("metric", list(self.metrics)),
            "alpha": ("alpha", list(plan.alphas)),
            "component": ("component", list(plan.component_names)),
            "layer": ("layer", list(plan.layers)),
            "pos": ("pos", list(plan.positions)),
            "pos_stop": ("pos", [stop for _, stop in plan.windows]),
        }
        dataset = xarray.Dataset(
            {
                "patched": (axes, self.patched),
                "recovered": (axes, self.recovered),
                "clean": ("metric", self.clean),
                "corrupted": ("metric", self.corrupted),
            },
            coords={name: coord for name, coord in coords.items() if coord[0] in axes},
            attrs={
                "stack": plan.stack,
                "site": ", ".join(plan.sites),
                "components": ", ".join(plan.component_names),
                "alphas": ", ".join(map(str, plan.alphas)),
                "position": "frame" if plan.counts_frames else "token",
                "n_tokens": plan.n_tokens,
                "direction": self.direction,
                "method": self.method,
            },
        )
        dataset.recovered.attrs["note"] = "NaN where clean and corrupted agree"
        if plan.counts_frames:
            seconds = [start / FRAMES_PER_SECOND for start in plan.positions]
            return dataset.assign_coords(seconds=("pos", seconds))
        if token_labels is not None:
            labels = [" ".join(token_labels[start:stop]) for start, stop in plan.windows]
            dataset = dataset.assign_coords(token=("pos", labels))
        return dataset

    def to_dataframe(self, token_labels: Sequence[str] | None = None) -> "pandas.DataFrame":
        """Return a table with a row for each metric of each cell; see `to_dataset`."""
        return to_dataframe(self.to_dataset(token_labels), ("metric", *self.plan.axes))
