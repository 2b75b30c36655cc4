"""What a sweep keeps of the runs that it starts from: the patched run, and the one that gives the
values."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.sites import (
    SITES,
    DecoderActivations,
    EncoderActivations,
    Stack,
    layer_axes,
    position_axis,
)
from jaxasr_interp.pytree import pytree_dataclass, replace

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


def for_each_run(f: Callable[..., Any], *runs: Any) -> Any:
    """Do `jax.vmap(f)(*runs)`; a single run gets no batch axis.

    Batching makes every slice of a layer a gather, and every update a scatter, which compilers
    treat worse.
    """
    if len(jax.tree.leaves(runs)[0]) > 1:
        return jax.vmap(f)(*runs)
    single = f(*jax.tree.map(lambda leaf: leaf[0], runs))
    return jax.tree.map(lambda leaf: leaf[None], single)


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
