"""Decoding again at higher temperatures what came out badly, as openai/whisper does."""

import dataclasses
from collections.abc import Callable, Iterable

from jaxasr_interp.evaluation.loops import compression_ratio
from jaxasr_interp.generation.options import Choice, Generated

NO_SPEECH_THRESHOLD = 0.6
LOG_PROB_THRESHOLD = -1.0
COMPRESSION_RATIO_THRESHOLD = 2.4
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
SAMPLES = 5
"""How many times a window is drawn at a temperature above 0; the likeliest is taken."""


def is_silent(result: Generated) -> bool:
    """Whether a window is skipped, as nobody speaks and the text is improbable."""
    return (
        result.no_speech_prob > NO_SPEECH_THRESHOLD and result.mean_log_prob <= LOG_PROB_THRESHOLD
    )


def needs_fallback(result: Generated) -> bool:
    """Whether a text repeats itself or is improbable, unless nobody speaks."""
    improbable = result.mean_log_prob < LOG_PROB_THRESHOLD
    if improbable and result.no_speech_prob > NO_SPEECH_THRESHOLD:
        return False
    return improbable or compression_ratio(result.text.strip()) > COMPRESSION_RATIO_THRESHOLD


def likeliest(samples: Iterable[Generated]) -> Generated:
    """Return the first sample whose tokens have the highest mean log-probability."""
    return max(samples, key=lambda one: sum(one.log_probs) / max(len(one.tokens), 1))


def decode_again(
    decode: Callable[[Choice], Generated], choice: Choice, result: Generated
) -> tuple[Generated, Choice]:
    """Decode at temperatures 0.2, 0.4, … 1 until the result needs no fallback.

    Args:
        decode: decodes a window, with tokens chosen as its argument says.
        choice: how tokens were chosen first.
        result: what came of it.

    Returns:
        The last result, and how its tokens were chosen.
    """
    used = choice
    for temperature in TEMPERATURES:
        if temperature > choice.temperature and needs_fallback(result):
            used = dataclasses.replace(choice, temperature=temperature, beam_size=1)
            result = decode(used)
    return result, used
