"""The programs of extraction: a batch of clips through one stack, reduced before it leaves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from jaxasr_interp.extraction.reductions import reduced
from jaxasr_interp.extraction.request import Request
from jaxasr_interp.model.sites import PATTERN_SITES
from jaxasr_interp.model.whisper import Decoder, Encoder

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
    """Encoder states of every clip, and its activations as requested.

    Args:
        encoder: the weights.
        mels: spectrograms.
        where: for each request the positions in each clip; see `reductions.reduce`.
        requests: of encoder sites.
    """

    def one(clip: tuple[Array, Places]) -> tuple[Array, dict[str, Array]]:
        mel, places = clip
        states, acts = encoder(mel, patterns=_patterns(requests))
        return states, reduced(requests, acts, places)

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
    """The decoder's activations as requested, of every clip's run.

    Args:
        decoder: the weights.
        states: encoder states.
        tokens: of each run, and anything behind them.
        where: for each request the positions in each clip; see `reductions.reduce`.
        requests: of decoder sites.
    """

    def one(clip: tuple[Array, Array, Places]) -> dict[str, Array]:
        states, tokens, places = clip
        run = decoder.run(tokens, states, patterns=_patterns(requests))
        return reduced(requests, run.decoder, places)

    return _each(one, (states, tokens, where))


def _patterns(requests: tuple[Request, ...]) -> bool:
    return any(request.site in PATTERN_SITES for request in requests)


def _each(one: Callable[[Any], Any], clips: Any) -> Any:
    """All clips at once, or one after the other on a processor, whose caches hold no more."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(one, clips)
    return jax.vmap(one)(clips)
