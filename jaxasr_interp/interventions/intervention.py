"""Interventions on a whole run: edits of encoder and decoder, and the reference run they use."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.interventions.where import CountedFrom, chain
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.edits import (
    Edit,
    EditLike,
    Identity,
    RunEdit,
    as_edit,
    edit_of,
    identity,
)
from jaxasr_interp.model.run import EncoderRun, check_length, encode
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.speech.audio import log_mel_spectrogram
from jaxasr_interp.speech.noise import reference_audio


@dataclasses.dataclass(frozen=True)
class Intervention(RunEdit):
    """The edits of a run.

    Attributes:
        text: the intervention as text; see `interventions.grammar`.
        encoder: edit of the encoder.
        decoder: edit of the decoder; positions are those of the run.
        steps: edit of the decoder; positions count from the one that predicts the first token.
        reference: audio of the reference run, if an edit takes values from one: `"noise"`,
            `"silence"` or an audio file.
        seed: seed of the noise.
    """

    text: str
    encoder: EditLike = identity
    decoder: EditLike = identity
    steps: EditLike = identity
    reference: str | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("encoder", "decoder", "steps"):
            object.__setattr__(self, name, as_edit(getattr(self, name)))

    @property
    def encoder_edit(self) -> Edit:
        """The encoder's edit."""
        return as_edit(self.encoder)

    def decoder_edit(self, prompt: int) -> Edit:
        """Return the decoder's edit in a run whose prompt has `prompt` tokens."""
        steps = as_edit(self.steps)
        if not isinstance(steps, Identity):
            steps = CountedFrom(steps, prompt - 1)
        return chain([as_edit(self.decoder), steps])


UNEDITED = Intervention("unedited")


@edit_of.register
def _(edit: Intervention, stack: Stack, config: WhisperConfig, prompt: int | None = None) -> Edit:
    """Return the edit of one stack; raise `InputError` if the intervention does more than that."""
    steps = not isinstance(edit.steps, Identity)
    other = (
        edit.encoder if stack == "decoder" else chain([as_edit(edit.decoder), as_edit(edit.steps)])
    )
    if not isinstance(other, Identity):
        raise InputError(
            f"The edit {edit.text!r} acts outside of the {stack}, which alone is edited here: give "
            "each stack its own edit, or give it to transcribe."
        )
    if steps and prompt is None:
        raise InputError(
            f"The edit {edit.text!r} counts the steps of a generation: give it to generate or "
            "transcribe."
        )
    if edit.reference is not None:
        raise InputError(
            f"The edit {edit.text!r} takes values from a run that hears {edit.reference!r}: give "
            "it to transcribe, which has the audio, or take ji.Interchange() and a reference."
        )
    return edit.encoder_edit if stack == "encoder" else edit.decoder_edit(prompt or 1)


def encode_reference(
    model: Whisper,
    clip: Float[np.ndarray, " samples"],
    reference: str,
    seed: int,
    sites: str | Iterable[str],
) -> EncoderRun:
    """Encode the audio of the reference run of a clip.

    Args:
        model: the model.
        clip: 16 kHz samples; noise has their length and loudness, silence their length.
        reference: `"noise"`, `"silence"` or an audio file.
        seed: seed of the noise.
        sites: activations to keep.

    Raises:
        InputError: the file cannot be read, or is longer than the encoder takes.
    """
    # The noise for a silent clip would be as silent as the clip, so the clip itself is encoded.
    known = np.any(clip) or reference not in ("noise", "silence")
    audio = reference_audio(reference, clip, seed) if known else clip
    check_length(model.config, audio, f"The reference {reference}")
    mel = log_mel_spectrogram(audio, model.config.n_mels, model.config.mel_frames)
    return encode(model, mel, sites=sites)


def encode_under(
    model: Whisper,
    clips: Sequence[Float[np.ndarray, " _"]],
    intervention: Intervention,
    mels: Sequence[Float[Array, "n_mels mel_frame"]]
    | Float[Array, "clip n_mels mel_frame"]
    | None = None,
    encode_other: Callable[..., EncoderRun] = encode_reference,
) -> tuple[Float[Array, "clip frame d_model"], Float[Array, "clip frame d_model"] | None]:
    """Encode clips under an intervention, one at a time.

    Args:
        model: the model.
        clips: 16 kHz samples of each clip.
        intervention: the intervention, whose encoder edit is applied.
        mels: the clips' spectrograms, if they are known.
        encode_other: `encode_reference`, or a function that remembers its runs.

    Returns:
        The encoder states; and those of the reference run if the decoder's edits need it.

    Raises:
        InputError: an edit takes values from a reference run and the intervention names none.
    """
    encoder, decoder = intervention.encoder_edit, intervention.decoder_edit(1)
    needed = encoder.needs_reference or decoder.needs_reference
    if needed and intervention.reference is None:
        raise InputError(f"The edit {intervention.text!r} takes values from a reference: name one.")
    sites = (encoder.touches or "all") if encoder.needs_reference else ()
    states, references = [], []
    n_mels, frames = model.config.n_mels, model.config.mel_frames
    for i, clip in enumerate(clips):
        mel = log_mel_spectrogram(clip, n_mels, frames) if mels is None else mels[i]
        acts = None
        if needed and intervention.reference is not None:
            other = encode_other(model, clip, intervention.reference, intervention.seed, sites)
            acts = other.acts
            references.append(other.states)
        states.append(encode(model, mel, edit=encoder, sites=(), reference=acts).states)
    return jnp.stack(states), jnp.stack(references) if decoder.needs_reference else None
