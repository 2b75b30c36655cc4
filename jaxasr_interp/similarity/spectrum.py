"""How many directions a layer uses: the spectrum of its activations, and their effective rank."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.representations import features_of, layers_of, row_blocks
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import host_only

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The variances of a variable's layers along their principal directions.

    Attributes:
        name: name of the variable.
        variances: eigenvalues of the covariance, the largest first.
        rows: number of clips, or of positions of clips. With fewer rows than features the last
            variances are 0, and the effective rank is at most `rows - 1`.
    """

    name: str
    variances: Float[np.ndarray, "layer component"]
    rows: int

    __repr__ = summary

    @property
    def effective_rank(self) -> Float[np.ndarray, " layer"]:
        """`exp(-Σ p log p)`, `p = σ / Σ σ` of the singular values σ of the centred rows.

        Roy & Vetterli 2007, "The effective rank": it is k for k equal singular values, and NaN for
        a layer that is the same in all rows.
        """
        sizes = np.sqrt(self.variances)
        with np.errstate(invalid="ignore"):
            shares = sizes / sizes.sum(-1, keepdims=True)
        logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
        return np.exp(-(shares * logs).sum(-1))

    def to_dataset(self) -> "xarray.Dataset":
        """Return variances and effective ranks with named axes."""
        import xarray

        return xarray.Dataset(
            {
                "variance": (("layer", "component"), self.variances),
                "effective_rank": ("layer", self.effective_rank),
            },
            attrs={"variable": self.name, "rows": self.rows},
        )

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each layer."""
        return to_dataframe(self.to_dataset(), ("layer",))


@host_only()
def spectrum(
    dataset: "xarray.Dataset",
    name: str,
    *,
    on_progress: Progress | None = None,
) -> Spectrum:
    """Find the variances of every layer of a variable along its principal directions.

    They are the eigenvalues of `Σ (x - x̄)(x - x̄)ᵀ / (n - 1)`, which is summed in float64 over a few
    clips at a time.

    Args:
        dataset: an activation store, from `open_activations`.
        name: a variable, such as `encoder.resid_post.mean`.
        on_progress: called with the number of clips read so far, of all, and the variable.

    Returns:
        The spectrum of each layer.

    Raises:
        InputError: no such variable, or fewer than two rows.
    """
    layers, width = layers_of(dataset, name), features_of(dataset, name)
    total, products = np.zeros((len(layers), width)), np.zeros((len(layers), width, width))
    rows, done = 0, 0
    for n_clips, (block,) in row_blocks(dataset, [(name, layers)]):
        by_layer = block.swapaxes(0, 1)
        total += by_layer.sum(1)
        products += by_layer.swapaxes(1, 2) @ by_layer
        rows, done = rows + len(block), done + n_clips
        if on_progress is not None:
            on_progress(done, dataset.sizes["clip"], name)
    if rows < 2:
        raise InputError(f"{name} has {rows} rows: a spectrum takes two or more.")
    covariance = (products - total[:, :, None] * total[:, None, :] / rows) / (rows - 1)
    variances = np.linalg.eigvalsh(covariance)[:, ::-1]
    return Spectrum(name, np.maximum(variances, 0), rows)
