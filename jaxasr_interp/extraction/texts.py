"""The text that the decoder takes for each clip."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.utterances import DecoderInput, decoder_inputs, text_tokens
from jaxasr_interp.generation.word_times import Word, align_words
from jaxasr_interp.model.run import EncoderRun, with_encoded
from jaxasr_interp.model.sites import EncoderActivations
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.speech.tables import Row
from jaxasr_interp.speech.texts import OWN, Texts
from jaxasr_interp.speech.utterance import Utterance


@dataclasses.dataclass(frozen=True)
class GivenText:
    """The tokens that the decoder takes for one clip.

    Attributes:
        given: prompt and text.
        end_of_text: the token that follows prompt and text.
        source: `"own"`, or the column of the text.
        words: words of the text with their tokens and frames, if requests name words.
    """

    given: DecoderInput
    end_of_text: int
    source: str
    words: tuple[Word, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens `[prompt, text, <|endoftext|>]`."""
        return *self.given.tokens, self.end_of_text

    @property
    def prompt(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.given.prompt)


def longest_run(model: Whisper, rows: Sequence[Row], texts: Texts) -> int:
    """Count the tokens of the longest run; if a text is not known yet, the longest possible."""
    known = [texts.written(row) for row in rows]
    if not all(known):
        return model.config.max_tokens
    around = len(require_tokenizer(model).prompt()) + 1
    longest = max(len(text_tokens(model, text)) for text in known) + around
    return min(longest, model.config.max_tokens)


def given_texts(
    model: Whisper,
    states: Float[Array, "clip frame d_model"],
    rows: Sequence[Row],
    texts: Texts,
) -> list[GivenText | InputError]:
    """Make the decoder's tokens for each clip of a batch, or the error why there are none.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        rows: columns of each clip.
        texts: where the texts come from.
    """
    tables = [texts.written(row) or None for row in rows]
    languages = [texts.language_of(row) for row in rows]
    inputs = decoder_inputs(model, states, tables, languages, room=1)
    end = require_tokenizer(model).end_of_text
    return [
        one
        if isinstance(one, InputError)
        else GivenText(one, end, OWN if text is None else texts.column)
        for one, text in zip(inputs, tables, strict=True)
    ]


def with_words(
    model: Whisper,
    mel: Float[Array, "n_mels mel_frame"],
    states: Float[Array, "frame d_model"],
    text: GivenText,
    frames: int,
) -> GivenText:
    """The text with its words and when they are said."""
    tokens = jnp.asarray(text.given.tokens, jnp.int32)
    utterance = Utterance(mel, tokens, text.prompt, frames, text.given.language)
    encoded = with_encoded(model, utterance, EncoderRun(states, EncoderActivations()))
    return dataclasses.replace(text, words=align_words(model, encoded))
