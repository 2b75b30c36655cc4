"""The cost of runs in FLOPs, 2 for each multiply-add of matrix products and attention dots."""

import functools
import time

import jax
import jax.numpy as jnp

from jaxasr_interp.model.config import WhisperConfig


def encoder_flops(config: WhisperConfig) -> int:
    """Count the FLOPs of one encoder run."""
    d, frames = config.d_model, config.max_frames
    stem = 2 * 3 * d * (2 * frames * config.n_mels + frames * d)
    return stem + config.encoder_layers * (frames * encoder_row(config))


def encoder_row(config: WhisperConfig) -> int:
    """Count the FLOPs of one frame in one encoder layer."""
    d = config.d_model
    return 8 * d * d + 4 * d * config.encoder_d_mlp + 4 * config.max_frames * d


def cross_flops(config: WhisperConfig) -> int:
    """Count the FLOPs of the cross-attention keys and values of every decoder layer."""
    return 4 * config.decoder_layers * config.max_frames * config.d_model**2


def decoder_row(config: WhisperConfig) -> int:
    """Count the FLOPs of one token in one decoder layer, without the dots of self-attention."""
    d = config.d_model
    return 12 * d * d + 4 * d * config.decoder_d_mlp + 4 * config.max_frames * d


def decoder_flops(config: WhisperConfig, n_tokens: int) -> int:
    """Count the FLOPs of one decoder run up to the last residual stream.

    The cross-attention keys and values are not counted.
    """
    dots = 4 * config.d_model * n_tokens * n_tokens
    return config.decoder_layers * (n_tokens * decoder_row(config) + dots)


def unembed_flops(config: WhisperConfig, rows: int) -> int:
    """Count the FLOPs of the logits of some positions."""
    return 2 * rows * config.d_vocab * config.d_model


def run_flops(config: WhisperConfig, n_tokens: int) -> int:
    """Count the FLOPs of a whole run: encoder, decoder, and logits of every position."""
    return (
        encoder_flops(config)
        + cross_flops(config)
        + decoder_flops(config, n_tokens)
        + unembed_flops(config, n_tokens)
    )


def decoder_suffix_flops(
    config: WhisperConfig, n_tokens: int, entry: int, start: int, rows: int, reads: int
) -> int:
    """Count the FLOPs to update a decoder run when `rows` positions from `start` on change.

    They change before layer `entry`. Layers before `entry` and positions before `start` do not
    change. In layer `entry` only the changed rows have new queries, keys and values; in the last
    layer all changed rows have new keys and values, and only the `reads` rows that metrics read
    have more.
    """
    d, last = config.d_model, config.decoder_layers - 1
    if entry > last:
        return unembed_flops(config, reads)
    after = n_tokens - start
    dots = sum(4 * d * (query + 1) for query in range(start, n_tokens))
    row = decoder_row(config)
    total = rows * 6 * d * d
    if entry < last:
        total += after * (row - 6 * d * d) + dots
        total += (last - entry - 1) * (after * row + dots)
        total += after * 4 * d * d
    return total + reads * (row - 4 * d * d + 4 * d * n_tokens) + unembed_flops(config, reads)


def encoder_suffix_flops(
    config: WhisperConfig, n_tokens: int, entry: int, rows: int, reads: int
) -> int:
    """Count the FLOPs to update a run when `rows` frames change before encoder layer `entry`."""
    d, frames = config.d_model, config.max_frames
    total = cross_flops(config) + decoder_flops(config, n_tokens) + unembed_flops(config, reads)
    if entry < config.encoder_layers:
        layers = config.encoder_layers - entry
        total += layers * frames * encoder_row(config) - (frames - rows) * 6 * d * d
    return total


def states_window_flops(config: WhisperConfig, n_tokens: int, rows: int, reads: int) -> int:
    """Count the FLOPs to update a run when `rows` of the final encoder states change."""
    d, last = config.d_model, config.decoder_layers - 1
    row = decoder_row(config) + 4 * rows * d
    dots = 4 * d * n_tokens * n_tokens
    total = 4 * config.decoder_layers * rows * d * d
    if last > 0:
        total += n_tokens * (row - 8 * d * d) + (last - 1) * (n_tokens * row + dots)
        total += n_tokens * 4 * d * d
    return total + reads * (row - 4 * d * d + 4 * d * n_tokens) + unembed_flops(config, reads)


@functools.cache
def matmul_rate(dtype: str = "float32") -> float:
    """Measure the FLOP/s of a large matrix product on this device."""
    x = jax.random.normal(jax.random.key(0), (2048, 2048), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)
