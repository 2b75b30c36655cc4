"""Fast, exact, batched mechanistic interpretability of Whisper speech recognition in JAX.

import jaxasr_interp as ji

model = ji.load_model("tiny.en")
mel = ji.log_mel_spectrogram(ji.load_audio("clip.flac"), n_mels=model.config.n_mels)
enc = ji.encode(model, mel)
run = ji.decode(model, model.tokenizer.prompt(), enc.states)
lens = ji.logit_lens(model, run)
"""

from jaxasr_interp._version import __version__
from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.ablation.sweep import ablation_sweep, component_edits
from jaxasr_interp.checkpoint.load import load_model
from jaxasr_interp.checkpoint.saved import save_model
from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.extract import Extraction, ExtractOptions, extract
from jaxasr_interp.extraction.random_model import random_model
from jaxasr_interp.extraction.reading import open_activations
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.fixed_length import GeneratedTokens, generate_fixed
from jaxasr_interp.generation.generate import generate, generate_batch
from jaxasr_interp.generation.language import detect_language
from jaxasr_interp.generation.means import mean_activations, resolve_means
from jaxasr_interp.generation.options import Choice, Generated
from jaxasr_interp.generation.transcribe import Transcript, transcribe, transcribe_batch
from jaxasr_interp.generation.utterances import make_utterance
from jaxasr_interp.generation.word_times import Word, align_words
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.kinds import Add, Interchange, Knockout, Noise, Scale, Zero
from jaxasr_interp.interventions.where import At, Several
from jaxasr_interp.lens.direct import DIRECT_SITES, DirectLogitAttribution, direct_logit_attribution
from jaxasr_interp.lens.encoder import EncoderLens, encoder_lens
from jaxasr_interp.lens.logit import LENS_SITES, LogitLens, logit_lens
from jaxasr_interp.lens.tuned import Translators, tuned_lens
from jaxasr_interp.lens.tuned_checkpoints import load_tuned_lens
from jaxasr_interp.lens.tuned_training import LensTraining, TunedLens, train_tuned_lens
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.decoder import Run
from jaxasr_interp.model.edits import Edit, EditContext, identity
from jaxasr_interp.model.run import DecoderRun, EncodedUtterance, EncoderRun, decode, encode
from jaxasr_interp.model.sites import SITES, DecoderActivations, EncoderActivations
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching import metrics
from jaxasr_interp.patching.aggregate import Resampling, aggregate
from jaxasr_interp.patching.attribution import AttributionOptions, attribution_patching
from jaxasr_interp.patching.comparison import Agreement, agreement, verify_top
from jaxasr_interp.patching.dataset import DatasetSweep, sweep_dataset
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import (
    SweepOptions,
    activation_patching,
    activation_patching_batch,
)
from jaxasr_interp.probes import (
    FitOptions,
    ProbeReport,
    Probes,
    fit_probes,
    load_probes,
    probe_store,
    save_probes,
    score_probes,
)
from jaxasr_interp.report.progress import progress
from jaxasr_interp.runtime.compilation_cache import keep_compiled_programs
from jaxasr_interp.runtime.placement import replicate
from jaxasr_interp.runtime.runner import RunOptions, Share
from jaxasr_interp.runtime.store import open_dataset
from jaxasr_interp.similarity.cka import Similarity, cka
from jaxasr_interp.similarity.spectrum import Spectrum, spectrum
from jaxasr_interp.speech.audio import load_audio, log_mel_spectrogram
from jaxasr_interp.speech.audio_files import AudioWarning
from jaxasr_interp.speech.tokenizer import Tokenizer
from jaxasr_interp.speech.utterance import Clip, Utterance

__all__ = [
    "DIRECT_SITES",
    "LENS_SITES",
    "SITES",
    "Add",
    "Agreement",
    "At",
    "AttributionOptions",
    "AudioWarning",
    "Choice",
    "Clip",
    "DatasetOptions",
    "DatasetSweep",
    "DecoderActivations",
    "DecoderRun",
    "DirectLogitAttribution",
    "Edit",
    "EditContext",
    "EncodedUtterance",
    "EncoderActivations",
    "EncoderLens",
    "EncoderRun",
    "ExtractOptions",
    "Extraction",
    "FitOptions",
    "Generated",
    "GeneratedTokens",
    "GenerationSettings",
    "InputError",
    "Interchange",
    "Intervention",
    "Knockout",
    "LensTraining",
    "LogitLens",
    "Noise",
    "PlanOptions",
    "ProbeReport",
    "Probes",
    "Resampling",
    "Run",
    "RunOptions",
    "Scale",
    "Several",
    "Share",
    "Similarity",
    "Spectrum",
    "SweepOptions",
    "SweepPlan",
    "SweepResult",
    "TextSweep",
    "Tokenizer",
    "Transcript",
    "Translators",
    "TunedLens",
    "Utterance",
    "Whisper",
    "WhisperConfig",
    "Word",
    "Zero",
    "__version__",
    "ablation_sweep",
    "activation_patching",
    "activation_patching_batch",
    "aggregate",
    "agreement",
    "align_words",
    "attribution_patching",
    "cka",
    "component_edits",
    "decode",
    "detect_language",
    "direct_logit_attribution",
    "encode",
    "encoder_lens",
    "extract",
    "fit_probes",
    "generate",
    "generate_batch",
    "generate_fixed",
    "generate_rows",
    "identity",
    "keep_compiled_programs",
    "load_audio",
    "load_model",
    "load_probes",
    "load_tuned_lens",
    "log_mel_spectrogram",
    "logit_lens",
    "make_utterance",
    "mean_activations",
    "metrics",
    "open_activations",
    "open_dataset",
    "parse_edit",
    "plan_sweep",
    "probe_store",
    "progress",
    "random_model",
    "replicate",
    "resolve_means",
    "save_model",
    "save_probes",
    "score_probes",
    "spectrum",
    "sweep_dataset",
    "train_tuned_lens",
    "transcribe",
    "transcribe_batch",
    "tuned_lens",
    "verify_top",
]


def __dir__() -> list[str]:
    return __all__
