"""The two runs of a sweep, and what is read from a patched one."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxasr_interp.edits import Edit, identity
from jaxasr_interp.metrics import Metric
from jaxasr_interp.model import Decoder, KeysValues
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class Utterance:
    """One run's input: what is heard and what has been written.

    Attributes:
        mel: log-mel spectrogram.
        tokens: prompt and text so far.
    """

    mel: Float[Array, "n_mels mel_frame"]
    tokens: Int[Array, " pos"]


@pytree_dataclass
class Prepared:
    """What every patch of a sweep shares.

    Attributes:
        tokens: of the corrupted run.
        cross: cross-attention keys and values of the corrupted run.
        source: the clean run's activation at the patched site.
        clean_logits: the clean run's logits.
        clean: the metrics of the clean run.
        corrupted: the metrics of the corrupted run.
    """

    tokens: Int[Array, " pos"]
    cross: KeysValues
    source: Float[Array, "layer pos *rest"]
    clean_logits: Float[Array, "pos d_vocab"]
    clean: Float[Array, " metric"]
    corrupted: Float[Array, " metric"]


@functools.partial(jax.jit, static_argnames="site")
def prepare(
    decoder: Decoder,
    *,
    clean_states: Float[Array, "frame d_model"],
    corrupted_states: Float[Array, "frame d_model"],
    clean_tokens: Int[Array, " pos"],
    corrupted_tokens: Int[Array, " pos"],
    metrics: tuple[Metric, ...],
    site: str,
) -> Prepared:
    """Run both utterances once and keep what the patched runs need."""
    resid, acts = decoder(clean_tokens, decoder.cross_keys_values(clean_states))
    clean_logits, _ = decoder.unembed(resid)
    cross = decoder.cross_keys_values(corrupted_states)
    corrupted = read_metrics(decoder, corrupted_tokens, cross, identity, metrics, clean_logits)
    return Prepared(
        tokens=corrupted_tokens,
        cross=cross,
        source=getattr(acts, site),
        clean_logits=clean_logits,
        clean=_evaluate(metrics, clean_logits, tuple(range(len(clean_tokens))), clean_logits),
        corrupted=corrupted,
    )


def read_metrics(
    decoder: Decoder,
    tokens: Int[Array, " pos"],
    cross: KeysValues,
    edit: Edit,
    metrics: tuple[Metric, ...],
    clean_logits: Float[Array, "pos d_vocab"],
) -> Float[Array, " metric"]:
    """Run the decoder under an edit and evaluate metrics, unembedding only the rows they read."""
    n = len(tokens)
    read = {row % n for one in metrics for row in (range(n) if one.rows is None else one.rows)}
    rows = tuple(sorted(read))
    resid, _ = decoder(tokens, cross, edit)
    logits, _ = decoder.unembed(resid[jnp.asarray(rows)], edit)
    return _evaluate(metrics, logits, rows, clean_logits)


def _evaluate(
    metrics: tuple[Metric, ...],
    logits: Float[Array, "rows d_vocab"],
    rows: tuple[int, ...],
    clean_logits: Float[Array, "pos d_vocab"],
) -> Float[Array, " metric"]:
    n = len(clean_logits)
    values = []
    for one in metrics:
        wanted = range(n) if one.rows is None else [row % n for row in one.rows]
        index = jnp.asarray([rows.index(row) for row in wanted])
        values.append(one(logits[index], clean_logits[jnp.asarray(list(wanted))]))
    return jnp.stack(values)
