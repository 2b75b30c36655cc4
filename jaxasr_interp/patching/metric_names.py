"""Metrics by name, made for a run and the token that is asked for after it."""

from collections.abc import Sequence

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching import metrics

METRICS = ("log_prob", "logit_diff", "rank", "entropy", "kl", "kl_all", "cross_entropy")
"""The names of metrics (see `ji.metrics`). `kl_all` and `cross_entropy` read every token."""


def make_metric(
    name: str, tokens: Sequence[int], prompt: int, asked: tuple[int, int]
) -> metrics.Metric:
    """Make a metric of the token that follows a run, or of the text up to and with it.

    Args:
        name: one of `METRICS`.
        tokens: tokens of the run.
        prompt: number of tokens of the prompt.
        asked: the token in question, and the one that it is compared with.

    Raises:
        InputError: there is no such metric.
    """
    target, other = asked
    match check_metric_name(name):
        case "log_prob":
            return metrics.log_prob(target)
        case "logit_diff":
            return metrics.logit_diff(target, other)
        case "rank":
            return metrics.rank(target)
        case "entropy":
            return metrics.entropy()
        case "kl":
            return metrics.kl()
        case "kl_all":
            return metrics.kl(None)
        case "cross_entropy":
            return metrics.cross_entropy((*tokens[prompt:], target), prompt - 1)
        case _:
            raise AssertionError(f"{name} is a metric that cannot be made")


def check_metric_name(name: str) -> str:
    """Return `name` if it is one of `METRICS`; raise `InputError` otherwise."""
    if name not in METRICS:
        raise InputError(f"Unknown metric {name!r}: choose one of {', '.join(METRICS)}.")
    return name
