"""Every activation of a `transformers` Whisper, caught with forward hooks.

`Recorder` stores what goes into and comes out of modules; `encoder_sites` and `decoder_sites` name
it with the library's site names. Only what no module boundary shows is computed here: the GELU
after each convolution (with the model's own function), attention scores, and per-head results.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import gelu
from transformers import WhisperForConditionalGeneration

Acts = dict[str, torch.Tensor]


class Recorder:
    """First inputs and outputs of submodules in the last forward pass, batch removed.

    Records every submodule, or only those named.
    """

    def __init__(self, model: nn.Module, only: Collection[str] | None = None):
        self.inputs: Acts = {}
        self.outputs: Acts = {}
        self.patterns: Acts = {}
        for name, module in model.named_modules():
            if only is None or name in only:
                module.register_forward_hook(self._hook(name), with_kwargs=True)

    def _hook(self, name: str):
        def record(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            first = args[0] if args else kwargs.get("hidden_states")
            if isinstance(first, torch.Tensor):
                self.inputs[name] = first[0].detach()
            if isinstance(output, tuple):  # attention: (output, pattern)
                output, pattern = output
                self.patterns[name] = pattern[0].detach()
            if isinstance(output, torch.Tensor):
                self.outputs[name] = (output[0] if output.dim() == 3 else output).detach()

        return record


@contextmanager
def patch_input(module: nn.Module, position: int, value: torch.Tensor) -> Iterator[None]:
    """Replace row `position` of `module`'s first input (a residual stream) with `value`."""

    def replace(_module: nn.Module, args: tuple) -> tuple:
        stream = args[0].clone()
        stream[0, position] = value
        return (stream, *args[1:])

    handle = module.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def encoder_sites(model: WhisperForConditionalGeneration, seen: Recorder) -> Acts:
    """Encoder activations of the last forward pass, stacked over layers where they are in one."""
    encoder, root = model.model.encoder, "model.encoder"
    layers = []
    for index, layer in enumerate(encoder.layers):
        name = f"{root}.layers.{index}"
        acts = {"resid_pre": seen.inputs[name]}
        acts |= _attention_sites(layer.self_attn, f"{name}.self_attn", seen, "", causal=False)
        acts["resid_mid"] = seen.inputs[f"{name}.final_layer_norm"]
        acts |= _mlp_sites(name, seen)
        layers.append(acts)
    return {
        "conv1_out": seen.inputs[f"{root}.conv2"].T,
        "conv2_out": gelu(seen.outputs[f"{root}.conv2"]).T,
        "pos_embed": encoder.embed_positions.weight.detach(),
        **_stack(layers),
        "ln_final": seen.outputs[f"{root}.layer_norm"],
    }


def decoder_sites(model: WhisperForConditionalGeneration, seen: Recorder) -> Acts:
    """Decoder activations of the last forward pass, stacked over layers where they are in one."""
    decoder, root = model.model.decoder, "model.decoder"
    layers = []
    for index, layer in enumerate(decoder.layers):
        name = f"{root}.layers.{index}"
        acts = {"resid_pre": seen.inputs[name]}
        acts |= _attention_sites(layer.self_attn, f"{name}.self_attn", seen, "", causal=True)
        acts["resid_mid"] = seen.inputs[f"{name}.encoder_attn_layer_norm"]
        cross = f"{name}.encoder_attn"
        acts |= _attention_sites(layer.encoder_attn, cross, seen, "cross_", causal=False)
        acts["resid_mid_cross"] = seen.inputs[f"{name}.final_layer_norm"]
        acts |= _mlp_sites(name, seen)
        layers.append(acts)
    return {
        "embed": seen.outputs[f"{root}.embed_tokens"],
        "pos_embed": seen.outputs[f"{root}.embed_positions"],
        **_stack(layers),
        "ln_final": seen.outputs[f"{root}.layer_norm"],
        "logits": seen.outputs["proj_out"],
    }


def _attention_sites(
    attention: nn.Module, name: str, seen: Recorder, prefix: str, *, causal: bool
) -> Acts:
    """q, k, v, z [row, head, d_head], scores and pattern [head, query, key], result, attn_out."""
    heads, d_head = attention.num_heads, attention.head_dim
    q, k, v = (
        seen.outputs[f"{name}.{projection}"].unflatten(-1, (heads, d_head))
        for projection in ("q_proj", "k_proj", "v_proj")
    )
    z = seen.inputs[f"{name}.out_proj"].unflatten(-1, (heads, d_head))
    scores = torch.einsum("qhd,khd->hqk", q, k) / d_head**0.5
    if causal:
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    w_out = attention.out_proj.weight.unflatten(1, (heads, d_head))  # [d_model, head, d_head]
    return {
        f"{prefix}q": q,
        f"{prefix}k": k,
        f"{prefix}v": v,
        f"{prefix}z": z,
        f"{prefix}attn_scores": scores,
        f"{prefix}pattern": seen.patterns[name],
        f"{prefix}result": torch.einsum("qhd,mhd->qhm", z, w_out),
        f"{prefix}attn_out": seen.outputs[f"{name}.out_proj"],
    }


def _mlp_sites(name: str, seen: Recorder) -> Acts:
    return {
        "mlp_pre": seen.outputs[f"{name}.fc1"],
        "mlp_post": seen.inputs[f"{name}.fc2"],
        "mlp_out": seen.outputs[f"{name}.fc2"],
        "resid_post": seen.outputs[name],
    }


def _stack(layers: list[Acts]) -> Acts:
    return {site: torch.stack([acts[site] for acts in layers]) for site in layers[0]}
