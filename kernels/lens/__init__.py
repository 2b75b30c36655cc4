"""Statistics of the next-token distributions that hidden states have under the unembedding."""

from .api import log_sum_exp, mean_embedding, readout
from .reference import Readout

__all__ = ["Readout", "log_sum_exp", "mean_embedding", "readout"]
