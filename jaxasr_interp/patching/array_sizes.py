"""Sizes of the arrays of a sweep, by which it is cut into chunks."""

import math

import jax.numpy as jnp

from jaxasr_interp.kernels.attention import holds_scores
from jaxasr_interp.model.sites import SITES, Stack
from jaxasr_interp.patching.cells import PatchGrid
from jaxasr_interp.patching.runs import kept_sites


def base_bytes(grid: PatchGrid, utterances: int) -> int:
    """Estimate the bytes of the runs that a sweep starts from, and of the work to make them."""
    c, size = grid.config, itemsize(grid.dtype)
    kept = kept_sites(grid.stack, frozenset(grid.sites))
    values = 2 * c.decoder_layers * c.max_frames * c.d_model
    values += sum(math.prod(site_shape(grid, "encoder", site)) for site in kept.encoder)
    values += sum(math.prod(site_shape(grid, "decoder", site)) for site in kept.decoder)
    encoding = 4 * 2 * c.encoder_heads * c.max_frames**2
    return utterances * 2 * size * values + encoding


def row_bytes(grid: PatchGrid) -> int:
    """Estimate the bytes that one row takes in a decoder layer."""
    c, size, wide = grid.config, itemsize(grid.dtype), max(4, itemsize(grid.dtype))
    dots = (
        2 * wide * c.decoder_heads * c.max_frames
        if holds_scores(grid.dtype, grid.platform, c.decoder_heads, c.d_model // c.decoder_heads)
        else 0
    )
    return dots + size * (2 * c.decoder_d_mlp + 12 * c.d_model)


def site_shape(grid: PatchGrid, stack: Stack, site: str) -> tuple[int, ...]:
    """Return the shape of what a run has at a site."""
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
    return tuple(sizes[axis] for axis in SITES[stack][site])


def itemsize(dtype: str) -> int:
    """Return the bytes of a number."""
    return jnp.dtype(dtype).itemsize
