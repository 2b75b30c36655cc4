"""The runs that a sweep starts from: what is patched, and where the values come from."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.run import encode_utterance
from jaxasr_interp.model.sites import (
    PATTERN_SITES,
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    layer_axes,
    position_axis,
)
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.pytree import pytree_dataclass, replace
from jaxasr_interp.speech.utterance import Utterance

_LARGE_OF_DECODER = {"cross_k", "cross_v", "result", "cross_result"}

CARRIED = ("resid_pre", "q", "k", "v", "resid_post")
"""What propagating changed rows takes from the run that is patched."""


@pytree_dataclass
class BaseRun:
    """One run of the model, as far as patched runs take something from it.

    Attributes:
        mel: what was heard.
        tokens: what was written.
        states: encoder states.
        cross: cross-attention keys and values of every layer.
        encoder: the encoder activations that were asked for.
        decoder: the decoder activations that were asked for.
        logits: at the positions that are read.
    """

    mel: Float[Array, "*batch n_mels mel_frame"]
    tokens: Int[Array, "*batch pos"]
    states: Float[Array, "*batch frame d_model"]
    cross: KeysValues
    encoder: EncoderActivations
    decoder: DecoderActivations
    logits: Float[Array, "*batch read d_vocab"]

    def only(self, sites: Iterable[str]) -> "BaseRun":
        """The same run with some of its activations: a program is given what it needs to know."""
        kept = [
            replace(acts, **dict.fromkeys(vars(acts).keys() - set(sites)))
            for acts in (self.encoder, self.decoder)
        ]
        return replace(self, encoder=kept[0], decoder=kept[1])

    def acts(self, stack: Stack) -> EncoderActivations | DecoderActivations:
        """The activations of one stack."""
        return self.encoder if stack == "encoder" else self.decoder


@dataclasses.dataclass(frozen=True)
class Sites:
    """Which activations of each stack a run keeps."""

    encoder: frozenset[str] = frozenset()
    decoder: frozenset[str] = frozenset()

    @classmethod
    def of(cls, stack: Stack, sites: Iterable[str]) -> "Sites":
        """Some sites of one stack."""
        return cls(**{stack: frozenset(sites)})


def kept_sites(stack: Stack, sites: frozenset[str]) -> Sites:
    """The activations that patches at `sites` need of a run: to start from, or as their source.

    Of the decoder all small ones are kept, so that sweeps of most sites share their programs.
    """
    if stack == "decoder":
        small = (site for site, axes in SITES[stack].items() if axes[-1] in ("d_model", "d_head"))
        return Sites(decoder=frozenset(small) - _LARGE_OF_DECODER | sites)
    # Windows of the final states start from the decoder's run, and from nothing of the encoder's.
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
    reads: Int[Array, " read"],
    states: Float[Array, "batch frame d_model"] | None = None,
) -> BaseRun:
    """BaseRun several utterances of equal length.

    Args:
        model: the model.
        utterances: what to run.
        sites: the activations to keep.
        reads: positions whose logits are kept.
        states: the encoder states, where they are known (no encoder activations are kept then).

    Returns:
        The runs, with a leading axis on everything.
    """
    acts = EncoderActivations()
    if states is None:
        # One clip at a time: attention over 1500 frames is the largest thing in memory.
        runs = [encode_utterance(model, one, sites.encoder) for one in utterances]
        encoded = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
        states, acts = encoded.states, encoded.acts
    mels = jnp.stack([one.mel for one in utterances])
    tokens = jnp.stack([jnp.asarray(one.tokens, jnp.int32) for one in utterances])
    return _decode(model, mels, tokens, states, acts, reads, sites.decoder)


@functools.partial(jax.jit, static_argnames="sites")
def _decode(
    model: Whisper,
    mels: Float[Array, "batch n_mels mel_frame"],
    tokens: Int[Array, "batch pos"],
    states: Float[Array, "batch frame d_model"],
    encoder_acts: EncoderActivations,
    reads: Int[Array, " read"],
    sites: frozenset[str],
) -> BaseRun:
    def one(given: tuple[Array, Array, Array, EncoderActivations]) -> BaseRun:
        mel, tokens, states, acts = given
        patterns = bool(sites & PATTERN_SITES)
        run = model.decode(tokens, states, logits_at=reads, patterns=patterns)
        kept = DecoderActivations(**{site: getattr(run.decoder, site) for site in sites})
        return BaseRun(mel, tokens, states, run.cross, acts, kept, run.logits)

    # One after the other: batched, the layers' keys and values would be transposed into place.
    return jax.lax.map(one, (mels, tokens, states, encoder_acts))


def align(acts: DecoderActivations, alignment: Int[np.ndarray, " aligned"]) -> DecoderActivations:
    """View a run's activations at the positions of a run of another length.

    Raises:
        InputError: there is a self-attention pattern, whose keys would need aligning too.
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
