"""Linear probes: what activations know about labels."""

from jaxasr_interp.probes.fit import STRENGTHS, fit_probes
from jaxasr_interp.probes.result import Probes

__all__ = ["STRENGTHS", "Probes", "fit_probes"]
