"""Reading hidden states through the unembedding matrix."""

from .api import readout
from .reference import Readout

__all__ = ["Readout", "readout"]
