"""The runs that a sweep starts from: the patched run, and the run that gives the values."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.run import EncoderRun, encode_utterance, keep, known_run
from jaxasr_interp.model.sites import (
    PATTERN_SITES,
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    layer_axes,
    position_axis,
)
from jaxasr_interp.model.whisper import Decoder, Encoder, Whisper
from jaxasr_interp.pytree import pytree_dataclass, replace
from jaxasr_interp.runtime.devices import divide, mesh_for, on_parts
from jaxasr_interp.speech.utterance import Utterance

_LARGE_OF_DECODER = {"cross_k", "cross_v", "result", "cross_result"}

CARRIED = ("resid_pre", "q", "k", "v", "resid_post")
"""The activations of the patched run that are needed to propagate changed rows."""


@pytree_dataclass
class BaseRun:
    """The parts of one run of the model that patched runs use.

    Attributes:
        mel: spectrogram of the clip.
        tokens: tokens of the decoder.
        states: encoder states.
        cross: cross-attention keys and values of every layer.
        encoder: the requested encoder activations.
        decoder: the requested decoder activations.
        logits: logits at the positions that metrics read.
    """

    mel: Float[Array, "*batch n_mels mel_frame"]
    tokens: Int[Array, "*batch pos"]
    states: Float[Array, "*batch frame d_model"]
    cross: KeysValues
    encoder: EncoderActivations
    decoder: DecoderActivations
    logits: Float[Array, "*batch read d_vocab"]

    def only(self, sites: Iterable[str]) -> "BaseRun":
        """Return the same run with some of its activations only: those that a program needs."""
        kept = [
            replace(acts, **dict.fromkeys(vars(acts).keys() - set(sites)))
            for acts in (self.encoder, self.decoder)
        ]
        return replace(self, encoder=kept[0], decoder=kept[1])

    def acts(self, stack: Stack) -> EncoderActivations | DecoderActivations:
        """Return the activations of one stack."""
        return self.encoder if stack == "encoder" else self.decoder


@dataclasses.dataclass(frozen=True)
class Sites:
    """Which activations of each stack a run keeps."""

    encoder: frozenset[str] = frozenset()
    decoder: frozenset[str] = frozenset()


def kept_sites(stack: Stack, sites: frozenset[str]) -> Sites:
    """Choose the activations that patches at `sites` need, of the patched run or of the source.

    All small activations of the decoder are kept, so that sweeps of most sites share programs.
    """
    if stack == "decoder":
        small = (site for site, axes in SITES[stack].items() if axes[-1] in ("d_model", "d_head"))
        return Sites(decoder=frozenset(small) - _LARGE_OF_DECODER | sites)
    # Patches of the final states start from the decoder's run; they need no encoder activations.
    of_decoder = frozenset({"resid_mid"} if "ln_final" in sites else ())
    if sites == {"ln_final"}:
        return Sites(sites, of_decoder)
    stem = {"conv2_out", "pos_embed"}
    needed = {*CARRIED, "resid_mid", *sites}
    return Sites(frozenset(needed | stem if sites & stem else needed), of_decoder)


def run_utterances(
    model: Whisper,
    utterances: Sequence[Utterance],
    sites: Sites,
    reads: Int[Array, "batch read"],
    encoded: EncoderRun | None = None,
) -> BaseRun:
    """Run several utterances of equal length.

    Args:
        model: the model; if it is on several devices, each runs its part of the utterances.
        utterances: the utterances.
        sites: the activations to keep.
        reads: positions of each run whose logits are kept.
        encoded: from `encode_utterances`, if the clips are encoded already; its activations are
            kept.

    Returns:
        The runs; all arrays have a leading axis for the utterances.
    """
    if encoded is None:
        encoded = encode_utterances(model, utterances, sites.encoder)
    mesh = mesh_for(model, len(utterances))
    mels = jnp.stack([one.mel for one in utterances])
    tokens = jnp.stack([jnp.asarray(one.tokens, jnp.int32) for one in utterances])
    mels, tokens, reads = divide(mesh, (mels, tokens, reads))
    cross, acts, logits = decode_each(
        model.decoder, tokens, encoded.states, reads, sites=sites.decoder, mesh=mesh
    )
    return BaseRun(mels, tokens, encoded.states, cross, encoded.acts, acts, logits)


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
) -> tuple[KeysValues, DecoderActivations, Float[Array, "batch read d_vocab"]]:
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

    def one(
        decoder: Decoder, given: tuple[Array, Array, Array]
    ) -> tuple[KeysValues, DecoderActivations, Array]:
        tokens, states, reads = given
        patterns = bool(sites & PATTERN_SITES)
        run = decoder.run(tokens, states, logits_at=reads, patterns=patterns)
        return run.cross, keep(run.decoder, sites), run.logits

    # Runs are not batched: that would transpose the keys and values of every layer.
    return on_parts(mesh, _one_after_the_other(one))(decoder, (tokens, states, reads))


def _one_after_the_other(one: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda shared, examples: jax.lax.map(lambda example: one(shared, example), examples)


def align(acts: DecoderActivations, alignment: Int[np.ndarray, " aligned"]) -> DecoderActivations:
    """Align a run's activations to the positions of a run of another length.

    Raises:
        InputError: there is a self-attention pattern, whose keys would have to be aligned too.
    """
    if acts.pattern is not None:
        raise InputError(
            "Self-attention patterns of runs of different length cannot be interchanged: choose "
            "another site."
        )
    fields: dict[str, Array | None] = {}
    for site, value in vars(acts).items():
        if value is None or site in ("cross_k", "cross_v"):
            fields[site] = value
        else:
            axis = value.ndim - len(layer_axes(site)) + position_axis(site)
            fields[site] = jnp.take(value, jnp.asarray(alignment), axis=axis)
    return DecoderActivations(**fields)
