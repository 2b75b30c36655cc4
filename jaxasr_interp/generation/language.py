"""Detection of the spoken language."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.runtime.transforms import host_only


@host_only("decode the prompt under them and read its logits")
def detect_language(model: Whisper, states: Float[Array, "frame d_model"]) -> dict[str, float]:
    """Detect the language that is spoken in one encoded clip.

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
    """Detect the language of several clips in one batch; see `detect_language`."""
    tokenizer = require_tokenizer(model)
    if not tokenizer.multilingual:
        raise InputError("An English-only model cannot detect languages: use a multilingual one.")
    codes, ids = list(tokenizer.languages), jnp.asarray(list(tokenizer.languages.values()))
    start = jnp.asarray([tokenizer.start_of_transcript], jnp.int32)
    probabilities = np.asarray(_token_probabilities(model.decoder, states, start, ids))
    return [
        {codes[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in probabilities
    ]


def name_languages(
    model: Whisper,
    states: Float[Array, "batch frame d_model"],
    languages: Sequence[str | None],
) -> list[str | InputError]:
    """Return the code of each clip's language, or the error if there is no such language.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        languages: code or English name of each clip's language; `None` for the one that the
            checkpoint's settings name, or else to detect it (English-only models: English).
    """
    tokenizer = require_tokenizer(model)
    named = [language or model.generation.language for language in languages]
    if tokenizer.multilingual and not all(named):
        ranked = detect_language_batch(model, states)
        named = [name or next(iter(best)) for name, best in zip(named, ranked, strict=True)]
    codes: list[str | InputError] = []
    for name in named:
        try:
            codes.append(tokenizer.language_code(name or "en"))
        except InputError as error:
            codes.append(error)
    return codes


@jax.jit
def _token_probabilities(
    decoder: Decoder,
    states: Float[Array, "batch frame d_model"],
    tokens: Int[Array, " pos"],
    ids: Int[Array, " choice"],
) -> Float[Array, "batch choice"]:
    def one(states: Float[Array, "frame d_model"]) -> Float[Array, " choice"]:
        last = jnp.asarray([len(tokens) - 1], jnp.int32)
        return jax.nn.softmax(decoder.run(tokens, states, logits_at=last).logits[0, ids])

    return jax.vmap(one)(states)
