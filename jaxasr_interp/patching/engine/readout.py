"""Reading a sweep's metrics: the last layer's rest and the logits of the rows that are read."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.model.edits import untouched
from jaxasr_interp.model.whisper import Decoder, KeysValues
from jaxasr_interp.patching.engine.decoder import Reached
from jaxasr_interp.patching.engine.inject import at_layer
from jaxasr_interp.patching.metrics import Metric
from jaxasr_interp.pytree import pytree_dataclass, static


@pytree_dataclass
class Reads:
    """The positions that some metrics read, and which of them each one wants.

    Attributes:
        pos: positions, each once for every way in which a metric names it.
        wanted: for each metric indices into `pos`.
    """

    pos: Int[Array, " read"]
    wanted: tuple[tuple[int, ...], ...] = static()

    @classmethod
    def of(cls, metrics: Sequence[Metric], n_tokens: int) -> "Reads":
        """Collect what the metrics read of a run of `n_tokens`.

        Negative positions stay apart from positive ones: which index a metric wants does not
        depend on the length, so runs of another length need no other program.
        """
        rows = [range(n_tokens) if one.rows is None else one.rows for one in metrics]
        named = sorted({row for some in rows for row in some})
        wanted = tuple(tuple(named.index(row) for row in some) for some in rows)
        return cls(jnp.asarray([row % n_tokens for row in named], jnp.int32), wanted)


def evaluate(
    metrics: tuple[Metric, ...],
    reads: Reads,
    logits: Float[Array, "read d_vocab"],
    clean_logits: Float[Array, "read d_vocab"],
) -> Float[Array, " metric"]:
    """Every metric of one run."""
    values = []
    for one, wanted in zip(metrics, reads.wanted, strict=True):
        if wanted == tuple(range(len(logits))):
            values.append(one(logits, clean_logits))
        else:
            index = jnp.asarray(wanted, jnp.int32)
            values.append(one(logits[index], clean_logits[index]))
    return jnp.stack(values)


@jax.jit
def evaluate_runs(
    metrics: tuple[Metric, ...],
    reads: Reads,
    logits: Float[Array, "batch read d_vocab"],
    clean_logits: Float[Array, "batch read d_vocab"],
) -> Float[Array, "batch metric"]:
    """The metrics of unpatched runs, each with metrics of its own."""
    return jax.vmap(evaluate, in_axes=(0, None, 0, 0))(metrics, reads, logits, clean_logits)


@functools.partial(jax.jit, static_argnames="batch")
def read(
    decoder: Decoder,
    cross: KeysValues,
    reached: tuple[Reached, ...],
    past: tuple[Bool[Array, ""], ...],
    metrics: tuple[Metric, ...],
    reads: Reads,
    clean_logits: Float[Array, "batch read d_vocab"],
    *,
    batch: int,
) -> list[Float[Array, "batch patch metric"]]:
    """Finish the last layer for the rows that are read, and evaluate the metrics.

    The unembedding is the largest matrix: rows of several chunks share one pass over it.

    Args:
        decoder: the decoder.
        cross: cross-attention keys and values of the runs that are patched.
        reached: from `propagate`, for several chunks of equal size.
        past: for each chunk, whether its rows come out of the last layer already.
        metrics: with a leading axis for the runs.
        reads: what they read.
        clean_logits: what they compare with.
        batch: how many patches' logits are held at once.

    Returns:
        Every metric of every patch, for each chunk.
    """

    def one(
        cross: KeysValues, reached: tuple[Reached, ...], metrics: tuple[Metric, ...], clean: Array
    ) -> list[Array]:
        together = jax.tree.map(lambda *chunks: jnp.concatenate(chunks), *reached)
        given = jnp.repeat(jnp.stack(past), len(reached[0].resid))
        rows = _finish(decoder, cross, together, given)

        def metrics_of(rows: Float[Array, "read d_model"]) -> Array:
            return evaluate(metrics, reads, decoder.unembed(rows)[0], clean)

        if len(rows) <= batch:
            values = jax.vmap(metrics_of)(rows)
        else:
            values = jax.lax.map(metrics_of, rows, batch_size=batch)
        return jnp.split(values, len(reached))

    return jax.vmap(one)(cross, reached, metrics, clean_logits)


def _finish(
    decoder: Decoder, cross: KeysValues, reached: Reached, past: Bool[Array, " patch"]
) -> Float[Array, "patch read d_model"]:
    """The last layer's `resid_post`, where the rows do not hold it already."""
    last = jnp.asarray(decoder.n_layers - 1, jnp.int32)
    block, tap = at_layer(decoder.blocks, last), untouched()
    rows = reached.resid.reshape(-1, reached.resid.shape[-1])
    attn_out = block.attn.output(tap, reached.z.reshape(-1, *reached.z.shape[2:]))
    finished = block.finish(tap, rows, attn_out, at_layer(cross, last))
    return jnp.where(past[:, None, None], reached.resid, finished.reshape(reached.resid.shape))
