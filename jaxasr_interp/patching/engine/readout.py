"""Reading a sweep's metrics from the last residual stream at the positions that they need."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.model.decoder import Decoder
from jaxasr_interp.patching.metrics import Metric, MetricPositions
from jaxasr_interp.patching.runs import for_each_run
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class MetricReadout:
    """What is read of every patched run.

    Attributes:
        metrics: the metrics.
        positions: where they are read.
        clean_logits: the clean run's logits there, which some metrics compare with.
    """

    metrics: tuple[Metric, ...]
    positions: MetricPositions
    clean_logits: Float[Array, "*batch read d_vocab"]

    def __call__(self, logits: Float[Array, "read d_vocab"]) -> Float[Array, " metric"]:
        """Every metric of one run."""
        values = []
        for one, wanted in zip(self.metrics, self.positions.wanted, strict=True):
            if wanted == tuple(range(len(logits))):
                values.append(one(logits, self.clean_logits))
            else:
                index = jnp.asarray(wanted, jnp.int32)
                values.append(one(logits[index], self.clean_logits[index]))
        return jnp.stack(values)


@jax.jit
def evaluate_runs(
    readouts: MetricReadout, logits: Float[Array, "batch read d_vocab"]
) -> Float[Array, "batch metric"]:
    """The metrics of unpatched runs, each with metrics of its own."""
    return jax.vmap(lambda readout, logits: readout(logits))(readouts, logits)


@functools.partial(jax.jit, static_argnames="batch_size")
def unembed_and_read(
    decoder: Decoder,
    resid: tuple[Float[Array, "batch patch read d_model"], ...],
    readouts: MetricReadout,
    *,
    batch_size: int,
) -> list[Float[Array, "batch patch metric"]]:
    """Unembed the rows that are read, and evaluate the metrics.

    The unembedding is the largest matrix: rows of several chunks share one pass over it.

    Args:
        decoder: the decoder.
        resid: the last layer's `resid_post` of several chunks of equal size.
        readouts: what is read, with a leading axis for the runs.
        batch_size: how many patches' logits are held at once.

    Returns:
        Every metric of every patch, for each chunk.
    """

    def one(resid: tuple[Array, ...], readout: MetricReadout) -> list[Array]:
        rows = jnp.concatenate(resid)

        def metrics_of(rows: Float[Array, "read d_model"]) -> Array:
            return readout(decoder.unembed(rows)[0])

        if len(rows) <= batch_size:
            values = jax.vmap(metrics_of)(rows)
        else:
            values = jax.lax.map(metrics_of, rows, batch_size=batch_size)
        return jnp.split(values, len(resid))

    if jax.default_backend() == "tpu":
        # Of runs in one batch the logits would be copied to other layouts, twice.
        return jax.lax.map(lambda run: one(*run), (resid, readouts))
    return for_each_run(one, resid, readouts)
