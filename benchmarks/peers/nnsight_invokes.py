"""nnsight: one trace a batch, one invoke a patch, as its documentation batches interventions.

Whisper takes spectrograms, which nnsight's own wrapper refuses to batch, so this one says how to
batch the decoder's tokens. To give nnsight its best, the encoder runs once, cross-attention reads
keys and values computed once through the cache of `transformers`, and one row a patch is
unembedded.
"""

from typing import Any

import torch
from job import Inputs, Stopwatch, log_prob
from nnsight import NNsight
from sites import Patch, Sweep, decoder_site, head_columns
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput


def nnsight_invokes(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """Sweep decoder cells, `sweep.batch` invokes a trace."""
    if sweep.stack != "decoder":
        raise ValueError("nnsight patches the decoder here")
    path, end = decoder_site(sweep.site)
    traced = _Whisper(model.model)
    layers = [layer.get(path) if path else layer for layer in traced.decoder.layers]
    columns = head_columns(model, sweep)

    with clock.part("encode"):
        clean_states = model.model.encoder(inputs.clean_mel)
        states = model.model.encoder(inputs.corrupted_mel)
        keys_values = _cross_keys_values(model, states.last_hidden_state)

    def read_clean() -> list[Tensor]:
        clean_run = {"encoder_outputs": clean_states, "use_cache": False}
        with traced.trace(decoder_input_ids=inputs.clean_tokens, **clean_run):
            seen = [getattr(layer, end) for layer in layers].save()
        return seen

    def sweep_batch(patches: list[Patch]) -> Tensor:
        shared = _shared_by(len(patches), states.last_hidden_state, keys_values)
        with traced.trace(**shared) as tracer:
            rows = [].save()
            for patch in patches:
                with tracer.invoke(decoder_input_ids=inputs.corrupted_tokens):
                    value = getattr(layers[patch.layer], end)
                    at = slice(patch.start, patch.stop)
                    value[0, at, columns] = clean[patch.layer][0, at, columns]
                    rows.append(traced.output.last_hidden_state[0, -1])
        return torch.stack(rows)

    with clock.part("clean"):
        clean = read_clean()
    values = []
    with clock.part("sweep"):
        for patches in sweep.batches():
            values += log_prob(model.proj_out(sweep_batch(patches)), inputs.token)
    return values


class _Whisper(NNsight):
    """Tells nnsight to stack the invokes' tokens; what else the trace is given is for all."""

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return len(kwargs.get("decoder_input_ids", ()))

    def _batch(self, invokes: list[tuple], fn: Any) -> tuple:
        tokens = torch.cat([kwargs["decoder_input_ids"] for _, kwargs in invokes])
        return (), {**invokes[0][1], "decoder_input_ids": tokens}


def _cross_keys_values(
    model: WhisperForConditionalGeneration, states: Tensor
) -> list[tuple[Tensor, Tensor]]:
    layers = [layer.encoder_attn for layer in model.model.decoder.layers]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layers[0].num_heads, -1)).transpose(1, 2).contiguous()

    return [(split(layer.k_proj(states)), split(layer.v_proj(states))) for layer in layers]


def _shared_by(
    copies: int, states: Tensor, keys_values: list[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """What a traced batch is given besides tokens: views of one utterance, copying nothing."""
    cross = DynamicCache()
    for k, v in keys_values:
        layer = DynamicLayer()
        layer.lazy_initialization(k, v)
        # DynamicLayer.update would copy the expanded views.
        layer.keys, layer.values = (x.expand(copies, -1, -1, -1) for x in (k, v))
        cross.layers.append(layer)
    return {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states.expand(copies, -1, -1)),
        "past_key_values": EncoderDecoderCache(DynamicCache(), cross),
        "use_cache": True,
    }
