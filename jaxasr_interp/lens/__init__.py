"""Lenses: what the model would say if it stopped at an earlier layer."""

from jaxasr_interp.lens.encoder import EncoderLens, encoder_lens
from jaxasr_interp.lens.logit import LogitLens, logit_lens
from jaxasr_interp.lens.tuned import Translators, tuned_lens
from jaxasr_interp.lens.tuned_checkpoints import load_tuned_lens
from jaxasr_interp.lens.tuned_training import LensTraining, TunedLens, train_tuned_lens

__all__ = [
    "EncoderLens",
    "LensTraining",
    "LogitLens",
    "Translators",
    "TunedLens",
    "encoder_lens",
    "load_tuned_lens",
    "logit_lens",
    "train_tuned_lens",
    "tuned_lens",
]
