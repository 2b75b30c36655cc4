"""Lenses: what the model would say if it stopped at an earlier layer, and what makes it say so."""

from jaxasr_interp.lens.direct import (
    DIRECT_SITES,
    DirectLogitAttribution,
    direct_logit_attribution,
)
from jaxasr_interp.lens.encoder import EncoderLens, encoder_lens
from jaxasr_interp.lens.logit import LENS_SITES, LogitLens, logit_lens
from jaxasr_interp.lens.tuned import Translators, tuned_lens
from jaxasr_interp.lens.tuned_checkpoints import load_tuned_lens
from jaxasr_interp.lens.tuned_training import LensTraining, TunedLens, train_tuned_lens

__all__ = [
    "DIRECT_SITES",
    "LENS_SITES",
    "DirectLogitAttribution",
    "EncoderLens",
    "LensTraining",
    "LogitLens",
    "Translators",
    "TunedLens",
    "direct_logit_attribution",
    "encoder_lens",
    "load_tuned_lens",
    "logit_lens",
    "train_tuned_lens",
    "tuned_lens",
]
