"""Patching metrics: pure functions from a run's logits to one number.

A metric is called as `metric(logits, clean_logits)` with the positions that it names in `rows`
(`None`: all positions), so that the engine need not unembed the others. Metrics are pytrees:
other tokens do not recompile a sweep.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.edits import check_parameters, traced_values_named
from jaxasr_interp.pytree import pytree_dataclass, static

type Metric = LogProb | LogitDiff | Rank | Entropy | KL | CrossEntropy | Custom
type MetricLike = Metric | Callable[[Array], Array]
type Rows = tuple[int, ...] | None


@pytree_dataclass
class LogProb:
    """Log-probability `log softmax(logits[pos])[token]`, in nats."""

    token: Int[Array, ""]
    rows: Rows = static(default=(-1,))
    name: str = static(default="log_prob")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the metric on the logits of its row."""
        return logits[0, self.token] - jax.nn.logsumexp(logits[0])


@pytree_dataclass
class LogitDiff:
    """Logit difference `logits[pos, token] - logits[pos, other]`."""

    token: Int[Array, ""]
    other: Int[Array, ""]
    rows: Rows = static(default=(-1,))
    name: str = static(default="logit_diff")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the metric on the logits of its row."""
        return logits[0, self.token] - logits[0, self.other]


@pytree_dataclass
class Rank:
    """Number of tokens with a higher logit than `token` at `pos`; 0 for the top token."""

    token: Int[Array, ""]
    rows: Rows = static(default=(-1,))
    name: str = static(default="rank")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the metric on the logits of its row."""
        return (logits[0] > logits[0, self.token]).sum(dtype=logits.dtype)


@pytree_dataclass
class Entropy:
    """Entropy `-Σ p log p` of the next-token distribution at `pos`, in nats."""

    rows: Rows = static(default=(-1,))
    name: str = static(default="entropy")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the metric on the logits of its row."""
        log_p = jax.nn.log_softmax(logits[0])
        return -(jnp.exp(log_p) * log_p).sum()


@pytree_dataclass
class KL:
    """KL divergence `KL(p_clean ‖ p)` summed over the rows, in nats."""

    rows: Rows = static(default=(-1,))
    name: str = static(default="kl")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the metric on the logits of its rows."""
        log_clean = jax.nn.log_softmax(clean_logits)
        return (jnp.exp(log_clean) * (log_clean - jax.nn.log_softmax(logits))).sum()


@pytree_dataclass
class CrossEntropy:
    """Cross-entropy: `-log p(target)` averaged over consecutive positions, in nats per token."""

    targets: Int[Array, " rows"]
    rows: Rows = static()
    name: str = static(default="cross_entropy")

    def __call__(
        self, logits: Float[Array, "rows d_vocab"], clean_logits: Float[Array, "rows d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the metric on the logits of its rows."""
        of_targets = jnp.take_along_axis(logits, self.targets[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - of_targets).mean()


@pytree_dataclass
class Custom:
    """A user's own traced function of the logits of some or all positions."""

    function: Callable[[Float[Array, "pos d_vocab"]], Float[Array, ""]] = static()
    name: str = static(default="custom")
    rows: Rows = static(default=None)

    def __call__(
        self, logits: Float[Array, "pos d_vocab"], clean_logits: Float[Array, "pos d_vocab"]
    ) -> Float[Array, ""]:
        """Evaluate the function on the logits of the positions in `rows`."""
        return self.function(logits)


@pytree_dataclass
class MetricPositions:
    """The positions that some metrics read, and which of them each metric needs.

    Attributes:
        pos: positions; one that is named both from the start and from the end comes twice.
        wanted: for each metric, indices into `pos`.
    """

    pos: Int[Array, "*batch read"] | Int[np.ndarray, "*batch read"]
    wanted: tuple[tuple[int, ...], ...] = static()

    @property
    def count(self) -> int:
        """Number of positions of a run that are read."""
        return self.pos.shape[-1]

    @classmethod
    def of(cls, metrics: Sequence[Metric], n_tokens: int) -> "MetricPositions":
        """Collect the positions that the metrics read in a run of `n_tokens` tokens.

        Negative positions are kept apart from positive ones. So the indices of a metric do not
        depend on the length, and runs of another length need no other program.
        """
        rows = [range(n_tokens) if one.rows is None else one.rows for one in metrics]
        named = sorted({row for some in rows for row in some})
        wanted = tuple(tuple(named.index(row) for row in some) for some in rows)
        return cls(np.asarray([row % n_tokens for row in named], np.int32), wanted)


def log_prob(token: int, pos: int = -1, name: str = "log_prob") -> LogProb:
    """Make the metric log-probability of `token` as the successor of position `pos`."""
    return LogProb(jnp.asarray(token, jnp.int32), (pos,), name)


def logit_diff(token: int, other: int, pos: int = -1, name: str = "logit_diff") -> LogitDiff:
    """Make the metric logit of `token` minus logit of `other` at position `pos`."""
    return LogitDiff(jnp.asarray(token, jnp.int32), jnp.asarray(other, jnp.int32), (pos,), name)


def rank(token: int, pos: int = -1, name: str = "rank") -> Rank:
    """Make the metric number of tokens more probable than `token` at position `pos`."""
    return Rank(jnp.asarray(token, jnp.int32), (pos,), name)


def entropy(pos: int = -1, name: str = "entropy") -> Entropy:
    """Make the metric entropy of the next-token distribution at position `pos`."""
    return Entropy((pos,), name)


def kl(pos: int | None = -1) -> KL:
    """Make the metric KL divergence from the clean run at `pos`; `None` sums over all positions."""
    return KL(None, "kl_all") if pos is None else KL((pos,))


def cross_entropy(
    targets: Sequence[int] | Int[np.ndarray, " rows"] | Int[Array, " rows"], start: int
) -> CrossEntropy:
    """Make the metric mean `-log p(targets)`; `targets[i]` follows position `start + i`.

    Raises:
        InputError: there are no targets, or they go past the end of the run.
    """
    if not len(targets):
        raise InputError("There are no targets: give the transcript's tokens.")
    if start < 0 < start + len(targets):
        raise InputError(
            f"{len(targets)} targets from position {start} on go past the end: start earlier."
        )
    rows = tuple(range(start, start + len(targets)))
    return CrossEntropy(jnp.asarray(targets, jnp.int32), rows)


def custom(function: Callable[[Array], Array], name: str = "custom") -> Custom:
    """Make a metric from `function(logits [pos, d_vocab]) -> scalar`, of all positions.

    Values in the function's closure are constants of the compiled program: later changes to them
    have no effect.
    """
    return Custom(function, name)


def as_metrics(given: MetricLike | Sequence[MetricLike]) -> list[Metric]:
    """List metrics; a plain function of the logits becomes a `custom` one of its name.

    Raises:
        InputError: one is neither.
    """
    each = given if isinstance(given, list | tuple) else [given]
    return [_as_metric(one) for one in each]


def _as_metric(one: Any) -> Metric:
    if isinstance(one, LogProb | LogitDiff | Rank | Entropy | KL | CrossEntropy | Custom):
        return one
    if isinstance(one, str) or not callable(one) or one.__module__ == __name__:
        what = repr(one) if isinstance(one, str) else getattr(one, "__name__", type(one).__name__)
        raise InputError(
            f"The metric is {what}: make one, as in ji.metrics.kl(), or ji.metrics.custom(function)"
            " of the logits [pos, d_vocab]."
        )
    function: Any = one
    return custom(function, getattr(one, "__name__", "custom"))


def recovered(
    patched: Float[np.ndarray, "metric *cells"],
    clean: Float[np.ndarray, " metric"],
    corrupted: Float[np.ndarray, " metric"],
) -> Float[np.ndarray, "metric *cells"]:
    """Compute `(patched - corrupted) / (clean - corrupted)`; 0: corrupted run, 1: clean run.

    It is NaN where clean and corrupted are equal up to rounding: there is nothing to recover.
    """
    rounding = 16 * np.finfo(clean.dtype).eps
    alike = np.isclose(clean, corrupted, rtol=rounding, atol=rounding)
    span = np.where(alike, np.nan, clean - corrupted)
    span, start = (x.reshape(-1, *(1,) * (patched.ndim - 1)) for x in (span, corrupted))
    return (patched - start) / span


def check_metric(metric: Metric, n_tokens: int, d_vocab: int) -> None:
    """Raise `InputError` if the metric reads a position or token that the run does not have."""
    if metric.rows == ():
        raise InputError(f"Metric {metric.name} reads no position: give it one.")
    for row in metric.rows or ():
        if not -n_tokens <= row < n_tokens:
            raise InputError(
                f"Metric {metric.name} reads position {row} and the run has {n_tokens} positions."
            )
    for field in ("token", "other", "targets"):
        tokens = np.atleast_1d(np.asarray(getattr(metric, field, 0)))
        outside = tokens[(tokens < 0) | (tokens >= d_vocab)]
        if outside.size:
            raise InputError(
                f"Metric {metric.name} reads token {outside[0]}: the vocabulary has {d_vocab}."
            )
    if isinstance(metric, Custom):
        n_rows = n_tokens if metric.rows is None else len(metric.rows)
        logits = jax.ShapeDtypeStruct((n_rows, d_vocab), jnp.float32)
        check_parameters(metric.function, f"Metric {metric.name}", "logits")
        with traced_values_named(f"Metric {metric.name}"):
            value = jax.eval_shape(metric.function, logits)
        if getattr(value, "shape", None) != ():
            what = getattr(value, "shape", type(value).__name__)
            raise InputError(f"Metric {metric.name} gives {what}: expected a single number.")
