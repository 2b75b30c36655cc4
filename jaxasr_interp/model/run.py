"""The jitted forward passes `encode` and `decode`, which return the requested activations."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import (
    Activations,
    Edit,
    EditContext,
    EditLike,
    edit_of,
    identity,
)
from jaxasr_interp.model.sites import (
    PATTERN_SITES,
    DecoderActivations,
    EncoderActivations,
    requested_sites,
)
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import pytree_dataclass, static
from jaxasr_interp.speech.audio import SAMPLE_RATE
from jaxasr_interp.speech.utterance import Utterance


@pytree_dataclass
class EncoderRun:
    """The result of `encode`; in the runs of several clips all arrays have a leading axis.

    Attributes:
        states: encoder states after the final LayerNorm, to which the decoder attends.
        acts: the requested activations.
    """

    states: Float[Array, "*batch frame d_model"]
    acts: EncoderActivations


@pytree_dataclass
class DecoderRun:
    """The result of `decode`.

    Attributes:
        logits: next-token logits at every position, float32 or wider.
        acts: the requested activations.
    """

    logits: Float[Array, "pos d_vocab"]
    acts: DecoderActivations


@pytree_dataclass
class EncodedUtterance(Utterance):
    """An utterance with its encoder run, so that the clip need not be encoded again.

    It is used only with the model and the spectrogram that it was made from.

    Attributes:
        encoded: encoder run of the clip; `None` if there is none.
        source: what the run was made from; see `with_encoded`.
    """

    encoded: EncoderRun | None = None
    source: "EncodingSource | None" = static(default=None)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodingSource:
    """The model and the spectrogram that an encoder run was made from; equal only to itself."""

    model: Whisper
    mel: Float[Array, "n_mels mel_frame"]


def with_encoded(model: Whisper, utterance: Utterance, encoded: EncoderRun) -> EncodedUtterance:
    """Return the utterance with the encoder run that the model made of it."""
    fields = {name: getattr(utterance, name) for name in Utterance.__dataclass_fields__}
    source = EncodingSource(model, utterance.mel)
    return EncodedUtterance(**fields, encoded=encoded, source=source)


def encode(
    model: Whisper,
    mel: Float[Array, "n_mels mel_frame"],
    *,
    edit: EditLike = identity,
    sites: str | Iterable[str] | None = None,
    reference: Activations | None = None,
) -> EncoderRun:
    """Run the encoder on one spectrogram.

    Args:
        model: from `load_model`.
        mel: from `log_mel_spectrogram`.
        edit: `edit(site, layer, value) -> value`, called at every encoder site; an edit such as
            `ji.At(ji.Zero(), layer=2)`, or its text (see `interventions.grammar`).
        sites: activations to return: names, `"all"`, or by default the residual sites.
        reference: activations of a reference run, for edits that take values from one.

    Returns:
        Encoder states `[frame, d_model]` and activations.

    Raises:
        InputError: wrong spectrogram shape, or a site that the encoder lacks.
    """
    expected = (model.config.n_mels, model.config.mel_frames)
    if mel.shape != expected:
        raise InputError(f"The spectrogram is {mel.shape}: this model takes {expected}.")
    edit, context = edit_of(edit, "encoder", model.config), EditContext(reference=reference)
    edit.check("encoder", model.config)
    return _encode(model, mel, edit, context, requested_sites("encoder", sites))


def decode(
    model: Whisper,
    tokens: Int[Array, " pos"] | Sequence[int] | np.ndarray,
    states: Float[Array, "frame d_model"],
    *,
    edit: EditLike = identity,
    sites: str | Iterable[str] | None = None,
    reference: Activations | None = None,
) -> DecoderRun:
    """Run the decoder on one teacher-forced token sequence.

    Args:
        model: from `load_model`.
        tokens: prompt and transcript.
        states: encoder states, from `encode`.
        edit: `edit(site, layer, value) -> value`, called at every decoder site; see `encode`.
        sites: activations to return: names, `"all"`, or by default the residual sites.
        reference: activations of a reference run, for edits that take values from one.

    Returns:
        Logits `[pos, d_vocab]` (row `p` predicts token `p + 1`) and activations.

    Raises:
        InputError: no tokens, too many, one outside the vocabulary, wrong states shape, or a site
            that the decoder lacks.
    """
    tokens = check_tokens(model.config, tokens)
    check_states(model.config, states)
    edit, context = edit_of(edit, "decoder", model.config), EditContext(reference=reference)
    edit.check("decoder", model.config)
    return _decode(model, tokens, states, edit, context, requested_sites("decoder", sites))


def encode_utterance(
    model: Whisper, utterance: Utterance, sites: str | Iterable[str] = ()
) -> EncoderRun:
    """Return the encoder run of an utterance; encode it if it has none that fits.

    Args:
        model: from `load_model`.
        utterance: the clip to encode.
        sites: encoder activations that are wanted.
    """
    known = known_run(model, utterance, sites)
    return encode(model, utterance.mel, sites=sites) if known is None else known


def known_run(
    model: Whisper, utterance: Utterance, sites: str | Iterable[str] = ()
) -> EncoderRun | None:
    """Return the encoder run that an utterance has, if it fits.

    A run fits if this model made it of this spectrogram and kept these sites.
    """
    wanted = requested_sites("encoder", sites)
    if not isinstance(utterance, EncodedUtterance) or utterance.source is None:
        return None
    source, known = utterance.source, utterance.encoded
    if known is None or source.model is not model or source.mel is not utterance.mel:
        return None
    if any(getattr(known.acts, site) is None for site in wanted):
        return None
    return EncoderRun(known.states, keep(known.acts, wanted))


def check_length(config: WhisperConfig, audio: Float[np.ndarray, " samples"], name: str) -> None:
    """Raise `InputError` if a clip is longer than the encoder takes."""
    if len(audio) > config.max_samples:
        raise InputError(
            f"{name} is longer than {config.max_seconds:g} s ({len(audio) / SAMPLE_RATE:.1f} s): "
            "cut it to the sentence."
        )


def check_tokens(
    config: WhisperConfig, tokens: Int[Array, " pos"] | Sequence[int] | np.ndarray
) -> Int[Array, " pos"]:
    """Return `tokens` as an int32 array; raise `InputError` if the decoder cannot take them.

    Under a transformation the values are unknown and only the shape is checked.
    """
    array = tokens if isinstance(tokens, Tracer) else np.asarray(tokens)
    if isinstance(array, np.ndarray):
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"Tokens are {array.dtype}: expected integers.")
        outside = array[(array < 0) | (array >= config.d_vocab)]
        if outside.size:
            raise InputError(
                f"Token {outside.flat[0]} is outside the vocabulary of {config.d_vocab} tokens."
            )
    if array.ndim != 1 or not 1 <= len(array) <= config.max_tokens:
        raise InputError(
            f"Tokens have shape {list(array.shape)}: expected one sequence of 1 to "
            f"{config.max_tokens} tokens."
        )
    return jnp.asarray(array, jnp.int32)


def check_states(config: WhisperConfig, states: Array) -> None:
    """Raise `InputError` unless `states` has the shape of one clip's encoder states."""
    expected = (config.max_frames, config.d_model)
    if states.shape != expected:
        raise InputError(f"Encoder states are {states.shape}: this model takes {expected}.")


def keep[Acts: EncoderActivations | DecoderActivations](acts: Acts, sites: frozenset[str]) -> Acts:
    """Return some of the activations only."""
    return type(acts)(**{site: getattr(acts, site) for site in sites})


@functools.partial(jax.jit, static_argnames="sites")
def _encode(
    model: Whisper, mel: Array, edit: Edit, context: EditContext, sites: frozenset[str]
) -> EncoderRun:
    patterns = bool(sites & PATTERN_SITES)
    states, acts = model.encoder(mel, edit, patterns=patterns, context=context)
    return EncoderRun(states, keep(acts, sites))


@functools.partial(jax.jit, static_argnames="sites")
def _decode(
    model: Whisper,
    tokens: Array,
    states: Array,
    edit: Edit,
    context: EditContext,
    sites: frozenset[str],
) -> DecoderRun:
    patterns = bool(sites & PATTERN_SITES)
    run = model.decoder.run(tokens, states, edit, patterns=patterns, context=context)
    return DecoderRun(run.logits, keep(run.decoder, sites))
