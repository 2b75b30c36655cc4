"""Planning a sweep: its cells are checked before anything runs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Int

from jaxasr_interp.errors import InputError
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
from jaxasr_interp.patching.cells import Component
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.runtime.memory import default_memory
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.positions import Window, resolve_windows, words_of

_ENCODER_WINDOW = 50


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The windows of positions, the strengths and the memory of a sweep.

    Attributes:
        window: number of positions that a patch covers, or a time such as `"200ms"` if positions
            are frames; by default 1 token, or 50 frames (1 s).
        stride: distance between the starts of windows, in the units of `window`; by default equal
            to it.
        alpha: one or several strengths, `ã = (1 - α) a + α edit(a)`.
        memory: bytes that the sweep may use in addition to the model; by default a quarter of the
            device's memory, or of the machine's memory if the device is its processor.
        words: (word, window of frames) pairs from `align_words`, so that positions may name frames
            by words. Words of tokens are known without them.
    """

    window: int | str | None = None
    stride: int | str | None = None
    alpha: float | int | Sequence[float | int] = 1.0
    memory: int | None = None
    words: Sequence[tuple[str, Window]] = ()


_DEFAULT = PlanOptions()


@host_only()
def plan_sweep(
    model: Whisper,
    *,
    tokens: Int[Array, " pos"] | Sequence[int] | np.ndarray,
    stack: str = "decoder",
    site: str | Sequence[str] = "resid_pre",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    positions: str | Sequence[int | Window | str] | None = None,
    options: PlanOptions = _DEFAULT,
) -> SweepPlan:
    """Plan a patching sweep.

    Args:
        model: the model to sweep.
        tokens: the tokens of the run that is patched.
        stack: `"decoder"` or `"encoder"`.
        site: one or several sites of the stack.
        layers: layer numbers, all layers by default; negative numbers count from the end.
        heads: head numbers for sites that have heads, each patched alone; `"each"` for all heads,
            `None` for the whole site at once.
        positions: tokens (decoder sites) or frames (encoder sites, `cross_k`, `cross_v`): indices,
            `(start, stop)` windows, or text as in `jaxasr_interp.speech.positions`; all by
            default.
        options: windows, strengths and memory.

    Returns:
        The plan; print it to see what it will cost.

    Raises:
        InputError: a site is unknown or cannot be swept, sites cannot share a plan, a set of
            layers, heads or positions is empty or impossible, or the memory is too small for one
            patch.
    """
    known = check_stack(stack)
    sites = [site] if isinstance(site, str) else list(site)
    frames = _check_sites(known, sites)
    config = model.config
    ids = check_tokens(config, tokens)
    size = config.max_frames if frames else len(ids)
    words = options.words
    if model.tokenizer and not frames:
        words = words_of(model.tokenizer, ids.tolist())
    window = options.window
    if window is None:
        window = min(_ENCODER_WINDOW, size) if frames else 1
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
            width=window,
            stride=options.stride,
            words=words,
            timed=frames,
        ),
        alphas=_alphas(options.alpha),
        n_tokens=len(ids),
        memory=default_memory() if options.memory is None else options.memory,
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
