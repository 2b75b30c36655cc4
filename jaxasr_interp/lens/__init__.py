"""Lenses: what the model would say if it stopped at an earlier layer."""

from jaxasr_interp.lens.encoder import EncoderLens, encoder_lens
from jaxasr_interp.lens.logit import LogitLens, logit_lens

__all__ = ["EncoderLens", "LogitLens", "encoder_lens", "logit_lens"]
