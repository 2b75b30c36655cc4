"""Encoder windows batched by hand: copies of the corrupted run, each patched by its own hook."""

from job import Inputs, Stopwatch, log_prob
from sites import Sweep, locate, patching, reading
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput


def encoder_hooks_batched(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """Every patched copy runs through the whole encoder, then through the decoder."""
    if sweep.stack != "encoder":
        raise ValueError("encoder_hooks_batched patches windows of the encoder")
    place = locate(model, sweep)
    with clock.part("encode"), reading(place) as clean:
        model.model.encoder(inputs.clean_mel)
    values = []
    with clock.part("sweep"):
        for patches in sweep.batches():
            mel = inputs.corrupted_mel.expand(len(patches), -1, -1)
            with patching(place, patches, clean):
                states = model.model.encoder(mel).last_hidden_state
            values += _decode(model, inputs, states)
    return values


def encoder_output_windows(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """Windows of the encoder's output, which is shared; cross K/V and decoder run for each."""
    if (sweep.stack, sweep.site) != ("encoder", "ln_final"):
        raise ValueError("encoder_output_windows patches windows of the encoder's ln_final")
    with clock.part("encode"):
        clean = model.model.encoder(inputs.clean_mel).last_hidden_state[0]
        corrupted = model.model.encoder(inputs.corrupted_mel).last_hidden_state
    values = []
    with clock.part("sweep"):
        for patches in sweep.batches():
            states = corrupted.repeat(len(patches), 1, 1)
            for example, patch in zip(states, patches, strict=True):
                example[patch.start : patch.stop] = clean[patch.start : patch.stop]
            values += _decode(model, inputs, states)
    return values


def _decode(model: WhisperForConditionalGeneration, inputs: Inputs, states: Tensor) -> list[float]:
    """The metric of each example, unembedding one row of each."""
    hidden = model.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=inputs.corrupted_tokens.expand(len(states), -1),
        use_cache=False,
    ).last_hidden_state
    return log_prob(model.proj_out(hidden[:, -1]), inputs.token)
