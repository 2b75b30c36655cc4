"""The encoder lens: the transcripts that the decoder generates from earlier encoder layers.

`text_k = decode(LayerNorm_final(resid after k layers))`. This is the DecoderLens of Langedijk et
al. 2023 (arXiv 2310.03686), applied to Whisper by Glazer et al. 2025 (arXiv 2508.15882).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.display import Displayed
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import GREEDY, Choice, Generated
from jaxasr_interp.generation.prompts import default_prompt
from jaxasr_interp.model.edits import identity
from jaxasr_interp.model.layers import LayerNorm
from jaxasr_interp.model.run import EncoderRun, decode, encode
from jaxasr_interp.model.whisper import Whisper, require_tokenizer
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.runtime.transforms import GENERATE_FIXED, host_only

if TYPE_CHECKING:
    import pandas
    import xarray

DEPTH_SITES = ("resid_pre", "resid_post")
"""The encoder activations that hold the residual stream at all depths."""


@dataclasses.dataclass(frozen=True)
class EncoderLens(Displayed):
    """The transcripts from every encoder depth; depth k is after k layers.

    Attributes:
        generated: the transcript from each depth.
        reference: tokens of the transcript whose probability is read at every depth.
        log_probs: natural log-probability of each reference token, given those before it.
        top_tokens: the most probable tokens at the position of each reference token.
        top_log_probs: log-probabilities of the top tokens.
        normed: whether the encoder's final LayerNorm was applied.
    """

    generated: tuple[Generated, ...]
    reference: tuple[int, ...]
    log_probs: Float[np.ndarray, "depth pos"]
    top_tokens: Int[np.ndarray, "depth pos rank"]
    top_log_probs: Float[np.ndarray, "depth pos rank"]
    normed: bool

    __repr__ = summary

    @property
    def texts(self) -> list[str]:
        """The text from each depth."""
        return [one.text.strip() for one in self.generated]

    def to_dataset(self, right: str | None = None, language: str = "en") -> "xarray.Dataset":
        """Return all values as arrays with named axes.

        Args:
            right: reference text for the word error rate; by default the text from full depth.
            language: code of the language.
        """
        import xarray

        from jaxasr_interp.evaluation.loops import is_loop
        from jaxasr_interp.evaluation.text_metrics import word_errors

        texts = self.texts
        against = texts[-1] if right is None else right
        rates = [word_errors(against, text, language).rate for text in texts]
        data = {
            "text": ("depth", texts),
            "wer": ("depth", rates),
            "loop": ("depth", [is_loop(text) for text in texts]),
            "tokens": ("depth", [len(one.tokens) for one in self.generated]),
            "mean_log_prob": ("depth", [one.mean_log_prob for one in self.generated]),
            "reference_log_prob": (("depth", "pos"), self.log_probs),
            "top_tokens": (("depth", "pos", "rank"), self.top_tokens),
            "top_log_probs": (("depth", "pos", "rank"), self.top_log_probs),
        }
        coordinates = {"depth": np.arange(len(texts)), "reference": ("pos", list(self.reference))}
        return xarray.Dataset(data, coordinates, {"normed": int(self.normed)})

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each depth."""
        return to_dataframe(self.to_dataset(), ("depth",))


@host_only(GENERATE_FIXED)
def encoder_lens(
    model: Whisper,
    clip: Float[Array, "n_mels mel_frame"] | EncoderRun,
    *,
    prompt: Sequence[int] | None = None,
    reference: Sequence[int] | None = None,
    norm: bool = True,
    top_k: int = 5,
    choice: Choice = GREEDY,
    memory: int | None = None,
) -> EncoderLens:
    """Transcribe one clip from every depth of the encoder, all depths in one batch.

    Args:
        model: a model with a tokenizer.
        clip: its spectrogram, or its encoder run with `DEPTH_SITES`.
        prompt: tokens to start from, by default the checkpoint's language and task, or
            `model.tokenizer.prompt()`.
        reference: tokens of the transcript whose probability is read at every depth, without
            prompt; by default the transcript from full depth.
        norm: apply the encoder's final LayerNorm, with which the decoder was trained.
        top_k: number of the most probable tokens to keep.
        choice: how tokens are chosen.
        memory: bytes that may be used in addition to the model; by default a quarter of the
            device's.

    Returns:
        Texts and probabilities from depth 0 (the input of the first layer) to the last layer.

    Raises:
        InputError: the spectrogram or prompt is wrong, the encoder run lacks a site, the reference
            has no tokens, or `top_k` is out of range.
    """
    if not 1 <= top_k <= model.config.d_vocab:
        raise InputError(f"top_k is {top_k}: expected 1 to {model.config.d_vocab}.")
    tokenizer = require_tokenizer(model)
    given = default_prompt(model) if prompt is None else list(prompt)
    run = clip if isinstance(clip, EncoderRun) else encode(model, clip, sites=DEPTH_SITES)
    if run.acts.resid_pre is None or run.acts.resid_post is None:
        raise InputError(f"The encoder run lacks a site of {DEPTH_SITES}: encode with these sites.")
    depths = jnp.concatenate([run.acts.resid_pre[:1], run.acts.resid_post])
    if norm:
        # The last depth has exactly the encoder states of the model.
        depths = _norm(model.encoder.final_norm, depths).at[-1].set(run.states)
    generated = generate_rows(
        model,
        depths,
        [[identity]] * len(depths),
        prompts=[given] * len(depths),
        choice=choice,
        memory=memory,
    )
    texts = tuple(row for (row,) in generated)
    own = texts[-1].tokens or (tokenizer.end_of_text,)
    asked = tuple(own if reference is None else reference)
    if not asked:
        raise InputError("There is no transcript to ask for: give the reference's tokens.")
    tokens, asked_for = [*given, *asked[:-1]], jnp.asarray(asked, jnp.int32)
    first = len(given) - 1
    read = [
        _read(decode(model, tokens, states, sites=()).logits[first:], asked_for, top_k)
        for states in depths
    ]
    log_probs, top_log_probs, top_tokens = (np.stack(x) for x in zip(*read, strict=True))
    return EncoderLens(texts, asked, log_probs, top_tokens, top_log_probs, norm)


@jax.jit
def _norm(
    final_norm: LayerNorm, depths: Float[Array, "depth frame d_model"]
) -> Float[Array, "depth frame d_model"]:
    return jax.vmap(final_norm)(depths)


@functools.partial(jax.jit, static_argnames="top_k")
def _read(
    logits: Float[Array, "pos d_vocab"], asked: Int[Array, " pos"], top_k: int
) -> tuple[Array, Array, Array]:
    log_probs = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_probs, asked[:, None], axis=1)[:, 0]
    top_log_probs, top_tokens = jax.lax.top_k(log_probs, top_k)
    return own, top_log_probs, top_tokens.astype(jnp.int32)
