"""Lenses: what the model would say if it stopped at an earlier layer, and what makes it say so."""

from jaxasr_interp.lens.direct import (
    DIRECT_SITES,
    DirectLogitAttribution,
    direct_logit_attribution,
)
from jaxasr_interp.lens.encoder import EncoderLens, encoder_lens
from jaxasr_interp.lens.logit import LENS_SITES, LogitLens, logit_lens

__all__ = [
    "DIRECT_SITES",
    "LENS_SITES",
    "DirectLogitAttribution",
    "EncoderLens",
    "LogitLens",
    "direct_logit_attribution",
    "encoder_lens",
    "logit_lens",
]
