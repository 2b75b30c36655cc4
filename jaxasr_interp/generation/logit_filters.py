"""Filters of the next token's logits: suppressed tokens and openai/whisper's timestamp rules."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.speech.tokenizer import Tokenizer

MAX_INITIAL_TIMESTAMP = 50  # in steps of 20 ms


@pytree_dataclass
class TimestampFilter:
    """The rules for timestamps: they come in pairs and never decrease.

    A timestamp must follow where all timestamps have in sum a higher probability than any text
    token.

    Attributes:
        begin: id of the timestamp 0.00.
        is_timestamp: for every id, whether it is a timestamp.
        is_text: for every id, whether it is text of a transcript.
    """

    begin: Int[Array, ""]
    is_timestamp: Bool[Array, " d_vocab"]
    is_text: Bool[Array, " d_vocab"]

    def __call__(
        self,
        logits: Float[Array, " d_vocab"],
        tokens: Int[Array, " step"],
        step: Int[Array, ""],
    ) -> Float[Array, " d_vocab"]:
        """Set the logits of tokens that may not follow `tokens[:step]` to -inf."""
        ids = jnp.arange(len(logits), dtype=jnp.int32)
        is_timestamp, timed = self.is_timestamp, self.is_timestamp[tokens]
        is_generated = jnp.arange(len(tokens), dtype=jnp.int32) < step
        after_timestamp = (step >= 1) & timed[step - 1]
        second = (step < 2) | timed[step - 2]
        forbidden = ids == self.begin - 1
        forbidden |= after_timestamp & second & is_timestamp
        opening = after_timestamp & ~second
        forbidden |= opening & self.is_text
        latest = jnp.where(is_generated & timed, tokens, -1).max()
        too_early = ids < jnp.where(opening, latest, latest + 1)
        forbidden |= (latest >= 0) & is_timestamp & too_early
        late = ids > self.begin + MAX_INITIAL_TIMESTAMP
        forbidden |= (step == 0) & (~is_timestamp | late)
        logits = jnp.where(forbidden, -jnp.inf, logits)
        log_probs = jax.nn.log_softmax(logits)
        timestamp = jax.nn.logsumexp(jnp.where(is_timestamp, log_probs, -jnp.inf))
        text = jnp.where(is_timestamp, -jnp.inf, log_probs).max()
        return jnp.where((timestamp > text) & ~is_timestamp, -jnp.inf, logits)


@pytree_dataclass
class LogitFilter:
    """All rules for which token may follow.

    Attributes:
        suppressed: for every id, whether it is never generated.
        suppressed_first: for every id, whether it is not generated as the first token.
        end_of_text: id of the token that ends the transcript.
        no_speech: id of the token whose probability at the start is reported.
        timestamps: rules for timestamps, or `None` where the prompt forbids them.
    """

    suppressed: Bool[Array, " d_vocab"]
    suppressed_first: Bool[Array, " d_vocab"]
    end_of_text: Int[Array, ""]
    no_speech: Int[Array, ""]
    timestamps: TimestampFilter | None

    def __call__(
        self,
        logits: Float[Array, " d_vocab"],
        tokens: Int[Array, " step"],
        step: Int[Array, ""],
    ) -> Float[Array, " d_vocab"]:
        """Set the logits of tokens that may not follow `tokens[:step]` to -inf."""
        forbidden = self.suppressed | (self.suppressed_first & (step == 0))
        logits = jnp.where(forbidden, -jnp.inf, logits)
        return logits if self.timestamps is None else self.timestamps(logits, tokens, step)


def make_logit_filter(
    config: WhisperConfig,
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    prompt: Int[np.ndarray, " pos"],
    suppress: bool,
) -> LogitFilter:
    """Make the filter for one prompt.

    Args:
        config: sizes.
        settings: the checkpoint's generation settings.
        tokenizer: the checkpoint's tokenizer.
        prompt: the prompt; timestamps are allowed unless it holds the no-timestamps token.
        suppress: `False` allows every token (pure argmax).

    Raises:
        InputError: a suppressed token is outside the vocabulary.
    """
    if not suppress:
        settings = GenerationSettings()
    begin, timestamps = tokenizer.timestamp_begin, None
    if suppress and begin - 1 not in prompt:
        timestamps = TimestampFilter(
            jnp.asarray(begin, jnp.int32),
            jnp.asarray(tokenizer.timestamp_mask(config.d_vocab)),
            jnp.asarray(tokenizer.text_mask(config.d_vocab)),
        )
    return LogitFilter(
        suppressed=_mask(config.d_vocab, settings.suppress),
        suppressed_first=_mask(config.d_vocab, settings.suppress_first),
        end_of_text=jnp.asarray(tokenizer.end_of_text, jnp.int32),
        no_speech=jnp.asarray(tokenizer.no_speech, jnp.int32),
        timestamps=timestamps,
    )


def _mask(d_vocab: int, tokens: tuple[int, ...]) -> Bool[Array, " d_vocab"]:
    outside = [token for token in tokens if not 0 <= token < d_vocab]
    if outside:
        raise InputError(
            f"The generation settings suppress token {outside[0]}, which is outside the vocabulary "
            f"of {d_vocab}."
        )
    mask = np.zeros(d_vocab, bool)
    mask[list(tokens)] = True
    return jnp.asarray(mask)
