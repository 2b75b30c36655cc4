"""The tokens with which generation begins, padded to one of a few lengths."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.run import check_tokens
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.speech.tokenizer import Tokenizer

_SMALLEST_PROMPT = 8


@pytree_dataclass
class Prompt:
    """The tokens with which every row begins.

    Attributes:
        tokens: prompt of each clip, padded.
        length: number of tokens without the padding.
        start: position of the start-of-transcript token.
    """

    tokens: Int[Array, "clip pos"]
    length: Int[Array, ""]
    start: Int[Array, ""]


def default_prompt(
    model: Whisper,
    language: str | None = None,
    task: str | None = None,
    *,
    timestamps: bool = False,
    previous: Sequence[int] = (),
) -> list[int]:
    """Return the prompt for a language and a task; see `Tokenizer.prompt`.

    What is not named is what the checkpoint's generation settings ask for, else English and
    `"transcribe"`.
    """
    return require_tokenizer(model).prompt(
        language or model.generation.language or "en",
        task or model.generation.task or "transcribe",
        timestamps,
        previous,
    )


def stack_prompts(
    config: WhisperConfig, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]
) -> Int[np.ndarray, "clip pos"]:
    """Stack the prompts of several clips.

    Raises:
        InputError: the prompts differ in length, start or ask for timestamps at different places,
            hold no tokens of the model, or are traced.
    """
    if any(isinstance(token, Tracer) for token in jax.tree.leaves(prompts)):
        raise InputError(
            "The prompt is traced, and its tokens decide what may follow: give them as numbers, "
            "not as an argument of the transformed function."
        )
    if len({len(prompt) for prompt in prompts}) != 1:
        raise InputError("The prompts differ in length: give together those of equal length.")
    for prompt in prompts:
        check_tokens(config, prompt)
    given = np.stack([np.asarray(prompt, np.int32) for prompt in prompts])
    for mark in (tokenizer.start_of_transcript, tokenizer.timestamp_begin - 1):
        if ((given == mark) != (given[:1] == mark)).any():
            raise InputError(
                "The prompts start, or ask for timestamps, at different places: give such clips "
                "apart."
            )
    return given


def make_prompt(
    config: WhisperConfig, tokenizer: Tokenizer, given: Int[np.ndarray, "clip pos"]
) -> Prompt:
    """Pad the stacked prompts, and find where the transcript starts."""
    n_clips, length = given.shape
    padded = np.zeros((n_clips, padded_length(length, config.max_tokens)), np.int32)
    padded[:, :length] = given
    starts = np.flatnonzero(given[0] == tokenizer.start_of_transcript)
    return Prompt(
        jnp.asarray(padded),
        jnp.asarray(length, jnp.int32),
        jnp.asarray(starts[-1] if len(starts) else 0, jnp.int32),
    )


def padded_length(length: int, max_tokens: int) -> int:
    """Round a length up to one of a few sizes, because each size takes a compilation."""
    return min(max_tokens, max(_SMALLEST_PROMPT, 1 << (length - 1).bit_length()))


def limit_new_tokens(max_new_tokens: int, length: int, max_tokens: int) -> int:
    """Count the new tokens that fit the context after a prompt, at most `max_new_tokens`."""
    # The last token is never an input, so that it needs no position.
    return min(max_new_tokens, max_tokens - length + 1)
