"""Greedy decoding of a `transformers` Whisper, one token at a time with its key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

MAX_NEW_TOKENS = 224


@dataclass
class Decoded:
    """A greedy transcript.

    `tokens` are the generated ids without the prompt, with the end of text if it was produced;
    `log_prob` sums their log-probabilities (end of text included); `gaps` are the differences of
    the two largest logits, one a step; `first_logits` [prompt, d_vocab] are those of the prompt.
    """

    first_logits: torch.Tensor
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def close(self, below: float = 1e-2) -> dict[str, float]:
        """Steps, by their index in `tokens`, whose two best logits are nearer than `below`."""
        return {str(i): gap for i, gap in enumerate(self.gaps) if gap < below}


@torch.no_grad()
def encode(model: WhisperForConditionalGeneration, mel: torch.Tensor) -> torch.Tensor:
    """Encoder states [1, frame, d_model], after the final LayerNorm."""
    return model.model.encoder(mel).last_hidden_state


@torch.no_grad()
def prompt_logits(
    model: WhisperForConditionalGeneration, states: torch.Tensor, prompt: Sequence[int]
) -> torch.Tensor:
    """Logits [prompt, d_vocab] after each token of `prompt`."""
    encoded = BaseModelOutput(last_hidden_state=states)
    tokens = torch.tensor([list(prompt)])
    return model(encoder_outputs=encoded, decoder_input_ids=tokens, use_cache=False).logits[0]


@torch.no_grad()
def greedy(
    model: WhisperForConditionalGeneration,
    states: torch.Tensor,
    prompt: Sequence[int],
    *,
    suppress: Sequence[int] = (),
    suppress_first: Sequence[int] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Decoded:
    """Take the largest logit until the end of text or `max_new_tokens` tokens.

    Logits of `suppress` are -inf at every step and those of `suppress_first` at the first one;
    log-probabilities and gaps are those after suppression.
    """
    encoded = BaseModelOutput(last_hidden_state=states)
    cache, inputs, decoded = None, list(prompt), None
    for step in range(max_new_tokens):
        out = model(
            encoder_outputs=encoded,
            decoder_input_ids=torch.tensor([inputs]),
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        if decoded is None:
            decoded = Decoded(first_logits=out.logits[0].clone())
        logits = out.logits[0, -1].clone()
        logits[list(suppress)] = -torch.inf
        if step == 0:
            logits[list(suppress_first)] = -torch.inf
        best = logits.topk(2)
        token = int(best.indices[0])
        decoded.tokens.append(token)
        decoded.gaps.append(float(best.values[0] - best.values[1]))
        decoded.log_prob += float(logits.log_softmax(-1)[token])
        if token == model.config.eos_token_id:
            break
        inputs = [token]
    return decoded
