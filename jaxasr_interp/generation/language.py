"""Which language is spoken."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Decoder, Whisper, require_tokenizer


def detect_language(model: Whisper, states: Float[Array, "frame d_model"]) -> dict[str, float]:
    """Which language is spoken in one encoded clip.

    Args:
        model: a multilingual model with a tokenizer.
        states: encoder states, from `encode`.

    Returns:
        Probability of every language code after the start of the transcript, the most probable
        first.

    Raises:
        InputError: the model has no tokenizer or is English-only.
    """
    return detect_language_batch(model, states[None])[0]


def detect_language_batch(
    model: Whisper, states: Float[Array, "batch frame d_model"]
) -> list[dict[str, float]]:
    """`detect_language` for several clips together."""
    tokenizer = require_tokenizer(model)
    if not tokenizer.multilingual:
        raise InputError("An English-only model cannot detect languages: use a multilingual one.")
    codes, ids = list(tokenizer.languages), jnp.asarray(list(tokenizer.languages.values()))
    start = jnp.asarray([tokenizer.start_of_transcript], jnp.int32)
    probabilities = np.asarray(_token_probabilities(model.decoder, states, start, ids))
    return [
        {codes[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in probabilities
    ]


@jax.jit
def _token_probabilities(
    decoder: Decoder,
    states: Float[Array, "batch frame d_model"],
    tokens: Int[Array, " pos"],
    ids: Int[Array, " choice"],
) -> Float[Array, "batch choice"]:
    def one(states):
        resid, _ = decoder(tokens, decoder.cross_keys_values(states))
        return jax.nn.softmax(decoder.unembed(resid[-1:])[0][0, ids])

    return jax.vmap(one)(states)
