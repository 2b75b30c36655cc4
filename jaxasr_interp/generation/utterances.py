"""Utterances: from audio, and text where it is known, to what one run hears and is given."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.generate import generate_batch
from jaxasr_interp.generation.language import name_languages
from jaxasr_interp.generation.options import GREEDY, Choice
from jaxasr_interp.model.run import EncodedUtterance, EncoderRun, encode
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.speech.audio import CHUNK_SAMPLES, SAMPLE_RATE, log_mel_spectrogram
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND


@dataclasses.dataclass(frozen=True)
class DecoderInput:
    """What the decoder is given for one clip.

    Attributes:
        prompt: the prompt, which names the language.
        text: the tokens of the text.
        language: code of the language.
    """

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    language: str

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and text."""
        return *self.prompt, *self.text


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
    """Make what one run hears and is given of a clip, encoding it once.

    Args:
        model: a model with a tokenizer.
        audio: 16 kHz samples, at most 30 s.
        text: what the decoder is given after the prompt; by default what the model itself writes,
            as far as its context reaches.
        language: spoken, code or English name; by default detected (English-only models: English).
        sites: encoder activations to keep with the encoder states.
        choice: how the model chooses the tokens of its own text.
        name: of the clip, in errors.

    Returns:
        The utterance with its encoder run.

    Raises:
        InputError: the clip is longer than 30 s, the language unknown or the text too long, or the
            model has no tokenizer.
    """
    if len(audio) > CHUNK_SAMPLES:
        seconds = len(audio) / SAMPLE_RATE
        raise InputError(f"{name} is longer than 30 s ({seconds:.1f} s): cut it to the sentence.")
    mel = log_mel_spectrogram(audio, model.config.n_mels)
    encoded = encode(model, mel, sites=sites)
    (given,) = decoder_inputs(model, encoded.states[None], [text], [language], choice=choice)
    if isinstance(given, InputError):
        raise given
    return EncodedUtterance(
        mel=mel,
        tokens=jnp.asarray(given.tokens, jnp.int32),
        prompt=len(given.prompt),
        frames=count_frames(model, audio),
        language=given.language,
        encoded=EncoderRun(encoded.states, encoded.acts),
    )


def decoder_inputs(
    model: Whisper,
    states: Float[Array, "clip frame d_model"],
    texts: Sequence[str | None],
    languages: Sequence[str | None],
    *,
    room: int = 0,
    choice: Choice = GREEDY,
) -> list[DecoderInput | InputError]:
    """What the decoder is given for each of several clips, or why it cannot be given anything.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        texts: what is said in each; `None` for what the model itself writes.
        languages: of each; `None` to detect it.
        room: how many positions to leave free behind the text.
        choice: how the model chooses the tokens of its own texts.
    """
    tokenizer = require_tokenizer(model)
    codes = name_languages(model, states, languages)
    # A prompt for each: the program has one shape, and what is written elsewhere is left out.
    plain = tokenizer.prompt()
    prompts = [plain if isinstance(code, InputError) else tokenizer.prompt(code) for code in codes]
    own = None
    if any(text is None for text in texts):
        own = generate_batch(model, states, prompts=prompts, choice=choice)
    inputs: list[DecoderInput | InputError] = []
    for i, (text, code, prompt) in enumerate(zip(texts, codes, prompts, strict=True)):
        most = model.config.max_tokens - len(prompt) - room
        if text is None and own is not None:
            # A text that the model does not end is cut.
            written = own[i].tokens[:most]
        else:
            written = tuple(text_tokens(model, text or ""))
        if isinstance(code, InputError):
            inputs.append(code)
        elif len(written) > most:
            inputs.append(
                InputError(
                    f"The text has {len(prompt) + len(written) + room} tokens with its prompt: at "
                    f"most {model.config.max_tokens}."
                )
            )
        else:
            inputs.append(DecoderInput(tuple(prompt), tuple(written), code))
    return inputs


def text_tokens(model: Whisper, text: str) -> list[int]:
    """The tokens of a transcript; none of an empty one."""
    text = text.strip()
    return require_tokenizer(model).encode(f" {text}") if text else []


def count_frames(model: Whisper, audio: Float[np.ndarray, " samples"]) -> int:
    """How many encoder frames a clip fills."""
    samples = SAMPLE_RATE // FRAMES_PER_SECOND
    return min(-(-len(audio) // samples), model.config.max_frames)
