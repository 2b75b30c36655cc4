"""Transcription of audio: clips of one window in batches, longer audio window by window.

A window is as long as the encoder takes: 30 s in OpenAI's models.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.display import Displayed
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.language import detect_language_batch
from jaxasr_interp.generation.long_form import transcribe_windows
from jaxasr_interp.generation.means import resolve_means
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.generation.prompts import default_prompt
from jaxasr_interp.generation.segments import Segment
from jaxasr_interp.interventions.grammar import as_intervention
from jaxasr_interp.interventions.intervention import UNEDITED, encode_under
from jaxasr_interp.model.edits import EditLike, Identity
from jaxasr_interp.model.encoder import Encoder
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, host_only
from jaxasr_interp.speech.audio import log_mel_spectrogram

type Times = bool | Literal["segments"]
"""Which times are found: none, those of segments and words, or of segments alone."""


@dataclasses.dataclass(frozen=True)
class Transcript(Displayed):
    """The transcript of one clip.

    Attributes:
        text: the transcript.
        tokens: its tokens, without prompt and end-of-text.
        language: language code.
        mean_log_prob: mean log-probability of the tokens; for long audio the mean over segments,
            weighted by their tokens.
        no_speech_prob: probability that nobody speaks; for long audio that of the first segment's
            window.
        segments: pieces with their times, where timestamps were generated.

    Both numbers are `None` for long audio in which every window was skipped as silent.
    """

    text: str
    tokens: tuple[int, ...]
    language: str
    mean_log_prob: float | None
    no_speech_prob: float | None
    segments: tuple[Segment, ...] = ()

    __repr__ = summary


@host_only(GENERATE_FIXED)
def transcribe(
    model: Whisper,
    audio: Float[np.ndarray, " samples"],
    *,
    language: str | None = None,
    task: str | None = None,
    choice: Choice = GREEDY,
    edit: EditLike = UNEDITED,
    condition_on_previous_text: bool = True,
    times: Times = False,
) -> Transcript:
    """Transcribe one clip of any length.

    Args:
        model: from `load_model`.
        audio: 16 kHz samples, from `load_audio`.
        language: code or English name; by default the one that the checkpoint's settings name,
            or else detected (English-only models: English).
        task: `"transcribe"`, or `"translate"` into English; by default the checkpoint's, else
            `"transcribe"`.
        choice: how tokens are chosen.
        edit: intervention on the model, or its text, such as `zero:decoder.cross_z@4.7` (see
            `interventions.grammar`); an edit or a function acts on the decoder. The language is
            detected without it.
        condition_on_previous_text: in audio longer than one window, give each window the text
            before it.
        times: generate timestamps in audio of any length, and find when each word is said;
            `"segments"` leaves out the words. The transcript may differ from that without
            timestamps.

    Returns:
        The transcript, with segments where the audio is longer than one window (30 s), or times or
        a fallback are asked for; with times, segments have words.

    Raises:
        InputError: the language or task is unknown, or the model has no tokenizer.
    """
    _check_samples(audio)
    if times or choice.fallback or len(audio) > model.config.max_samples:
        code = language or model.generation.language or _detected(model, audio)
        segments = transcribe_windows(
            model,
            audio,
            language=code,
            task=task,
            choice=choice,
            edit=edit,
            condition_on_previous_text=condition_on_previous_text,
            times=times is True,
        )
        return _joined(model, tuple(segments), require_tokenizer(model).language_code(code))
    return transcribe_batch(model, [audio], language=language, task=task, choice=choice, edit=edit)[
        0
    ]


@host_only(GENERATE_FIXED)
def transcribe_batch(
    model: Whisper,
    clips: Sequence[Float[np.ndarray, " _"]],
    *,
    language: str | None = None,
    task: str | None = None,
    choice: Choice = GREEDY,
    edit: EditLike = UNEDITED,
) -> list[Transcript]:
    """Transcribe clips of up to one window (30 s) in one batch, without timestamps.

    Args:
        model: from `load_model`.
        clips: 16 kHz samples of each clip.
        language: language of all clips; by default the checkpoint's, or detected for each.
        task: `"transcribe"`, or `"translate"` into English; by default the checkpoint's, else
            `"transcribe"`.
        choice: how tokens are chosen.
        edit: intervention on the model, or its text, such as `zero:decoder.cross_z@4.7` (see
            `interventions.grammar`); an edit or a function acts on the decoder. The language is
            detected without it.

    Returns:
        One transcript for each clip.

    Raises:
        InputError: there are no clips, one is longer than the window, the language or task is
            unknown, or the model has no tokenizer.
    """
    if not len(clips):
        raise InputError("There are no clips to transcribe.")
    for clip in clips:
        _check_samples(clip)
    if max(map(len, clips)) > model.config.max_samples:
        raise InputError(
            f"A clip is longer than {model.config.max_seconds:g} s: give it to transcribe."
        )
    tokenizer = require_tokenizer(model)
    language = language or model.generation.language
    (intervention,) = resolve_means(model, [as_intervention(edit, model)])
    n_mels, frames = model.config.n_mels, model.config.mel_frames
    mels = jnp.stack([log_mel_spectrogram(clip, n_mels, frames) for clip in clips])
    states, references = encode_under(model, clips, intervention, mels)
    if language is not None or not tokenizer.multilingual:
        codes = [tokenizer.language_code(language or "en")] * len(clips)
    else:
        plain = isinstance(intervention.encoder, Identity)
        unedited = states if plain else encode_batch(model.encoder, mels)
        codes = [next(iter(ranked)) for ranked in detect_language_batch(model, unedited)]
    prompts = [default_prompt(model, code, task) for code in codes]
    generated = generate_rows(
        model,
        states,
        [[intervention.decoder_edit(len(prompts[0]))]] * len(clips),
        prompts=prompts,
        references=references,
        choice=choice,
    )
    return [_transcript(result, code) for (result,), code in zip(generated, codes, strict=True)]


@jax.jit
def encode_batch(
    encoder: Encoder, mels: Float[Array, "batch n_mels mel_frame"]
) -> Float[Array, "batch frame d_model"]:
    """Encode several spectrograms, one at a time because patterns are quadratic in length."""
    return jax.lax.map(lambda mel: encoder(mel)[0], mels)


def _check_samples(audio: Any) -> None:
    """Raise `InputError` unless this is one row of samples, and no list or path of clips."""
    if getattr(audio, "ndim", None) != 1:
        raise InputError(
            f"A clip is {type(audio).__name__}: transcribe takes one row of samples, as load_audio "
            "reads them, and transcribe_batch a list of several."
        )


def _detected(model: Whisper, audio: np.ndarray) -> str:
    if not require_tokenizer(model).multilingual:
        return "en"
    mel = log_mel_spectrogram(audio, model.config.n_mels, model.config.mel_frames)
    ranked = detect_language_batch(model, encode_batch(model.encoder, mel[None]))
    return next(iter(ranked[0]))


def _transcript(result: Generated, language: str) -> Transcript:
    return Transcript(
        text=result.text.strip(),
        tokens=result.tokens,
        language=language,
        mean_log_prob=result.mean_log_prob,
        no_speech_prob=result.no_speech_prob,
    )


def _joined(model: Whisper, segments: tuple[Segment, ...], language: str) -> Transcript:
    tokens = tuple(token for segment in segments for token in segment.tokens)
    weights = [len(segment.tokens) + 1 for segment in segments]
    log_probs = [segment.mean_log_prob for segment in segments]
    mean = float(np.average(log_probs, weights=weights)) if segments else None
    return Transcript(
        text=require_tokenizer(model).decode(tokens).strip(),
        tokens=tokens,
        language=language,
        mean_log_prob=mean,
        no_speech_prob=segments[0].no_speech_prob if segments else None,
        segments=segments,
    )
