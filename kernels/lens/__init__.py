"""Reading hidden states through the unembedding matrix."""

from jaxasr_interp.kernels.lens.api import readout
from jaxasr_interp.kernels.lens.reference import Readout

__all__ = ["Readout", "readout"]
