"""Which tokens may come next: suppressed ones, and openai/whisper's timestamp rules."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.config import GenerationSettings, WhisperConfig
from jaxasr_interp.errors import InputError
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.tokens import Tokenizer

MAX_INITIAL_TIMESTAMP = 50  # in steps of 20 ms


@pytree_dataclass
class TimestampRules:
    """Timestamps come in pairs, never decrease, and win where together they outweigh any text."""

    begin: Int[Array, ""]
    end_of_text: Int[Array, ""]

    def __call__(
        self,
        logits: Float[Array, " d_vocab"],
        tokens: Int[Array, " step"],
        step: Int[Array, ""],
    ) -> Float[Array, " d_vocab"]:
        """Set what may not follow `tokens[:step]` to -inf."""
        ids = jnp.arange(len(logits), dtype=jnp.int32)
        is_timestamp = ids >= self.begin
        written = jnp.arange(len(tokens), dtype=jnp.int32) < step
        after_timestamp = (step >= 1) & (tokens[step - 1] >= self.begin)
        second = (step < 2) | (tokens[step - 2] >= self.begin)
        forbidden = ids == self.begin - 1
        forbidden |= after_timestamp & second & is_timestamp
        opening = after_timestamp & ~second
        forbidden |= opening & (ids < self.end_of_text)
        latest = jnp.where(written & (tokens >= self.begin), tokens, -1).max()
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
class Rules:
    """All that decides which token may follow.

    Attributes:
        suppressed: never generated.
        suppressed_first: not generated as the first token.
        end_of_text: ends the transcript.
        no_speech: its probability at the start is reported.
        timestamps: rules for timestamps, or `None` where the prompt forbids them.
    """

    suppressed: Bool[Array, " d_vocab"]
    suppressed_first: Bool[Array, " d_vocab"]
    end_of_text: Int[Array, ""]
    no_speech: Int[Array, ""]
    timestamps: TimestampRules | None

    def __call__(
        self,
        logits: Float[Array, " d_vocab"],
        tokens: Int[Array, " step"],
        step: Int[Array, ""],
    ) -> Float[Array, " d_vocab"]:
        """Set what may not follow `tokens[:step]` to -inf."""
        forbidden = self.suppressed | (self.suppressed_first & (step == 0))
        logits = jnp.where(forbidden, -jnp.inf, logits)
        return logits if self.timestamps is None else self.timestamps(logits, tokens, step)


def make_rules(
    config: WhisperConfig,
    settings: GenerationSettings,
    tokenizer: Tokenizer,
    prompt: Int[np.ndarray, " pos"],
    suppress: bool,
) -> Rules:
    """The rules for one prompt.

    Args:
        config: sizes.
        settings: the checkpoint's generation settings.
        tokenizer: the checkpoint's tokenizer.
        prompt: timestamps are allowed unless it holds the no-timestamps token.
        suppress: `False` lets every token through (pure argmax).

    Raises:
        InputError: a suppressed token is outside the vocabulary.
    """
    if not suppress:
        settings = GenerationSettings()
    end_of_text = jnp.asarray(tokenizer.end_of_text, jnp.int32)
    begin = tokenizer.timestamp_begin
    with_timestamps = suppress and begin - 1 not in prompt
    return Rules(
        suppressed=_mask(config.d_vocab, settings.suppress),
        suppressed_first=_mask(config.d_vocab, settings.suppress_first),
        end_of_text=end_of_text,
        no_speech=jnp.asarray(tokenizer.no_speech, jnp.int32),
        timestamps=TimestampRules(jnp.asarray(begin, jnp.int32), end_of_text)
        if with_timestamps
        else None,
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
