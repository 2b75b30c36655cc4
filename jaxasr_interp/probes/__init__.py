"""Linear probes: how well labels can be read from activations."""

from jaxasr_interp.probes.fit import fit_probes
from jaxasr_interp.probes.options import FitOptions
from jaxasr_interp.probes.report import ProbeReport, probe_store, report_of
from jaxasr_interp.probes.result import Probes
from jaxasr_interp.probes.saved import load_probes, save_probes
from jaxasr_interp.probes.scores import Scores, score_probes, selectivity

__all__ = [
    "FitOptions",
    "ProbeReport",
    "Probes",
    "Scores",
    "fit_probes",
    "load_probes",
    "probe_store",
    "report_of",
    "save_probes",
    "score_probes",
    "selectivity",
]
