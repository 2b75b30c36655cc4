"""Cutting a sweep into chunks of patches, which have few shapes and fit the memory."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.patching.array_sizes import base_bytes, itemsize, row_bytes
from jaxasr_interp.patching.cells import Cells, PatchGrid
from jaxasr_interp.patching.engine.inject import entry_layer
from jaxasr_interp.patching.schedule import Schedule, make_schedule

_MOST_ROWS = 1056
"""Rows of one entry layer in a chunk on a CPU."""
_ROWS_ON_TPU = 528
"""The same on a TPU."""
_ROWS_OF_PRODUCT = 1056
"""Rows of a product on a TPU, four times as many as a v5e needs to read the weights meanwhile: the
more there are, the more slots of each layer's last group are computed in vain."""
_ROW_MULTIPLE = 16
_ROWS_READ_TOGETHER = 512


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Patches of one site that run in one program.

    In the minimal method all layers have the same patches; in the others patches of any layers
    count as one layer's, and only `cells` tells their layers.

    Attributes:
        site: the site that is patched.
        where: numbers of the patches in the order of the sweep's cells.
        layers: the layers.
        enters: the layers that their patches enter.
        places: the fields of `cells`, on the host.
        rows: number of decoder rows that a layer can hold (minimal method).
        width: number of positions that the widest patch of the site covers.
        schedule: how a pass goes through the layers (decoder, minimal method).
        bytes: memory that the chunk takes.
    """

    site: str
    where: Int[np.ndarray, "layer patch"]
    layers: tuple[int, ...]
    enters: tuple[int, ...]
    places: dict[str, np.ndarray]
    rows: int
    width: int
    schedule: Schedule
    bytes: int

    @property
    def size(self) -> int:
        """Number of patches that the chunk can hold."""
        return len(self.layers) * len(self.places["start"])

    @functools.cached_property
    def cells(self) -> Cells:
        """The patches of one layer, the last one repeated up to the chunk's fixed size."""
        return Cells(**jax.device_put(self.places))

    def each(self) -> Iterator[Cells]:
        """Yield the patches of one layer one by one."""
        for i in range(self.where.shape[1]):
            yield jax.tree.map(lambda values, i=i: values[i], self.cells)

    def held(
        self, values: Float[np.ndarray, "batch size metric"]
    ) -> Float[np.ndarray, "batch layer patch metric"]:
        """Return the values of the chunk's own patches."""
        by_layer = values.reshape(len(values), len(self.layers), -1, values.shape[-1])
        return by_layer[:, :, : self.where.shape[1]]


@dataclasses.dataclass(frozen=True)
class _Costs:
    """Bytes of one chunk, from the patches and rows of one layer."""

    patch: int
    row: int

    def __call__(self, patches: int, rows: int) -> int:
        return self.patch * patches + self.row * rows


def make_chunks(grid: PatchGrid, method: str, utterances: int) -> list[Chunk]:
    """Group a grid's patches by site, and cut the groups.

    All chunks of a site have the same shapes, so that one program runs all of them.
    """
    cells = grid.cells()
    chosen = np.arange(grid.size) if grid.only is None else np.array(grid.only)
    chunks: list[Chunk] = []
    for site in grid.sites:
        numbers = [i for i, (name, _) in enumerate(grid.components) if name == site]
        of_site = chosen[np.isin(cells["component"][chosen], numbers)]
        if len(of_site):
            groups = _groups(grid, of_site, cells["layer"][of_site], method)
            chunks += _cut(grid, site, groups, cells, method, utterances)
    return chunks


def _groups(
    grid: PatchGrid,
    of_site: Int[np.ndarray, " cell"],
    layers: Int[np.ndarray, " cell"],
    method: str,
) -> list[np.ndarray]:
    """Group the patches of a site into those that one chunk may hold."""
    if method != "minimal":
        return [of_site[None]]
    by_layer = [of_site[layers == layer] for layer in np.unique(layers)]
    if grid.stack == "decoder" and grid.only is None:
        return [np.stack(by_layer)]
    return [group[None] for group in by_layer]


def chunks_read_together(chunks: int, rows: int, fit: int = _ROWS_READ_TOGETHER) -> int:
    """Return how many of a site's chunks share one call for their logits, in groups of equal size.

    Args:
        chunks: number of chunks.
        rows: number of rows that are read of each.
        fit: number of rows that fit the memory.
    """
    n_groups = -(-chunks // max(1, min(fit, _ROWS_READ_TOGETHER) // rows))
    return -(-chunks // n_groups)


def _cut(
    grid: PatchGrid,
    site: str,
    groups: list[np.ndarray],
    cells: dict[str, np.ndarray],
    method: str,
    utterances: int,
) -> list[Chunk]:
    rows, n_layers = _rows(grid, cells, method), len(groups[0])
    width = int(max((cells["stop"] - cells["start"])[group].max() for group in groups))
    one_layer = _costs(grid, site, method, width, utterances)
    in_layer = max(int(rows[group[0]].sum()) for group in groups) * utterances
    budget = grid.memory - base_bytes(grid, utterances)
    most_rows = int(rows.max())
    together, costs = _together(
        grid, one_layer, n_layers, most_rows, in_layer, budget, width, utterances
    )
    if costs(1, most_rows) > budget:
        least = base_bytes(grid, utterances) + costs(1, most_rows)
        raise InputError(
            f"A memory budget of {grid.memory} bytes is too small: the runs and one patch of "
            f"{grid.stack} {site} take {least}; give the sweep more memory, or fewer sites."
        )
    wide = accumulation_dtype(jnp.dtype(grid.dtype))
    places = {field.name: cells[field.name] for field in dataclasses.fields(Cells)}
    places["alpha"] = places["alpha"].astype(wide)
    most = budget
    if grid.platform == "cpu":
        # More rows do not fit the processor's caches and run no faster.
        in_cache = max(costs(1, _MOST_ROWS // utterances), costs(1, most_rows))
        most = min(budget, in_cache)
    cuts = [cut for group in groups for cut in _fill(group, rows, costs, most)]
    if grid.platform == "tpu" and method == "minimal" and grid.stack == "decoder":
        # All rows of a layer see each other's keys, the cost of which grows with their square.
        by_rows = max(_ROWS_ON_TPU // utterances, most_rows)
        short = [cut for group in groups for cut in _fill(group, rows, _Costs(0, 1), by_rows)]
        cuts = max(cuts, short, key=len)
    patches = max(cut.shape[1] for cut in cuts)
    room = -(-max(int(rows[cut[0]].sum()) for cut in cuts) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    chunks = []
    for cut in cuts:
        padded = np.pad(cut[0], (0, patches - cut.shape[1]), mode="edge")
        held = {name: values[padded] for name, values in places.items()}
        layers = tuple(cells["layer"][cut[:, 0]].tolist())
        enters = tuple(entry_layer(site, layer) for layer in layers)
        schedule = make_schedule(enters, together, grid.platform)
        size = costs(patches, room)
        chunks.append(Chunk(site, cut, layers, enters, held, room, width, schedule, size))
    return chunks


def _together(
    grid: PatchGrid,
    one_layer: _Costs,
    layers: int,
    rows: int,
    in_layer: int,
    budget: int,
    width: int,
    utterances: int,
) -> tuple[int, _Costs]:
    """Choose how many layers' rows share a matrix product; return the costs of a chunk, too."""
    size = itemsize(grid.dtype)
    vector = utterances * size * grid.config.d_model
    kept = _Costs(layers * vector * (4 * width + 2 * grid.reads), layers * 2 * vector)
    most = {"cpu": 1, "tpu": -(-_ROWS_OF_PRODUCT // min(in_layer, _ROWS_ON_TPU))}
    together = min(layers, most.get(grid.platform, layers))
    while True:
        costs = _Costs(together * one_layer.patch + kept.patch, together * one_layer.row + kept.row)
        if together == 1 or costs(1, rows) <= budget:
            return together, costs
        together = -(-together // 2)


def _rows(grid: PatchGrid, cells: dict[str, np.ndarray], method: str) -> Int[np.ndarray, " cell"]:
    """Count the decoder rows that each patch changes, or those of a whole run."""
    if method == "minimal" and grid.stack == "decoder" and not grid.counts_frames:
        return grid.n_tokens - cells["start"]
    return np.full(len(cells["start"]), grid.n_tokens)


def _fill(
    group: Int[np.ndarray, "layer patch"],
    rows: Int[np.ndarray, " cell"],
    costs: _Costs,
    most: int,
) -> list[Int[np.ndarray, "layer some"]]:
    """Cut a group into as few pieces of at most so many bytes, of about equal size."""
    rows, n = rows[group[0]], group.shape[1]
    total = costs(n, int(rows.sum()))
    share = max(total / -(-total // most), costs(1, int(rows.max())))
    pieces, start = [], 0
    while start < n:
        filled = np.arange(1, n - start + 1) * costs.patch + np.cumsum(rows[start:]) * costs.row
        size = max(1, int((filled <= share).sum()))
        pieces.append(group[:, start : start + size])
        start += size
    return pieces


def _costs(grid: PatchGrid, site: str, method: str, width: int, utterances: int) -> _Costs:
    c, size, wide = grid.config, itemsize(grid.dtype), max(4, itemsize(grid.dtype))
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
        patch += size * frames * (10 * d + 2 * c.encoder_d_mlp)
    return _Costs(utterances * patch, utterances * row)
