"""Pictures of results, with layers from bottom to top and tokens or time from left to right."""

from jaxasr_interp.report.plots.ablation import plot_ablation
from jaxasr_interp.report.plots.aggregate import plot_aggregate
from jaxasr_interp.report.plots.attention import plot_attention
from jaxasr_interp.report.plots.attribution import plot_attribution, plot_attribution_heads
from jaxasr_interp.report.plots.canvas import FORMATS, axis_labels, save
from jaxasr_interp.report.plots.encoder_lens import plot_encoder_lens
from jaxasr_interp.report.plots.geometry import plot_similarity, plot_spectrum
from jaxasr_interp.report.plots.lens import plot_lens, plot_lens_heads
from jaxasr_interp.report.plots.probes import plot_probes
from jaxasr_interp.report.plots.quantity import Quantity, change, recovery, share
from jaxasr_interp.report.plots.sweep import place, plot_sweep
from jaxasr_interp.report.plots.text_sweep import plot_text_sweep
from jaxasr_interp.report.plots.timeline import plot_timeline
from jaxasr_interp.report.plots.transcript import plot_transcript
from jaxasr_interp.report.plots.tuned_lens import plot_tuned_lens

__all__ = [
    "FORMATS",
    "Quantity",
    "axis_labels",
    "change",
    "place",
    "plot_ablation",
    "plot_aggregate",
    "plot_attention",
    "plot_attribution",
    "plot_attribution_heads",
    "plot_encoder_lens",
    "plot_lens",
    "plot_lens_heads",
    "plot_probes",
    "plot_similarity",
    "plot_spectrum",
    "plot_sweep",
    "plot_text_sweep",
    "plot_timeline",
    "plot_transcript",
    "plot_tuned_lens",
    "recovery",
    "save",
    "share",
]
