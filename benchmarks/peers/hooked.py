"""Patching by forward hooks, one forward pass a patch: how hook libraries sweep."""

from job import Inputs, Stopwatch, log_prob
from sites import Sweep, locate, patching, reading
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput


def hooks_model(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """Encoder and decoder run anew for every patch."""
    place = locate(model, sweep)
    with clock.part("clean"), reading(place) as clean:
        model(inputs.clean_mel, decoder_input_ids=inputs.clean_tokens, use_cache=False)
    values = []
    with clock.part("sweep"):
        for patch in sweep.patches:
            with patching(place, [patch], clean):
                logits = model(
                    inputs.corrupted_mel,
                    decoder_input_ids=inputs.corrupted_tokens,
                    use_cache=False,
                ).logits
            values += log_prob(logits[:, -1], inputs.token)
    return values


def hooks_decoder(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """The encoder runs once for each run, the decoder for every patch."""
    if sweep.stack != "decoder":
        raise ValueError("hooks_decoder patches the decoder: use hooks_model for the encoder")
    place = locate(model, sweep)
    with clock.part("encode"):
        clean_states = model.model.encoder(inputs.clean_mel)
        states = model.model.encoder(inputs.corrupted_mel)

    def decode(tokens: Tensor, encoded: BaseModelOutput) -> Tensor:
        return model(encoder_outputs=encoded, decoder_input_ids=tokens, use_cache=False).logits

    with clock.part("clean"), reading(place) as clean:
        decode(inputs.clean_tokens, clean_states)
    values = []
    with clock.part("sweep"):
        for patch in sweep.patches:
            with patching(place, [patch], clean):
                logits = decode(inputs.corrupted_tokens, states)
            values += log_prob(logits[:, -1], inputs.token)
    return values
