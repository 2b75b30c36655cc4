"""The strongest hand-batched PyTorch: full decoder passes over many patched copies at once.

The cross-attention keys and values of the utterance are computed once and stay shared: all copies'
queries are folded into one query axis against them. Projections with a common input are fused,
attention is `scaled_dot_product_attention`, and one row of each copy is unembedded, all copies of
the sweep together. Every copy still runs through every layer and position.
"""

from collections.abc import Callable

import torch
from job import Inputs, Stopwatch, log_prob
from sites import Patch, Sweep, decoder_site, head_columns
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

# Called with layer, site and the activation [copy, pos, column], which it may overwrite.
Tap = Callable[[int, str, Tensor], None]
Project = Callable[[nn.Linear, Tensor], Tensor]
KeysValues = tuple[Tensor, Tensor]


def project_plainly(module: nn.Linear, x: Tensor) -> Tensor:
    """The affine map as PyTorch computes it: by MKL on a CPU."""
    return module(x)


def project_by_onednn(module: nn.Linear, x: Tensor) -> Tensor:
    """The same on a CPU by oneDNN, faster than MKL on some processors, through a private name."""
    linear = torch.ops.mkldnn._linear_pointwise
    return linear(x, module.weight, module.bias, "none", [], "")


def batched(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """Sweep single decoder positions, `sweep.batch` copies of the corrupted run at a time."""
    return _sweep(model, inputs, sweep, clock, project_plainly)


def batched_onednn(
    model: WhisperForConditionalGeneration, inputs: Inputs, sweep: Sweep, clock: Stopwatch
) -> list[float]:
    """As `batched`, with the decoder's projections by oneDNN; only on a CPU."""
    return _sweep(model, inputs, sweep, clock, project_by_onednn)


def _sweep(
    model: WhisperForConditionalGeneration,
    inputs: Inputs,
    sweep: Sweep,
    clock: Stopwatch,
    project: Project,
) -> list[float]:
    if sweep.stack != "decoder" or any(p.stop - p.start != 1 for p in sweep.patches):
        raise ValueError("batched methods patch single positions of the decoder")
    decoder_site(sweep.site)  # raises if there is none
    columns = head_columns(model, sweep)
    encoder, decoder = model.model.encoder, Decoder(model, project)
    with clock.part("encode"):
        clean_cross, cross = (
            decoder.cross_keys_values(encoder(mel).last_hidden_state)
            for mel in (inputs.clean_mel, inputs.corrupted_mel)
        )
    with clock.part("clean"):
        reader = Reader(sweep.site)
        decoder.last_rows(inputs.clean_tokens, 1, clean_cross, reader)
    with clock.part("sweep"):
        rows = []
        for patches in sweep.batches():
            writer = Writer(sweep.site, columns, patches, reader.seen)
            rows.append(decoder.last_rows(inputs.corrupted_tokens, len(patches), cross, writer))
        return log_prob(model.proj_out(torch.cat(rows)), inputs.token)


class Reader:
    """Keeps one site [pos, column] of every layer of a single copy."""

    def __init__(self, site: str):
        self.site = site
        self.seen: list[Tensor] = []

    def __call__(self, layer: int, site: str, value: Tensor) -> None:
        """Keep `value` if this is the site."""
        if site == self.site:
            self.seen.append(value[0].clone())


class Writer:
    """Writes patch i into copy i, all the patches of a layer at once."""

    def __init__(self, site: str, columns: slice, patches: list[Patch], clean: list[Tensor]):
        self.site = site
        self.columns = columns
        self.clean = clean
        self.chosen: dict[int, tuple[Tensor, ...]] = {}
        for layer in {patch.layer for patch in patches}:
            copies = [i for i, patch in enumerate(patches) if patch.layer == layer]
            positions = [patches[i].start for i in copies]
            chosen = torch.tensor([copies, positions], device=clean[0].device)
            self.chosen[layer] = chosen.unbind()

    def __call__(self, layer: int, site: str, value: Tensor) -> None:
        """Overwrite the patched rows of `value` if this is the site."""
        if site == self.site and layer in self.chosen:
            copies, positions = self.chosen[layer]
            value[copies, positions, self.columns] = self.clean[layer][positions, self.columns]


class Decoder:
    """A forward pass of its own over the weights of a `transformers` Whisper decoder."""

    def __init__(self, model: WhisperForConditionalGeneration, project: Project):
        decoder = model.model.decoder
        self.embed, self.positions = decoder.embed_tokens, decoder.embed_positions.weight
        self.norm = decoder.layer_norm
        self.blocks = [Block(layer, project) for layer in decoder.layers]

    def cross_keys_values(self, states: Tensor) -> list[KeysValues]:
        """Every layer's keys and values [1, head, frame, d_head] of one run's encoder states."""
        return [block.cross_keys_values(states) for block in self.blocks]

    def last_rows(self, tokens: Tensor, copies: int, cross: list[KeysValues], tap: Tap) -> Tensor:
        """Final hidden state [copy, d_model] of the last position, for copies of one run."""
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        x = x.repeat(copies, 1, 1)
        for layer, (block, keys_values) in enumerate(zip(self.blocks, cross, strict=True)):
            x = block(x, keys_values, layer, tap)
        return self.norm(x[:, -1])


class Block:
    """One decoder layer; the projections that share an input are one matrix."""

    def __init__(self, layer: WhisperDecoderLayer, project: Project):
        own, cross = layer.self_attn, layer.encoder_attn
        self.layer, self.project = layer, project
        self.heads = own.num_heads
        self.qkv = fuse(own.q_proj, own.k_proj, own.v_proj)
        self.cross_kv = fuse(cross.k_proj, cross.v_proj)

    def cross_keys_values(self, states: Tensor) -> KeysValues:
        """Keys and values [1, head, frame, d_head] of the encoder's states."""
        both = self.project(self.cross_kv, states).unflatten(-1, (2, self.heads, -1))
        k, v = both.permute(2, 0, 3, 1, 4).contiguous()
        return k, v

    def __call__(self, x: Tensor, keys_values: KeysValues, layer: int, tap: Tap) -> Tensor:
        """The residual stream [copy, pos, d_model] after this layer."""
        weights, project = self.layer, self.project
        tap(layer, "resid_pre", x)

        z = self._attend_to_itself(weights.self_attn_layer_norm(x))
        tap(layer, "z", z)
        out = project(weights.self_attn.out_proj, z)
        tap(layer, "attn_out", out)
        x = x + out
        tap(layer, "resid_mid", x)

        z = self._attend_to_audio(weights.encoder_attn_layer_norm(x), *keys_values)
        tap(layer, "cross_z", z)
        out = project(weights.encoder_attn.out_proj, z)
        tap(layer, "cross_attn_out", out)
        x = x + out
        tap(layer, "resid_mid_cross", x)

        out = project(weights.fc2, gelu(project(weights.fc1, weights.final_layer_norm(x))))
        tap(layer, "mlp_out", out)
        return x + out

    def _attend_to_itself(self, x: Tensor) -> Tensor:
        qkv = self.project(self.qkv, x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        z = scaled_dot_product_attention(q, k, v, is_causal=True)
        return z.transpose(1, 2).reshape(x.shape)

    def _attend_to_audio(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self.project(self.layer.encoder_attn.q_proj, x)
        rows = q.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        z = scaled_dot_product_attention(rows[None], k, v)
        return z[0].transpose(0, 1).reshape(x.shape)


def fuse(*projections: nn.Linear) -> nn.Linear:
    """One projection to the outputs of all; where one has no bias (keys), zeros."""
    weights = [projection.weight for projection in projections]
    biases = [
        weight.new_zeros(len(weight)) if projection.bias is None else projection.bias
        for projection, weight in zip(projections, weights, strict=True)
    ]
    fused = nn.Linear(weights[0].shape[1], sum(map(len, weights)), device="meta")
    fused.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return fused
