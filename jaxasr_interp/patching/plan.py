"""What a sweep will do, known before anything runs."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.run import check_tokens
from jaxasr_interp.model.sites import (
    SITES,
    Stack,
    check_site,
    check_stack,
    counts_frames,
    head_axis,
    sweepable_sites,
)
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching import cost
from jaxasr_interp.patching.chunks import Chunk, base_bytes, make_chunks
from jaxasr_interp.patching.engine.inject import entry_layer
from jaxasr_interp.runtime.memory import default_memory
from jaxasr_interp.speech.positions import Window, resolve_windows, words_of

_ENCODER_WINDOW = 50

type Component = tuple[str, int | None]


@dataclasses.dataclass(frozen=True)
class SweepPlan:
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
        memory: bytes that a sweep may take beside the model.
        reads: positions whose logits the metrics read.
        dtype: of the model.
        only: numbers of the cells that are run, in the order of `cells`; all if `None`. The others
            are NaN in the result.
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
        """`alpha, component, layer, head, start, stop` of every patch, in the result's order."""
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

    def select(self, cells: Sequence[int] | Int[np.ndarray, " cell"]) -> "SweepPlan":
        """The plan of some cells only, by their numbers in the order of `cells`.

        Raises:
            InputError: there are none, one is named twice, or one is outside the grid.
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
        """The patches in groups that run together and fit the memory.

        Raises:
            InputError: the memory is too small for a single patch.
        """
        return make_chunks(self, method, utterances)

    @functools.cached_property
    def flops(self) -> int:
        """FLOPs of the sweep itself by the minimal method, without the two runs it starts from."""
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
            landing = rows * cost.encoder_row(self.config) if entry > layer else 0
            return landing + cost.encoder_suffix_flops(
                self.config, self.n_tokens, entry, rows, self.reads
            )
        if self.counts_frames:
            start, rows = 0, self.n_tokens
        landing = rows * cost.decoder_row(self.config) if entry > layer else 0
        return landing + cost.decoder_suffix_flops(
            self.config, self.n_tokens, entry, start, rows, self.reads
        )

    def __str__(self) -> str:
        sizes = {"alpha": "strengths", "component": "components", "layer": "layers"}
        sizes["pos"] = "positions" if all(b - a == 1 for a, b in self.windows) else "windows"
        grid = " × ".join(f"{size} {sizes[name]}" for name, size in self.axes.items())
        chunks = self.chunks()
        rate = cost.matmul_rate(self.dtype)
        encodes = 2 * (cost.encoder_flops(self.config) + cost.cross_flops(self.config))
        largest = max(chunk.bytes for chunk in chunks) + base_bytes(self, 1)
        programs = 5 + len(self.sites)
        return (
            f"sweep of {self.stack} {', '.join(self.component_names)}: {grid} = {self.runs} "
            f"patched runs of {self.n_tokens} tokens\n"
            f"  {_si(self.flops)}FLOP, and {_si(encodes)}FLOP for the two runs it starts from; one "
            f"whole run per patch takes {_si(self.naive_flops)}FLOP\n"
            f"  {len(chunks)} chunks in {_si(largest)}B of {_si(self.memory)}B, about {programs} "
            f"compiled programs\n"
            f"  about {(self.flops + encodes) / rate / 0.75:.1f} s on this "
            f"{jax.devices()[0].platform.upper()}, whose matrix products do {_si(rate)}FLOP/s"
        )


def plan_sweep(
    model: Whisper,
    *,
    tokens: Int[Array, " pos"] | Sequence[int] | np.ndarray,
    stack: str = "decoder",
    site: str | Sequence[str] = "resid_pre",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    positions: str | Sequence[int | Window | str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    alpha: float | int | Sequence[float | int] = 1.0,
    memory: int | None = None,
) -> SweepPlan:
    """Plan a patching sweep.

    Args:
        model: the model to sweep.
        tokens: the tokens of the run that is patched.
        stack: `"decoder"` or `"encoder"`.
        site: one or several sites of the stack.
        layers: which layers, all by default; negative ones count from the end.
        heads: which heads of sites that have them, each on its own; `"each"` for all, `None` for
            the whole site at once.
        positions: which tokens (decoder sites) or frames (encoder sites, `cross_k`, `cross_v`):
            indices, `(start, stop)` windows, or text as in `jaxasr_interp.speech.positions`; all
            by default.
        window: how many positions a patch covers; by default 1 token, or 50 frames (1 s).
        stride: distance between the starts of windows; by default `window`.
        alpha: one or several strengths, `ã = (1 - α) a + α edit(a)`.
        memory: bytes that the sweep may take beside the model; by default a quarter of the device's
            memory, or of the machine's where the device is its processor.

    Returns:
        The plan; print it to see what it will cost.

    Raises:
        InputError: an unknown site or one that cannot be swept, sites that do not go together, an
            empty or impossible set of layers, heads or positions, or a budget too small for one
            patch.
    """
    known = check_stack(stack)
    sites = [site] if isinstance(site, str) else list(site)
    frames = _check_sites(known, sites)
    config = model.config
    ids = check_tokens(config, tokens)
    size = config.max_frames if frames else len(ids)
    words = words_of(model.tokenizer, ids.tolist()) if model.tokenizer and not frames else ()
    inside = SITES[known][sites[0]][0] == "layer"
    if layers is not None and not inside:
        raise InputError(f"Site {sites[0]!r} is outside the layers: leave the layers out.")
    plan = SweepPlan(
        config=config,
        stack=known,
        components=_components(sites, heads, config.heads(known)),
        layers=_indices("layer", layers, config.layers(known)) if inside else (None,),
        windows=resolve_windows(
            positions,
            size,
            width=(min(_ENCODER_WINDOW, size) if frames else 1) if window is None else window,
            stride=stride,
            words=words,
            timed=frames,
        ),
        alphas=_alphas(alpha),
        n_tokens=len(ids),
        memory=default_memory() if memory is None else memory,
        dtype=str(model.dtype),
    )
    plan.chunks()
    return plan


def _check_sites(stack: Stack, sites: Sequence[str]) -> bool:
    """Raise unless the sites can share a plan; return whether their positions are frames."""
    if not sites:
        raise InputError("The set of sites is empty: choose at least one.")
    for site in sites:
        check_site(stack, site)
        if site not in sweepable_sites(stack):
            raise InputError(
                f"Sweeps do not patch the {stack}'s {site!r}: choose one of "
                f"{', '.join(sweepable_sites(stack))}."
            )
    if len(set(sites)) < len(sites):
        raise InputError(f"A site is named twice in {sites}.")
    kinds = {(SITES[stack][site][0] == "layer", counts_frames(stack, site)) for site in sites}
    if len(kinds) > 1:
        raise InputError(
            f"The sites {', '.join(sites)} do not share layers and positions: sweep them apart."
        )
    return counts_frames(stack, sites[0])


def _components(
    sites: Sequence[str], heads: Sequence[int] | str | None, n_heads: int
) -> tuple[Component, ...]:
    if heads is None:
        return tuple((site, None) for site in sites)
    if isinstance(heads, str) and heads != "each":
        raise InputError(f"Heads are {heads!r}: expected 'each' or their numbers.")
    chosen = _indices("head", None if heads == "each" else heads, n_heads)  # pyright: ignore[reportArgumentType]
    if not any(head_axis(site) is not None for site in sites):
        raise InputError(f"None of the sites {', '.join(sites)} has heads: leave the heads out.")
    return tuple(
        (site, head)
        for site in sites
        for head in (chosen if head_axis(site) is not None else (None,))
    )


def _alphas(alpha: float | int | Sequence[float | int]) -> tuple[float, ...]:
    alphas = tuple(float(a) for a in ([alpha] if np.ndim(alpha) == 0 else alpha))  # pyright: ignore[reportGeneralTypeIssues]
    if not alphas or not np.isfinite(alphas).all() or len(set(alphas)) < len(alphas):
        raise InputError(f"The strengths are {list(alphas)}: expected finite numbers, each once.")
    return alphas


def _indices(what: str, chosen: Sequence[int] | None, size: int) -> tuple[int, ...]:
    if chosen is None:
        return tuple(range(size))
    odd = [index for index in chosen if not isinstance(index, int | np.integer)]
    if odd:
        raise InputError(f"The {what} {odd[0]!r} is no whole number.")
    outside = [index for index in chosen if not -size <= index < size]
    if outside:
        raise InputError(f"There is no {what} {outside[0]}: the run has {size} {what}s.")
    indices = tuple(int(index) % size for index in chosen)
    if not indices:
        raise InputError(f"The set of {what}s is empty: choose at least one.")
    if len(set(indices)) < len(indices):
        raise InputError(f"A {what} is named twice in {list(chosen)}.")
    return indices


def _si(number: float | int) -> str:
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number / 1e3:.3g} k"
