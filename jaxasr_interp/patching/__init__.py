"""Activation patching: plan a sweep, run only what its patches change, keep named results."""

from jaxasr_interp.patching.plan import SweepPlan, plan_sweep
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import Utterance
from jaxasr_interp.patching.sweep import activation_patching, activation_patching_batch

__all__ = [
    "SweepPlan",
    "SweepResult",
    "Utterance",
    "activation_patching",
    "activation_patching_batch",
    "plan_sweep",
]
