"""What `plot()` draws of each result, and what a notebook shows of it."""

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.errors import InputError
from jaxasr_interp.generation.transcribe import Transcript
from jaxasr_interp.lens.encoder import EncoderLens
from jaxasr_interp.lens.logit import LogitLens
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.probes import ProbeReport, Probes, report_of
from jaxasr_interp.report.plots import (
    axis_labels,
    plot_encoder_lens,
    plot_lens,
    plot_lens_heads,
    plot_probes,
    plot_sweep,
    plot_text_sweep,
    plot_transcript,
    recovery,
)
from jaxasr_interp.report.plots.figure import png
from jaxasr_interp.report.tables import (
    encoder_lens_table,
    lens_heads_table,
    lens_table,
    probe_table,
    sweep_table,
    text_sweep_table,
    window_labels,
)
from jaxasr_interp.speech.tokenizer import Tokenizer

_LETTERS = 110
_HTML = '<pre style="line-height:normal">{code}</pre>'


def html_of(result: Any) -> str:
    """Return the tables of a result and, where it has one, its picture, as HTML."""
    console = Console(file=io.StringIO(), record=True, width=_LETTERS, force_jupyter=False)
    for table in tables_of(result):
        console.print(table)
    tables = console.export_html(inline_styles=True, code_format=_HTML)
    try:
        picture = base64.b64encode(png(figure_of(result))).decode()
    except InputError:
        return tables
    return f'{tables}<img style="max-width:100%" src="data:image/png;base64,{picture}">'


@functools.singledispatch
def figure_of(result: Any, title: str = "") -> Any:
    """Draw a result; raise `InputError` where there is nothing to draw."""
    raise InputError(f"No picture is known of a {type(result).__name__}.")


@functools.singledispatch
def tables_of(result: Any) -> Sequence[RenderableType]:
    """Make the tables of a result."""
    raise InputError(f"No table is known of a {type(result).__name__}.")


def labels_of(tokenizer: Tokenizer | None, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """Return the texts of tokens, or their numbers where there is no tokenizer."""
    return [str(t) for t in tokens] if tokenizer is None else axis_labels(tokenizer, tokens)


@figure_of.register
def _(result: SweepResult, title: str = "") -> matplotlib.figure.Figure:
    quantity = recovery(result, result.metrics[0])
    return plot_sweep(quantity, labels_of(result.tokenizer, result.tokens), title or _sites(result))


@tables_of.register
def _(result: SweepResult) -> list[RenderableType]:
    labels = window_labels(result.plan, labels_of(result.tokenizer, result.tokens), ())
    tables = []
    for i, metric in enumerate(result.metrics):
        ends = f": clean {result.clean[i]:.3f}, corrupted {result.corrupted[i]:.3f}"
        tables.append(sweep_table(recovery(result, metric), labels, ends))
    return tables


def _sites(result: SweepResult) -> str:
    sites = ", ".join(result.plan.component_names)
    return f"{result.direction.replace('_', ' ')}: {result.plan.stack} {sites}"


@figure_of.register
def _(result: LogitLens, title: str = "") -> matplotlib.figure.Figure:
    title = title or f"logit lens of {result.site}"
    if "head" in result.axes:
        return plot_lens_heads(result, title)
    if result.tokenizer is None:
        raise InputError("The model of this lens has no tokenizer: its tokens have no text.")
    return plot_lens(result, result.tokenizer, None, title)


@tables_of.register
def _(result: LogitLens) -> list[RenderableType]:
    if "head" in result.axes:
        return [lens_heads_table(result)]
    if result.tokenizer is None:
        return [Text(str(result))]
    return [lens_table(result, result.tokenizer)]


@figure_of.register
def _(result: EncoderLens, title: str = "") -> matplotlib.figure.Figure:
    return plot_encoder_lens(result, title or "encoder lens")


@tables_of.register
def _(result: EncoderLens) -> list[RenderableType]:
    return [encoder_lens_table(result.to_dataset())]


@figure_of.register
def _(result: TextSweep, title: str = "") -> matplotlib.figure.Figure:
    some = result.interventions[1:]
    changed = np.array([result.rate(i + 1, "unedited") for i in range(len(some))])
    title = title or f"{len(result.clips)} clips: each component and the text that it changes"
    figure = plot_text_sweep(changed, some, "word error rate against the unedited text", title)
    if figure is None:
        raise InputError("No picture is known of interventions on several components.")
    return figure


@tables_of.register
def _(result: TextSweep) -> list[RenderableType]:
    return [text_sweep_table(result)]


@figure_of.register
def _(result: Transcript, title: str = "") -> matplotlib.figure.Figure:
    words = [word for segment in result.segments for word in segment.words]
    spoken = [(one.text, one.start, one.end) for one in words or result.segments]
    if not spoken:
        raise InputError("The transcript has no times to draw: transcribe(…, times=True).")
    return plot_transcript(spoken, title or f"{'words' if words else 'segments'} in time")


@tables_of.register
def _(result: Transcript) -> list[RenderableType]:
    # What is said may have brackets, in which rich reads its own marks.
    text = Text(result.text)
    table = Table("start", "end", "text", title=text, title_justify="left")
    for segment in result.segments:
        table.add_row(f"{segment.start:.2f}", f"{segment.end:.2f}", Text(segment.text))
    return [table if result.segments else text]


@figure_of.register
def _(result: ProbeReport, title: str = "") -> matplotlib.figure.Figure:
    return plot_probes(result, title or f"probes of {result.probes.target.name}")


@tables_of.register
def _(result: ProbeReport) -> list[RenderableType]:
    return [probe_table(result.probes.target.name, result)]


@figure_of.register
def _(result: Probes, title: str = "") -> matplotlib.figure.Figure:
    return figure_of(report_of(result), title)


@tables_of.register
def _(result: Probes) -> list[RenderableType]:
    return list(tables_of(report_of(result)))
