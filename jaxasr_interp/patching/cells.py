"""The grid of a sweep's patches: its cells, and the place where each patch acts."""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.sites import Stack, counts_frames
from jaxasr_interp.pytree import pytree_dataclass
from jaxasr_interp.speech.positions import Window

type Component = tuple[str, int | None]


@pytree_dataclass
class Cells:
    """The place and the strength of each patch of a chunk.

    Attributes:
        layer: layer of each patch.
        head: head of each patch, -1 for all heads.
        start: first position of each patch.
        stop: position after the last one of each patch.
        alpha: strength of each patch.
    """

    layer: Int[Array, " patch"]
    head: Int[Array, " patch"]
    start: Int[Array, " patch"]
    stop: Int[Array, " patch"]
    alpha: Float[Array, " patch"]


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """One patch for every strength × component × layer × window of positions.

    Attributes:
        config: sizes of the model.
        stack: which stack is patched.
        components: (site, head) pairs, patched one at a time; head `None` is the whole site.
        layers: layers that are patched, one at a time; `(None,)` for sites outside the layers.
        windows: (start, stop) positions that are patched together, one window at a time: tokens of
            the decoder; encoder frames for encoder sites, `cross_k` and `cross_v`.
        alphas: strengths.
        n_tokens: tokens of the run that is patched.
        memory: bytes that a sweep may use in addition to the model.
        reads: number of positions whose logits the metrics read.
        dtype: dtype of the model.
        platform: kind of the devices that run the sweep: `"cpu"`, `"gpu"` or `"tpu"`; the chunks
            depend on it.
        only: numbers of the cells to run, in the order of `cells`; `None` for all. The others are
            NaN in the result.
    """

    config: WhisperConfig
    stack: Stack
    components: tuple[Component, ...]
    layers: tuple[int | None, ...]
    windows: tuple[Window, ...]
    alphas: tuple[float, ...]
    n_tokens: int
    memory: int
    reads: int = 1
    dtype: str = "float32"
    platform: str = dataclasses.field(default_factory=lambda: jax.default_backend())
    only: tuple[int, ...] | None = None

    @property
    def axes(self) -> dict[str, int]:
        """Names and sizes of the result's axes; `alpha` and `component` only if there are several.

        Sites outside the layers have no `layer` axis.
        """
        axes = {}
        if len(self.alphas) > 1:
            axes["alpha"] = len(self.alphas)
        if len(self.components) > 1:
            axes["component"] = len(self.components)
        if self.layers != (None,):
            axes["layer"] = len(self.layers)
        return axes | {"pos": len(self.windows)}

    @property
    def runs(self) -> int:
        """Number of patches."""
        return self.size if self.only is None else len(self.only)

    @property
    def size(self) -> int:
        """Number of cells in the grid."""
        return math.prod(self.axes.values())

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of the components, each once."""
        return tuple(dict.fromkeys(site for site, _ in self.components))

    @property
    def positions(self) -> tuple[int, ...]:
        """First position of each window."""
        return tuple(start for start, _ in self.windows)

    @property
    def counts_frames(self) -> bool:
        """Whether positions are encoder frames rather than decoder tokens."""
        return counts_frames(self.stack, self.sites[0])

    @property
    def component_names(self) -> tuple[str, ...]:
        """Components as `site` or `site.head`."""
        return tuple(site if head is None else f"{site}.{head}" for site, head in self.components)

    def cells(self) -> dict[str, np.ndarray]:
        """List `alpha, component, layer, head, start, stop` of patches, in the result's order."""
        grid = np.indices(
            (len(self.alphas), len(self.components), len(self.layers), len(self.windows))
        ).reshape(4, -1)
        heads = [-1 if head is None else head for _, head in self.components]
        windows = np.array(self.windows, np.int32)[grid[3]]
        layers = [0 if layer is None else layer for layer in self.layers]
        return {
            "alpha": np.array(self.alphas)[grid[0]],
            "component": grid[1],
            "layer": np.array(layers, np.int32)[grid[2]],
            "head": np.array(heads, np.int32)[grid[1]],
            "start": windows[:, 0],
            "stop": windows[:, 1],
        }
