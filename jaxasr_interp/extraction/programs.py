"""The programs of extraction, which run one stack on a batch and reduce its activations."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from jaxasr_interp.extraction.reductions import reduced
from jaxasr_interp.extraction.request import Request
from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.encoder import Encoder
from jaxasr_interp.model.sites import PATTERN_SITES

type Where = tuple[Int[Array, "clip _"], ...]
type Places = tuple[Int[Array, " _"], ...]


@functools.partial(jax.jit, static_argnames="requests")
def encode_reduced(
    encoder: Encoder,
    mels: Float[Array, "clip n_mels mel_frame"],
    where: Where,
    *,
    requests: tuple[Request, ...],
) -> tuple[Float[Array, "clip frame d_model"], dict[str, Array]]:
    """Compute the encoder states and the requested encoder activations of every clip.

    Args:
        encoder: the encoder.
        mels: spectrograms.
        where: for each request the positions in each clip; see `reductions.reduce`.
        requests: requests for encoder sites.
    """

    def one(clip: tuple[Array, Places]) -> tuple[Array, dict[str, Array]]:
        mel, places = clip
        keep = functools.partial(reduced, requests, places)
        states, around, layers = encoder.run_layers(mel, patterns=_patterns(requests), keep=keep)
        return states, layers | keep(around)

    return _each(one, (mels, where))


@functools.partial(jax.jit, static_argnames="requests")
def decode_reduced(
    decoder: Decoder,
    states: Float[Array, "clip frame d_model"],
    tokens: Int[Array, "clip pos"],
    where: Where,
    *,
    requests: tuple[Request, ...],
) -> dict[str, Array]:
    """Compute the requested decoder activations of every clip.

    Args:
        decoder: the weights.
        states: encoder states.
        tokens: tokens of each run, with any padding after them.
        where: for each request the positions in each clip; see `reductions.reduce`.
        requests: requests for decoder sites.
    """

    def one(clip: tuple[Array, Array, Places]) -> dict[str, Array]:
        states, tokens, places = clip
        keep = functools.partial(reduced, requests, places)
        resid, around, layers = decoder.run_layers(
            tokens, states, patterns=_patterns(requests), keep=keep
        )
        return layers | keep(around | decoder.unembed(resid)[1])

    return _each(one, (states, tokens, where))


def _patterns(requests: tuple[Request, ...]) -> bool:
    return any(request.site in PATTERN_SITES for request in requests)


def _each(one: Callable[[Any], Any], clips: Any) -> Any:
    """Map over clips at once, or one after the other on a CPU, whose caches hold no more."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(one, clips)
    return jax.vmap(one)(clips)
