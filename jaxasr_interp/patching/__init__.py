"""Activation patching: plan a sweep, run only what its patches change, keep named results."""

from jaxasr_interp.patching.attribution import attribution_patching
from jaxasr_interp.patching.comparison import Agreement, agreement, verify_top
from jaxasr_interp.patching.plan import SweepPlan, plan_sweep
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.runs import Utterance
from jaxasr_interp.patching.sweep import activation_patching, activation_patching_batch

__all__ = [
    "Agreement",
    "SweepPlan",
    "SweepResult",
    "Utterance",
    "activation_patching",
    "activation_patching_batch",
    "agreement",
    "attribution_patching",
    "plan_sweep",
    "verify_top",
]
