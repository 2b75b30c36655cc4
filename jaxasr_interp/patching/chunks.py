"""Cutting a sweep into chunks of patches, which have few shapes and fit the memory."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.sites import SITES, Stack
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.patching.cells import Cells, PatchGrid
from jaxasr_interp.patching.runs import kept_sites

_ROWS_IN_CACHE = 1056
_ROW_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Patches of one site that run in one program; in the minimal method they share a layer.

    Attributes:
        site: the site that is patched.
        where: numbers of the patches in the order of the sweep's cells.
        layer: layer of the first patch.
        cells: the patches, the last one repeated up to the chunk's fixed size.
        rows: number of decoder rows that the chunk can hold (minimal method).
        width: number of positions that the widest patch of the site covers.
        bytes: memory that the chunk takes.
    """

    site: str
    where: Int[np.ndarray, " patch"]
    layer: int
    cells: Cells
    rows: int
    width: int
    bytes: int

    @property
    def size(self) -> int:
        """Number of patches that the chunk can hold."""
        return len(self.cells.start)

    def each(self) -> Iterator[Cells]:
        """Yield the patches one by one."""
        for i in range(len(self.where)):
            yield jax.tree.map(lambda values, i=i: values[i], self.cells)


@dataclasses.dataclass(frozen=True)
class _Costs:
    """Bytes of one chunk: `patch · patches + row · rows`."""

    patch: int
    row: int

    def __call__(self, patches: int, rows: int) -> int:
        return self.patch * patches + self.row * rows


def make_chunks(grid: PatchGrid, method: str, utterances: int) -> list[Chunk]:
    """Group a grid's patches by site (and by layer, for the minimal method), and cut the groups.

    All chunks of a site have the same shapes, so that one program runs all of them.
    """
    cells = grid.cells()
    chosen = np.arange(grid.size) if grid.only is None else np.array(grid.only)
    chunks: list[Chunk] = []
    for site in grid.sites:
        numbers = [i for i, (name, _) in enumerate(grid.components) if name == site]
        of_site = chosen[np.isin(cells["component"][chosen], numbers)]
        if not len(of_site):
            continue
        if method == "minimal":
            layers = cells["layer"][of_site]
            groups = [of_site[layers == layer] for layer in np.unique(layers)]
        else:
            groups = [of_site]
        chunks += _cut(grid, site, groups, cells, method, utterances)
    return chunks


def base_bytes(grid: PatchGrid, utterances: int) -> int:
    """Estimate the bytes of the runs that a sweep starts from, and of the work to make them."""
    c, size = grid.config, _itemsize(grid.dtype)
    kept = kept_sites(grid.stack, frozenset(grid.sites))
    values = 2 * c.decoder_layers * c.max_frames * c.d_model
    values += sum(_site_size(grid, "encoder", site) for site in kept.encoder)
    values += sum(_site_size(grid, "decoder", site) for site in kept.decoder)
    encoding = 4 * 2 * c.encoder_heads * c.max_frames**2
    return utterances * 2 * size * values + encoding


def row_bytes(grid: PatchGrid) -> int:
    """Estimate the bytes that one row takes in a decoder layer."""
    c, size, wide = grid.config, _itemsize(grid.dtype), max(4, _itemsize(grid.dtype))
    dots = 2 * wide * c.decoder_heads * c.max_frames
    return dots + size * (2 * c.decoder_d_mlp + 12 * c.d_model)


def _site_size(grid: PatchGrid, stack: Stack, site: str) -> int:
    """Count the numbers that a run has at a site."""
    c, encoder = grid.config, stack == "encoder"
    length = c.max_frames if encoder else grid.n_tokens
    sizes = {
        "layer": c.layers(stack),
        "frame": c.max_frames,
        "pos": grid.n_tokens,
        "query": length,
        "key": length,
        "head": c.heads(stack),
        "d_head": c.d_model // c.heads(stack),
        "d_model": c.d_model,
        "d_mlp": c.encoder_d_mlp if encoder else c.decoder_d_mlp,
    }
    return math.prod(sizes[axis] for axis in SITES[stack][site])


def _cut(
    grid: PatchGrid,
    site: str,
    groups: list[np.ndarray],
    cells: dict[str, np.ndarray],
    method: str,
    utterances: int,
) -> list[Chunk]:
    rows = _rows(grid, cells, method)
    width = int((cells["stop"] - cells["start"])[np.concatenate(groups)].max())
    costs = _costs(grid, site, method, width, utterances)
    budget = grid.memory - base_bytes(grid, utterances)
    if costs(1, int(rows.max())) > budget:
        least = base_bytes(grid, utterances) + costs(1, int(rows.max()))
        raise InputError(
            f"A memory budget of {grid.memory} bytes is too small: the runs and one patch of "
            f"{grid.stack} {site} take {least}; give the sweep more memory, or fewer sites."
        )
    cuts = [cut for group in groups for cut in _fill(group, rows, costs, budget, utterances)]
    patches = max(len(cut) for cut in cuts)
    room = -(-max(int(rows[cut].sum()) for cut in cuts) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    chunks = []
    for cut in cuts:
        padded = np.pad(cut, (0, patches - len(cut)), mode="edge")
        layer, head, start, stop = (
            jnp.asarray(cells[name][padded], jnp.int32)
            for name in ("layer", "head", "start", "stop")
        )
        alpha = jnp.asarray(cells["alpha"][padded], accumulation_dtype(jnp.dtype(grid.dtype)))
        of_chunk = Cells(layer, head, start, stop, alpha)
        first = int(cells["layer"][cut[0]])
        chunks.append(Chunk(site, cut, first, of_chunk, room, width, costs(patches, room)))
    return chunks


def _rows(grid: PatchGrid, cells: dict[str, np.ndarray], method: str) -> Int[np.ndarray, " cell"]:
    """Count the decoder rows that each patch changes, or those of a whole run."""
    if method == "minimal" and grid.stack == "decoder" and not grid.counts_frames:
        return grid.n_tokens - cells["start"]
    return np.full(len(cells["start"]), grid.n_tokens)


def _fill(
    group: Int[np.ndarray, " some"],
    rows: Int[np.ndarray, " cell"],
    costs: _Costs,
    budget: int,
    utterances: int,
) -> list[np.ndarray]:
    """Cut a group into as few pieces as fit the budget, of about equal size."""
    most = budget
    if jax.devices()[0].platform == "cpu":
        # More rows do not fit the processor's caches and run no faster.
        most = min(budget, max(costs(1, _ROWS_IN_CACHE // utterances), costs(1, int(rows.max()))))
    total = costs(len(group), int(rows[group].sum()))
    share = max(total / -(-total // most), costs(1, int(rows.max())))
    pieces, start = [], 0
    while start < len(group):
        filled = np.arange(1, len(group) - start + 1) * costs.patch
        filled = filled + np.cumsum(rows[group[start:]]) * costs.row
        size = max(1, int((filled <= share).sum()))
        pieces.append(group[start : start + size])
        start += size
    return pieces


def _costs(grid: PatchGrid, site: str, method: str, width: int, utterances: int) -> _Costs:
    c, size, wide = grid.config, _itemsize(grid.dtype), max(4, _itemsize(grid.dtype))
    d, tokens, frames, heads = c.d_model, grid.n_tokens, c.max_frames, c.decoder_heads
    row = row_bytes(grid)
    patch = size * 8 * tokens * d + 2 * wide * heads * tokens**2
    if method == "vmap":
        patch += 4 * wide * grid.reads * c.d_vocab
    if grid.stack == "decoder" and grid.counts_frames:
        patch += tokens * row + size * 6 * frames * d
    elif grid.stack == "decoder" and method == "minimal":
        patch += width * row
    elif site == "ln_final" and method == "minimal":
        patch += width * (size * 8 * d + 2 * wide * heads * tokens)
    elif grid.stack == "encoder":
        patch += 2 * wide * c.encoder_heads * frames**2
        patch += size * frames * (8 * d + 2 * c.encoder_d_mlp + 2 * c.decoder_layers * d)
    return _Costs(utterances * patch, utterances * row)


def _itemsize(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
