"""The plan of a sweep, and its cost, which is known before anything runs."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching import cost
from jaxasr_interp.patching.cells import PatchGrid
from jaxasr_interp.patching.chunks import Chunk, make_chunks
from jaxasr_interp.patching.engine.inject import entry_layer
from jaxasr_interp.patching.memory import sweep_bytes
from jaxasr_interp.patching.metrics import MetricLike, MetricPositions, as_metrics
from jaxasr_interp.pytree import summary

_EFFICIENCY = 0.75
"""The share of a large matrix product's rate that sweeps reach."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated cost of a sweep. Its text is one line.

    Attributes:
        flops: FLOPs of the sweep, and of the two runs that it starts from.
        bytes: largest memory in addition to the model.
        chunks: number of chunks in which the patches run.
        rate: measured FLOP/s of a large matrix product on this device.
        seconds: time on this device, without compilation.
    """

    flops: int
    bytes: int
    chunks: int
    rate: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"about {self.seconds:.1f} s on this {jax.default_backend().upper()}, whose matrix "
            f"products do {_si(self.rate)}FLOP/s"
        )


@dataclasses.dataclass(frozen=True)
class SweepPlan(PatchGrid):
    """The grid of a sweep and its cost. Print it to see both; see `plan_sweep`."""

    __repr__ = summary

    def select(self, cells: Sequence[int] | Int[np.ndarray, " cell"]) -> "SweepPlan":
        """Make a plan of some cells only, by their numbers in the order of `cells`.

        Raises:
            InputError: there are no cells, one is named twice, or one is outside the grid.
        """
        chosen = tuple(int(cell) for cell in cells)
        outside = [cell for cell in chosen if not 0 <= cell < self.size]
        if not chosen or outside or len(set(chosen)) < len(chosen):
            raise InputError(
                f"The chosen cells are {list(chosen)}: expected numbers below {self.size}, each "
                "once."
            )
        return dataclasses.replace(self, only=chosen)

    def chunks(self, method: str = "minimal", utterances: int = 1) -> list[Chunk]:
        """Group the patches into chunks that fit the memory.

        Raises:
            InputError: the memory is too small for a single patch.
        """
        return make_chunks(self, method, utterances)

    @functools.cached_property
    def flops(self) -> int:
        """FLOPs of the sweep by the minimal method, without the two runs that it starts from."""
        cells = self.cells()
        names = ("component", "layer", "start", "stop")
        rows = np.stack([cells[name] for name in names], axis=1)
        return sum(
            self._cell_flops(self.components[component][0], layer, start, stop)
            for component, layer, start, stop in rows[list(self.only or range(self.size))].tolist()
        )

    @property
    def naive_flops(self) -> int:
        """FLOPs of one whole run, encoder included, for every patch."""
        return self.runs * cost.run_flops(self.config, self.n_tokens)

    def _cell_flops(self, site: str, layer: int, start: int, stop: int) -> int:
        rows, entry = stop - start, entry_layer(site, layer)
        if self.stack == "encoder":
            if site == "ln_final":
                return cost.states_window_flops(self.config, self.n_tokens, rows, self.reads)
            injecting = rows * cost.encoder_row(self.config) if entry > layer else 0
            return injecting + cost.encoder_suffix_flops(
                self.config, self.n_tokens, entry, rows, self.reads
            )
        if self.counts_frames:
            start, rows = 0, self.n_tokens
        injecting = rows * cost.decoder_row(self.config) if entry > layer else 0
        return injecting + cost.decoder_suffix_flops(
            self.config, self.n_tokens, entry, start, rows, self.reads
        )

    def estimate(self, metric: MetricLike | Sequence[MetricLike]) -> Estimate:
        """Estimate the cost of the sweep on this device, by timing one large matrix product.

        Args:
            metric: metrics of the sweep, which name the positions that are read.
        """
        n_read = MetricPositions.of(as_metrics(metric), self.n_tokens).count
        plan = dataclasses.replace(self, reads=n_read)
        flops, rate = plan.flops + plan._base_flops, cost.matmul_rate(self.dtype)
        chunks = plan.chunks()
        seconds = flops / rate / _EFFICIENCY
        return Estimate(flops, sweep_bytes(plan, chunks), len(chunks), rate, seconds)

    @property
    def _base_flops(self) -> int:
        """FLOPs of the encoder in the two runs that a sweep starts from."""
        return 2 * (cost.encoder_flops(self.config) + cost.cross_flops(self.config))

    @property
    def grid_text(self) -> str:
        """The sizes of the grid's axes, as text."""
        sizes = {"alpha": "strengths", "component": "components", "layer": "layers"}
        sizes["pos"] = "positions" if all(b - a == 1 for a, b in self.windows) else "windows"
        grid = " × ".join(f"{size} {sizes[name]}" for name, size in self.axes.items())
        return f"{grid} = {self.runs} patched runs of {self.n_tokens} tokens"

    def __str__(self) -> str:
        programs, chunks = 5 + len(self.sites), self.chunks()
        taken = _si(sweep_bytes(self, chunks))
        return (
            f"sweep of {self.stack} {', '.join(self.component_names)}: {self.grid_text}\n"
            f"  {_si(self.flops)}FLOP, and {_si(self._base_flops)}FLOP for the two runs it starts "
            f"from; one whole run per patch takes {_si(self.naive_flops)}FLOP\n"
            f"  {len(chunks)} chunks in {taken}B of {_si(self.memory)}B, about "
            f"{programs} compiled programs"
        )


def _si(number: float | int) -> str:
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number / 1e3:.3g} k"
