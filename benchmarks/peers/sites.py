"""Where TransformerLens's site names are in a `transformers` Whisper, read and written by hooks.

Every site is the first input or the output of a submodule, and is written *in place*: a residual
stream is both the input of the LayerNorm that hooks can see and the branch around it that they
cannot, and one write must reach both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

End = Literal["input", "output"]

# The submodule inside one layer ("" is the layer itself), and which end of it.
DECODER: dict[str, tuple[str, End]] = {
    "resid_pre": ("", "input"),
    "z": ("self_attn.out_proj", "input"),
    "attn_out": ("self_attn.out_proj", "output"),
    "resid_mid": ("encoder_attn_layer_norm", "input"),
    "cross_z": ("encoder_attn.out_proj", "input"),
    "cross_attn_out": ("encoder_attn.out_proj", "output"),
    "resid_mid_cross": ("final_layer_norm", "input"),
    "mlp_out": ("fc2", "output"),
}
HEAD_SITES = ("z", "cross_z")


@dataclass(frozen=True)
class Patch:
    """Rows `start:stop` (tokens or encoder frames) of one layer, taken from the clean run."""

    layer: int
    start: int
    stop: int


@dataclass(frozen=True)
class Sweep:
    """Patches of one site, each in a run of its own.

    `head` narrows the sites that have heads to one; `ln_final` of the encoder has one layer, 0.
    """

    stack: Literal["decoder", "encoder"]
    site: str
    patches: list[Patch]
    head: int | None = None
    batch: int = 1

    def batches(self) -> list[list[Patch]]:
        """The patches in order, `batch` at a time."""
        starts = range(0, len(self.patches), self.batch)
        return [self.patches[start : start + self.batch] for start in starts]


@dataclass(frozen=True)
class Place:
    """One site of a loaded model: a module for every layer, the end, and the head's columns."""

    modules: list[nn.Module]
    end: End
    columns: slice


def locate(model: WhisperForConditionalGeneration, sweep: Sweep) -> Place:
    """Find the site of `sweep` in `model`."""
    if sweep.stack == "encoder":
        encoder = model.model.encoder
        if sweep.site == "ln_final":
            return Place([encoder.layer_norm], "output", slice(None))
        if sweep.site == "resid_pre":
            return Place(list(encoder.layers), "input", slice(None))
        raise ValueError(f"no encoder site {sweep.site!r}: choose 'resid_pre' or 'ln_final'")
    path, end = decoder_site(sweep.site)
    modules = [layer.get_submodule(path) for layer in model.model.decoder.layers]
    return Place(modules, end, head_columns(model, sweep))


def decoder_site(site: str) -> tuple[str, End]:
    """Submodule and end of a decoder site."""
    if site not in DECODER:
        raise ValueError(f"no decoder site {site!r}: choose one of {', '.join(DECODER)}")
    return DECODER[site]


def head_columns(model: WhisperForConditionalGeneration, sweep: Sweep) -> slice:
    """The columns that belong to the sweep's head, or all of them."""
    if sweep.head is None:
        return slice(None)
    if sweep.site not in HEAD_SITES:
        raise ValueError(f"{sweep.site!r} has no heads: choose one of {', '.join(HEAD_SITES)}")
    size = model.config.d_model // model.config.decoder_attention_heads
    return slice(sweep.head * size, (sweep.head + 1) * size)


@contextmanager
def reading(place: Place) -> Iterator[list[Tensor]]:
    """Collect the site [batch, row, column] of every layer that runs inside the context."""
    seen: list[Tensor] = []
    handles = [_hook(module, place.end, seen.append) for module in place.modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patching(place: Place, patches: list[Patch], clean: list[Tensor]) -> Iterator[None]:
    """Write patch i of `patches` into example i of the batch that runs inside the context."""

    def write(example: int, patch: Patch) -> Callable[[Tensor], None]:
        rows = slice(patch.start, patch.stop)

        def replace(value: Tensor) -> None:
            value[example, rows, place.columns] = clean[patch.layer][0, rows, place.columns]

        return replace

    handles = [
        _hook(place.modules[patch.layer], place.end, write(example, patch))
        for example, patch in enumerate(patches)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def zeroing(
    model: WhisperForConditionalGeneration, site: str, layer: int, head: int
) -> Iterator[None]:
    """Zero one head of a decoder layer, at every position that runs inside the context."""
    place = locate(model, Sweep("decoder", site, [], head))

    def zero(value: Tensor) -> None:
        value[..., place.columns] = 0

    handle = _hook(place.modules[layer], place.end, zero)
    try:
        yield
    finally:
        handle.remove()


def _hook(
    module: nn.Module, end: End, use: Callable[[Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    if end == "input":
        return module.register_forward_pre_hook(lambda _module, args: use(args[0]))
    return module.register_forward_hook(lambda _module, _args, output: use(output))
