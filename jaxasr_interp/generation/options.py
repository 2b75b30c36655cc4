"""The options of generation, and its result."""

import dataclasses

from jaxasr_interp.errors import InputError, check_least
from jaxasr_interp.model.sites import DecoderActivations
from jaxasr_interp.pytree import summary

MAX_NEW_TOKENS = 224
_LEAST_TEMPERATURE = 1e-3


@dataclasses.dataclass(frozen=True)
class Generated:
    """One generated token sequence.

    Attributes:
        prompt: the tokens that were given.
        tokens: the tokens that were generated, without end-of-text.
        log_probs: natural log-probability of each generated token, and of end-of-text if it came,
            among the tokens that were allowed.
        finished: whether end-of-text came before the limit.
        no_speech_prob: probability of the no-speech token at the start of the transcript.
        text: the tokens as text, without special tokens and timestamps.
        acts: the requested activations, at every position of prompt and tokens.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool
    no_speech_prob: float
    text: str
    acts: DecoderActivations | None = None

    __repr__ = summary

    @property
    def mean_log_prob(self) -> float:
        """Sum of `log_probs` over `len(tokens) + 1`, as openai/whisper defines it."""
        return sum(self.log_probs) / (len(self.tokens) + 1)


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the next token is chosen.

    Attributes:
        suppress: leave out the tokens that the checkpoint's generation settings forbid.
        max_new_tokens: largest number of tokens; the decoder's context is a further limit.
        temperature: 0 takes the most probable token; above 0, tokens are drawn with
            `p ∝ exp(logits / temperature)`.
        seed: seed of the draws.
        beam_size: number of sequences kept at each step, as in openai/whisper; 1 is no search.
        fallback: `transcribe` generates timestamps, and decodes a window again at higher
            temperatures if its text compresses more than 2.4-fold or its mean log-probability is
            below -1, unless nobody speaks; of five samples at a temperature the likeliest is taken.
            Other functions refuse it.
    """

    suppress: bool = True
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    beam_size: int = 1
    fallback: bool = False

    def __post_init__(self):
        check_least(1, max_new_tokens=self.max_new_tokens, beam_size=self.beam_size)
        check_least(0, seed=self.seed)
        if not (self.temperature == 0 or _LEAST_TEMPERATURE <= self.temperature < float("inf")):
            raise InputError(
                f"The temperature is {self.temperature}: expected 0, or at least "
                f"{_LEAST_TEMPERATURE}."
            )
        if self.beam_size > 1 and self.temperature > 0:
            raise InputError("Beam search does not draw: give a temperature or a beam size.")

    def refuse_fallback(self) -> None:
        """Raise `InputError` where windows are not decoded again."""
        if self.fallback:
            raise InputError("A fallback decodes again what transcribe generates: call that.")


GREEDY = Choice()
