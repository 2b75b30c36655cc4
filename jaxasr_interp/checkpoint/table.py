"""The table between a checkpoint's names of the parameters and ours."""

import dataclasses
from collections.abc import Iterator

from jaxasr_interp.model.config import WhisperConfig


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter: our path and the checkpoint's name, with `{layer}` for stacked ones."""

    path: str
    name: str
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the checkpoint holds one tensor for each layer."""
        return "{layer}" in self.name


def _linear(path: str, name: str, bias: bool = True) -> Iterator[Rule]:
    yield Rule(f"{path}.kernel", f"{name}.weight", transposed=True)
    if bias:
        yield Rule(f"{path}.bias", f"{name}.bias")


def _norm(path: str, name: str) -> Iterator[Rule]:
    yield Rule(f"{path}.scale", f"{name}.weight")
    yield Rule(f"{path}.bias", f"{name}.bias")


def _attention(path: str, name: str) -> Iterator[Rule]:
    yield from _linear(f"{path}.query", f"{name}.q_proj")
    yield from _linear(f"{path}.key", f"{name}.k_proj", bias=False)
    yield from _linear(f"{path}.value", f"{name}.v_proj")
    yield from _linear(f"{path}.out", f"{name}.out_proj")


def _stack(stack: str) -> Iterator[Rule]:
    blocks, layers = f"{stack}.blocks", f"model.{stack}.layers.{{layer}}"
    yield from _norm(f"{blocks}.attn_norm", f"{layers}.self_attn_layer_norm")
    yield from _attention(f"{blocks}.attn", f"{layers}.self_attn")
    yield from _norm(f"{blocks}.mlp_norm", f"{layers}.final_layer_norm")
    yield from _linear(f"{blocks}.mlp.up", f"{layers}.fc1")
    yield from _linear(f"{blocks}.mlp.down", f"{layers}.fc2")
    yield Rule(f"{stack}.pos_embed", f"model.{stack}.embed_positions.weight")
    yield from _norm(f"{stack}.final_norm", f"model.{stack}.layer_norm")


def _table() -> Iterator[Rule]:
    yield from _linear("encoder.conv1", "model.encoder.conv1")
    yield from _linear("encoder.conv2", "model.encoder.conv2")
    yield from _stack("encoder")
    yield Rule("decoder.embed", "model.decoder.embed_tokens.weight")
    yield from _stack("decoder")
    cross = "model.decoder.layers.{layer}"
    yield from _norm("decoder.blocks.cross_norm", f"{cross}.encoder_attn_layer_norm")
    yield from _attention("decoder.blocks.cross_attn", f"{cross}.encoder_attn")


TABLE = tuple(_table())
TIED = "proj_out.weight"


def names_of(rule: Rule, config: WhisperConfig) -> list[str]:
    """Return the names of the tensors that fill one parameter, those of all layers in order."""
    if not rule.stacked:
        return [rule.name]
    layers = config.encoder_layers if rule.path.startswith("encoder") else config.decoder_layers
    return [rule.name.format(layer=layer) for layer in range(layers)]


def shape_of_one(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that one tensor of the checkpoint has, from that of our parameter."""
    shape = shape[1:] if rule.stacked else shape
    return shape[::-1] if rule.transposed else shape
