"""Reading hidden states through the unembedding matrix."""

from .api import log_sum_exp, mean_embedding, readout
from .reference import Readout

__all__ = ["Readout", "log_sum_exp", "mean_embedding", "readout"]
