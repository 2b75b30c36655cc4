"""The sizes of a checkpoint's tensors, which are compared with its config before any is read."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jaxasr_interp.checkpoint.stored import Tensors
from jaxasr_interp.checkpoint.table import Rule
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig

type Shapes = Mapping[str, tuple[int, ...]]

_AXES = {
    "n_mels": ("encoder.conv1.kernel", 1, 3),
    "d_vocab": ("decoder.embed", 0, 2),
    "d_model": ("decoder.embed", 1, 2),
    "encoder_layers": ("encoder.blocks.attn_norm.scale", 0, 2),
    "decoder_layers": ("decoder.blocks.attn_norm.scale", 0, 2),
    "encoder_d_mlp": ("encoder.blocks.mlp.up.kernel", 2, 3),
    "decoder_d_mlp": ("decoder.blocks.mlp.up.kernel", 2, 3),
    "max_frames": ("encoder.pos_embed", 0, 2),
    "max_tokens": ("decoder.pos_embed", 0, 2),
}
"""The parameter, its axis and its number of axes that tell each size."""


def stored_sizes(tensors: Tensors, table: Sequence[Rule], origin: str) -> dict[str, int]:
    """Return the sizes of a checkpoint; see `sizes`.

    Args:
        tensors: of the checkpoint, by name.
        table: the names of the checkpoint.
        origin: name of the checkpoint in errors.
    """
    shapes = {}
    for rule in table:
        first = rule.name.format(layer=0)
        if first in tensors:
            shape = tensors[first].shape
            shape = shape[::-1] if rule.transposed else shape
            layers = itertools.takewhile(
                lambda layer, name=rule.name: name.format(layer=layer) in tensors, itertools.count()
            )
            shapes[rule.path] = (sum(1 for _ in layers), *shape) if rule.stacked else shape
    return sizes(shapes, origin, {rule.path: rule.name.format(layer=0) for rule in table})


def sizes(
    shapes: Shapes, origin: str, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, int]:
    """Return every size of a model but its numbers of heads.

    Args:
        shapes: of the parameters, by path.
        origin: name of the checkpoint in errors.
        names: what the checkpoint calls the parameters, by path.

    Raises:
        InputError: the parameters that tell a size are missing, or have other numbers of axes.
    """
    found = {}
    for size, (path, axis, axes) in _AXES.items():
        if len(shapes.get(path, ())) != axes:
            raise InputError(
                f"{origin} does not tell {size}: missing {names.get(path, path)} with {axes} axes."
            )
        found[size] = shapes[path][axis]
    return found


def check_sizes(config: WhisperConfig, found: Mapping[str, int], origin: str) -> None:
    """Raise `InputError` if a config has other sizes than the parameters, which are in `found`."""
    stated = dataclasses.asdict(config)
    other = [f"{k} {stated[k]} (it holds {n})" for k, n in found.items() if stated[k] != n]
    if other:
        raise InputError(f"{origin} does not fit its config, which says {', '.join(other)}.")
