"""Making the inputs of one run from audio, and from its text if that is known."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.generate import generate_batch
from jaxasr_interp.generation.language import name_languages
from jaxasr_interp.generation.options import GREEDY, Choice
from jaxasr_interp.generation.prompts import default_prompt
from jaxasr_interp.model.run import EncodedUtterance, check_length, encode, with_encoded
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.audio import SAMPLE_RATE, log_mel_spectrogram
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND
from jaxasr_interp.speech.utterance import Utterance


@dataclasses.dataclass(frozen=True)
class DecoderInput:
    """The tokens that the decoder takes for one clip.

    Attributes:
        prompt: tokens of the prompt, which names the language.
        text: tokens of the text.
        language: code of the language.
    """

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    language: str

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of prompt and text."""
        return *self.prompt, *self.text


@host_only()
def make_utterance(
    model: Whisper,
    audio: Float[np.ndarray, " samples"],
    *,
    text: str | None = None,
    language: str | None = None,
    sites: str | Iterable[str] = (),
    choice: Choice = GREEDY,
    name: str = "The clip",
) -> EncodedUtterance:
    """Make the inputs of encoder and decoder for one clip, and encode it once.

    Args:
        model: a model with a tokenizer.
        audio: 16 kHz samples, at most as many as the encoder takes (30 s).
        text: text that the decoder takes after the prompt; by default the model's own transcript,
            cut to its context.
        language: spoken language, code or English name; by default the checkpoint's, or detected
            (English-only models: English).
        sites: encoder activations to keep with the encoder states.
        choice: how the model chooses the tokens of its own transcript.
        name: name of the clip in errors.

    Returns:
        The utterance with its encoder run.

    Raises:
        InputError: the clip is longer than the encoder takes, the language is unknown, the text is
            too long, or the model has no tokenizer.
    """
    check_length(model.config, audio, name)
    mel = log_mel_spectrogram(audio, model.config.n_mels, model.config.mel_frames)
    encoded = encode(model, mel, sites=sites)
    (given,) = decoder_inputs(model, encoded.states[None], [text], [language], choice=choice)
    if isinstance(given, InputError):
        raise given
    tokens, frames = jnp.asarray(given.tokens, jnp.int32), count_frames(model, audio)
    utterance = Utterance(mel, tokens, len(given.prompt), frames, given.language)
    return with_encoded(model, utterance, encoded)


def decoder_inputs(
    model: Whisper,
    states: Float[Array, "clip frame d_model"],
    texts: Sequence[str | None],
    languages: Sequence[str | None],
    *,
    room: int = 0,
    choice: Choice = GREEDY,
) -> list[DecoderInput | InputError]:
    """Make the decoder's input for each of several clips, or the error why there is none.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        texts: text of each clip; `None` for the model's own transcript.
        languages: language of each clip; `None` to detect it.
        room: number of positions to leave free after the text.
        choice: how the model chooses the tokens of its own transcripts.
    """
    codes = name_languages(model, states, languages)
    # Every clip gets a prompt, so that the batch has one shape; texts that are known are not used.
    plain = default_prompt(model)
    prompts = [
        plain if isinstance(code, InputError) else default_prompt(model, code) for code in codes
    ]
    own = None
    if any(text is None for text in texts):
        own = generate_batch(model, states, prompts=prompts, choice=choice)
    inputs: list[DecoderInput | InputError] = []
    for i, (text, code, prompt) in enumerate(zip(texts, codes, prompts, strict=True)):
        most = model.config.max_tokens - len(prompt) - room
        if text is None and own is not None:
            # The model's own transcript is cut to the context if it does not end before.
            tokens = own[i].tokens[:most]
        else:
            tokens = tuple(text_tokens(model, text or ""))
        if isinstance(code, InputError):
            inputs.append(code)
        elif len(tokens) > most:
            inputs.append(
                InputError(
                    f"The text has {len(prompt) + len(tokens) + room} tokens with its prompt: at "
                    f"most {model.config.max_tokens}."
                )
            )
        else:
            inputs.append(DecoderInput(tuple(prompt), tuple(tokens), code))
    return inputs


def text_tokens(model: Whisper, text: str) -> list[int]:
    """Encode a transcript as tokens; an empty transcript has none."""
    text = text.strip()
    return require_tokenizer(model).encode(f" {text}") if text else []


def count_frames(model: Whisper, audio: Float[np.ndarray, " samples"]) -> int:
    """Count the encoder frames that a clip fills."""
    samples = SAMPLE_RATE // FRAMES_PER_SECOND
    return min(-(-len(audio) // samples), model.config.max_frames)
