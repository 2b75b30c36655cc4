"""Patching metrics: pure functions from a run's logits to one number.

A metric is called as `metric(logits, clean_logits)` with the rows it asks for in `rows` (`None`:
all positions), so an engine need not unembed the others. Metrics are pytrees: changing their tokens
does not recompile a sweep.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.pytree import pytree_dataclass, static

type Metric = LogProb | LogitDiff | KL | Custom


@pytree_dataclass
class LogProb:
    """`log softmax(logits[pos])[token]`."""

    token: Int[Array, ""]
    rows: tuple[int, ...] | None = static(default=(-1,))
    name: str = static(default="log_prob")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate on the rows asked for."""
        return jax.nn.log_softmax(logits[0])[self.token]


@pytree_dataclass
class LogitDiff:
    """`logits[pos, token] - logits[pos, other]`."""

    token: Int[Array, ""]
    other: Int[Array, ""]
    rows: tuple[int, ...] | None = static(default=(-1,))
    name: str = static(default="logit_diff")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate on the rows asked for."""
        return logits[0, self.token] - logits[0, self.other]


@pytree_dataclass
class KL:
    """`KL(p_clean ‖ p)` summed over the rows, in nats."""

    rows: tuple[int, ...] | None = static(default=(-1,))
    name: str = static(default="kl")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate on the rows asked for."""
        log_clean = jax.nn.log_softmax(clean_logits)
        return (jnp.exp(log_clean) * (log_clean - jax.nn.log_softmax(logits))).sum()


@pytree_dataclass
class Custom:
    """A user's own traced function of the logits of all positions."""

    function: Callable[[Float[Array, "pos d_vocab"]], Float[Array, ""]] = static()
    name: str = static(default="custom")
    rows: tuple[int, ...] | None = static(default=None)

    def __call__(
        self, logits: Float[Array, "pos d_vocab"], clean_logits: Float[Array, "pos d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate on all positions."""
        return self.function(logits)


def log_prob(token: int, pos: int = -1) -> LogProb:
    """Log-probability of `token` as the successor of position `pos`."""
    return LogProb(jnp.asarray(token, jnp.int32), (pos,))


def logit_diff(token: int, other: int, pos: int = -1) -> LogitDiff:
    """Logit of `token` minus logit of `other` at position `pos`."""
    return LogitDiff(jnp.asarray(token, jnp.int32), jnp.asarray(other, jnp.int32), (pos,))


def kl(pos: int | None = -1) -> KL:
    """KL divergence from the clean run's distribution at `pos`, or summed over all (`None`)."""
    return KL(None, "kl_all") if pos is None else KL((pos,))


def custom(function: Callable[[Array], Array], name: str = "custom") -> Custom:
    """A metric from `function(logits [pos, d_vocab]) -> scalar`."""
    return Custom(function, name)


def recovered(
    patched: Float[np.ndarray, "metric *cells"],
    clean: Float[np.ndarray, " metric"],
    corrupted: Float[np.ndarray, " metric"],
) -> Float[np.ndarray, "metric *cells"]:
    """`(patched - corrupted) / (clean - corrupted)`: 0 changes nothing, 1 restores the clean run.

    NaN where clean and corrupted are equal up to rounding: there is nothing to recover.
    """
    rounding = 16 * np.finfo(clean.dtype).eps
    alike = np.isclose(clean, corrupted, rtol=rounding, atol=rounding)
    span = np.where(alike, np.nan, clean - corrupted)
    span, start = (x.reshape(-1, *(1,) * (patched.ndim - 1)) for x in (span, corrupted))
    return (patched - start) / span


def check_metric(metric: Metric, n_tokens: int, d_vocab: int) -> None:
    """Raise `InputError` if the metric reads a position or token that the run does not have."""
    for row in metric.rows or ():
        if not -n_tokens <= row < n_tokens:
            raise InputError(
                f"Metric {metric.name} reads position {row} and the run has {n_tokens} positions."
            )
    for field in ("token", "other"):
        token = getattr(metric, field, None)
        if token is not None and not 0 <= int(token) < d_vocab:
            raise InputError(
                f"Metric {metric.name} reads token {int(token)}: the vocabulary has {d_vocab}."
            )
