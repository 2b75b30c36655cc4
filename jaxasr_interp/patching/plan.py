"""What a sweep will do, known before anything runs."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxasr_interp.config import WhisperConfig
from jaxasr_interp.errors import InputError
from jaxasr_interp.forward import check_tokens
from jaxasr_interp.model import Whisper
from jaxasr_interp.sites import SITES, check_site

_DEFAULT_MEMORY = 1 << 30


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """One patch at every chosen (layer, position) of one decoder site.

    Attributes:
        site: where the patch writes.
        layers: layers that are patched, one at a time.
        positions: token positions that are patched, one at a time.
        n_tokens: length of both runs.
        chunk_size: patches that run together.
        flops: multiply-adds of the patched decoder runs, counted twice.
        bytes_per_run: peak memory that one more patch in a chunk takes.
    """

    site: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    n_tokens: int
    chunk_size: int
    flops: int
    bytes_per_run: int

    @property
    def runs(self) -> int:
        """Number of patches."""
        return len(self.layers) * len(self.positions)

    def chunks(self) -> Iterator[Int[np.ndarray, "patch 2"]]:
        """The (layer, position) cells in order, `chunk_size` at a time.

        The last chunk is filled by repeating its last cell, so that all have one shape.
        """
        cells = np.array([(lay, pos) for lay in self.layers for pos in self.positions], np.int32)
        for start in range(0, len(cells), self.chunk_size):
            chunk = cells[start : start + self.chunk_size]
            yield np.pad(chunk, ((0, self.chunk_size - len(chunk)), (0, 0)), mode="edge")

    def __str__(self) -> str:
        n_chunks = math.ceil(self.runs / self.chunk_size)
        return (
            f"sweep of decoder {self.site}: {len(self.layers)} layers × {len(self.positions)} "
            f"positions = {self.runs} patched runs of {self.n_tokens} tokens\n"
            f"  {self.flops / 1e9:.1f} GFLOP in {n_chunks} chunks of {self.chunk_size} "
            f"({self.chunk_size * self.bytes_per_run / 1e6:.0f} MB), one compiled program"
        )


def plan_sweep(
    model: Whisper,
    *,
    tokens: Int[Array, " pos"] | Sequence[int] | np.ndarray,
    stack: str = "decoder",
    site: str = "resid_pre",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    memory: int | None = None,
) -> SweepPlan:
    """Plan a patching sweep.

    Args:
        model: the model to sweep.
        tokens: the tokens of either run (both have the same length).
        stack: `"decoder"`.
        site: a decoder site with axes `layer, pos, ...`.
        layers: which layers, all by default; negative ones count from the end.
        positions: which positions, all by default; negative ones count from the end.
        memory: bytes that the patched runs may take; by default a quarter of the device's memory
            where it reports any, else 1 GiB.

    Returns:
        The plan; print it to see what it will cost.

    Raises:
        InputError: an unknown site, one without a position axis, an empty or impossible set of
            layers or positions, or a budget too small for one run.
    """
    check_site(stack, site)
    if stack != "decoder" or SITES[stack][site][:2] != ("layer", "pos"):
        sweepable = [
            name for name, axes in SITES["decoder"].items() if axes[:2] == ("layer", "pos")
        ]
        raise InputError(
            f"Sweeps patch decoder sites with axes layer and pos, not {stack} {site!r}: choose "
            f"one of {', '.join(sweepable)}."
        )
    n_tokens = len(check_tokens(model.config, tokens))
    chosen_layers = _indices("layer", layers, model.config.decoder_layers)
    chosen_positions = _indices("position", positions, n_tokens)
    runs = len(chosen_layers) * len(chosen_positions)
    bytes_per_run = _bytes_per_run(model.config, n_tokens)
    budget = _default_memory() if memory is None else memory
    if budget < bytes_per_run:
        raise InputError(f"A memory budget of {budget} bytes is below one run's {bytes_per_run}.")
    return SweepPlan(
        site=site,
        layers=chosen_layers,
        positions=chosen_positions,
        n_tokens=n_tokens,
        chunk_size=min(runs, budget // bytes_per_run),
        flops=runs * decoder_flops(model.config, n_tokens),
        bytes_per_run=bytes_per_run,
    )


def decoder_flops(config: WhisperConfig, n_tokens: int) -> int:
    """FLOPs of one decoder run up to the last residual stream, given cross keys and values.

    Counted as twice the multiply-adds of matrix products and attention dots.
    """
    d, d_mlp = config.d_model, config.decoder_d_mlp
    row = 12 * d * d + 4 * d * d_mlp + 4 * config.max_frames * d
    self_attention = 4 * d * n_tokens * n_tokens
    return config.decoder_layers * (n_tokens * row + self_attention)


def _bytes_per_run(config: WhisperConfig, n_tokens: int) -> int:
    attention = 2 * config.decoder_heads * n_tokens * (config.max_frames + n_tokens)
    rows = n_tokens * (8 * config.d_model + 2 * config.decoder_d_mlp)
    return 4 * (attention + rows + 2 * config.d_vocab)


def _default_memory() -> int:
    stats = jax.devices()[0].memory_stats() or {}
    return stats["bytes_limit"] // 4 if "bytes_limit" in stats else _DEFAULT_MEMORY


def _indices(what: str, chosen: Sequence[int] | None, size: int) -> tuple[int, ...]:
    if chosen is None:
        return tuple(range(size))
    outside = [index for index in chosen if not -size <= index < size]
    if outside:
        raise InputError(f"There is no {what} {outside[0]}: the run has {size} {what}s.")
    indices = tuple(index % size for index in chosen)
    if not indices:
        raise InputError(f"The set of {what}s is empty: choose at least one.")
    if len(set(indices)) < len(indices):
        raise InputError(f"A {what} is named twice in {list(chosen)}.")
    return indices
