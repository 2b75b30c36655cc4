"""Running the utterances that a sweep starts from, on one device or several."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.model.encoder import Encoder
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.run import EncoderRun, encode_utterance, keep, known_run
from jaxasr_interp.model.sites import PATTERN_SITES, DecoderActivations
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.runs import BaseRun
from jaxasr_interp.runtime.devices import divide, mesh_for, mesh_of, on_parts
from jaxasr_interp.speech.utterance import Utterance

type Decoded = tuple[KeysValues, DecoderActivations, Float[Array, "*batch read d_vocab"]]


@dataclasses.dataclass(frozen=True)
class RunSet:
    """Utterances of equal length, and what is kept of their runs.

    Attributes:
        utterances: the utterances.
        encoded: their encoder runs, from `encode_utterances`; their activations are kept.
        sites: the decoder activations to keep.
        reads: positions of each run whose logits are kept.
    """

    utterances: Sequence[Utterance]
    encoded: EncoderRun
    sites: frozenset[str]
    reads: Int[np.ndarray, "batch read"]

    def given(self, mesh: Mesh | None) -> tuple[Array, Array, Array]:
        """Return the tokens, encoder states and positions, each device's part of them."""
        tokens = jnp.stack([jnp.asarray(one.tokens, jnp.int32) for one in self.utterances])
        tokens, reads = divide(mesh, (tokens, jnp.asarray(self.reads, jnp.int32)))
        return tokens, self.encoded.states, reads

    def run_of(self, mesh: Mesh | None, tokens: Array, decoded: Decoded) -> BaseRun:
        """Join the decoder's results to what was given to it."""
        mels = divide(mesh, jnp.stack([one.mel for one in self.utterances]))
        states, acts = self.encoded.states, self.encoded.acts
        cross, of_decoder, logits = decoded
        return BaseRun(mels, tokens, states, cross, acts, of_decoder, logits)


def run_utterances(model: Whisper, wanted: RunSet) -> BaseRun:
    """Run several utterances of equal length.

    Args:
        model: the model; if it is on several devices, each runs its part of the utterances.
        wanted: the utterances.

    Returns:
        The runs; all arrays have a leading axis for the utterances.
    """
    mesh = mesh_for(model, len(wanted.utterances))
    given = wanted.given(mesh)
    decoded = decode_each(model.decoder, *given, sites=wanted.sites, mesh=mesh)
    return wanted.run_of(mesh, given[0], decoded)


def run_both(model: Whisper, first: RunSet, second: RunSet, platform: str) -> list[BaseRun]:
    """Run two sets of utterances; a GPU runs them together if they have the same shapes.

    Args:
        model: see `run_utterances`.
        first: the first set.
        second: the second.
        platform: kind of the devices.
    """
    both = (first, second)
    given = [one.given(None) for one in both]
    shapes = [[(leaf.shape, leaf.dtype) for leaf in one] for one in given]
    alike = first.sites == second.sites and shapes[0] == shapes[1]
    if platform != "gpu" or mesh_of(model) is not None or not alike:
        return [run_utterances(model, one) for one in both]
    decoded = decode_both(model.decoder, *given, sites=first.sites)
    parts = zip(both, given, decoded, strict=True)
    return [one.run_of(None, tokens, found) for one, (tokens, *_), found in parts]


def encode_utterances(
    model: Whisper, utterances: Sequence[Utterance], sites: frozenset[str]
) -> EncoderRun:
    """Encode several clips one after the other, or take the encoder runs that they have.

    Attention over 1500 frames takes the most memory, so a device encodes one clip at a time.

    Args:
        model: the model; if it is on several devices, each encodes its part of the clips.
        utterances: the clips.
        sites: the activations to keep.

    Returns:
        The encoder runs; all arrays have a leading axis for the clips.
    """
    mesh = mesh_for(model, len(utterances))
    if mesh is not None and any(known_run(model, one, sites) is None for one in utterances):
        mels = divide(mesh, jnp.stack([one.mel for one in utterances]))
        return encode_each(model.encoder, mels, sites=sites, mesh=mesh)
    runs = [encode_utterance(model, one, sites) for one in utterances]
    return divide(mesh, jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs))


@functools.partial(jax.jit, static_argnames=("sites", "mesh"))
def encode_each(
    encoder: Encoder,
    mels: Float[Array, "batch n_mels mel_frame"],
    *,
    sites: frozenset[str],
    mesh: Mesh,
) -> EncoderRun:
    """Encode clips on several devices.

    Args:
        encoder: the encoder.
        mels: spectrograms of the clips.
        sites: the activations to keep.
        mesh: the devices.
    """

    def one(encoder: Encoder, mel: Float[Array, "n_mels mel_frame"]) -> EncoderRun:
        states, acts = encoder(mel, patterns=bool(sites & PATTERN_SITES))
        return EncoderRun(states, keep(acts, sites))

    return on_parts(mesh, _one_after_the_other(one))(encoder, mels)


@functools.partial(jax.jit, static_argnames=("sites", "mesh"))
def decode_each(
    decoder: Decoder,
    tokens: Int[Array, "batch pos"],
    states: Float[Array, "batch frame d_model"],
    reads: Int[Array, "batch read"],
    *,
    sites: frozenset[str],
    mesh: Mesh | None,
) -> Decoded:
    """Run the decoder on some clips.

    Args:
        decoder: the decoder.
        tokens: tokens of each run.
        states: encoder states of each.
        reads: positions of each whose logits are computed.
        sites: the activations to keep.
        mesh: the devices; `None` for one.

    Returns:
        Of each run the cross-attention's keys and values, the activations and the logits.
    """

    # Runs are not batched: that would transpose the keys and values of every layer.
    one = functools.partial(_decode_one, sites=sites)
    return on_parts(mesh, _one_after_the_other(one))(decoder, (tokens, states, reads))


@functools.partial(jax.jit, static_argnames="sites")
def decode_both(
    decoder: Decoder,
    first: tuple[Array, Array, Array],
    second: tuple[Array, Array, Array],
    *,
    sites: frozenset[str],
) -> tuple[Decoded, Decoded]:
    """Run the decoder on two sets of clips as one batch.

    A GPU waits for each small operation to start: twice the rows take hardly any longer.

    Args:
        decoder: the decoder.
        first: tokens, encoder states and positions read of each clip of the first set.
        second: the same of the second set.
        sites: the activations to keep.

    Returns:
        What `decode_each` returns, for each set.
    """
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, second)
    found = jax.vmap(lambda given: _decode_one(decoder, given, sites))(joined)
    size = len(first[0])
    return (
        jax.tree.map(lambda leaf: leaf[:size], found),
        jax.tree.map(lambda leaf: leaf[size:], found),
    )


def _decode_one(
    decoder: Decoder, given: tuple[Array, Array, Array], sites: frozenset[str]
) -> Decoded:
    tokens, states, reads = given
    patterns = bool(sites & PATTERN_SITES)
    run = decoder.run(tokens, states, logits_at=reads, patterns=patterns)
    return run.cross, keep(run.decoder, sites), run.logits


def _one_after_the_other(one: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda shared, examples: jax.lax.map(lambda example: one(shared, example), examples)
