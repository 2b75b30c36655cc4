"""Tables of results for the terminal."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group
from rich.table import Table

from jaxasr_interp.ablation.result import TextSweep
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.lens.direct import DirectLogitAttribution
from jaxasr_interp.lens.logit import LogitLens
from jaxasr_interp.patching.aggregate import top_cells
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.probes import ProbeReport
from jaxasr_interp.report.plots import Quantity, axis_labels, place
from jaxasr_interp.speech.tokenizer import Tokenizer

if TYPE_CHECKING:
    import xarray

_LONGEST_TEXT = 300
_MOST_HEADS, _MOST_COMPONENTS, _MOST_EDITS = 8, 12, 12


def lens_table(lens: LogitLens, tokenizer: Tokenizer, tokens: Sequence[int] | None = None) -> Table:
    """Make a row for each position: each layer's next token, and how sure the last layer is.

    Its first column has the token read there or, where `tokens` are not given, the one followed.
    """
    columns = len(lens.targets)
    top = np.asarray(lens.top_tokens)[..., 0].reshape(-1, columns)
    log_prob, entropy = (
        np.asarray(x).reshape(-1, columns)[-1] for x in (lens.target_log_prob, lens.entropy)
    )
    settled = lens.saturation_layer
    table = Table(
        title=f"{lens.site}: next token by layer (0-{len(top) - 1}), saturation "
        "layer, log-prob and entropy (nats) at the end",
        title_justify="left",
    )
    table.add_column("followed" if tokens is None else "read")
    for layer in range(len(top)):
        table.add_column(str(layer))
    for name in ("sat.", "log p", "entr."):
        table.add_column(name, justify="right", no_wrap=True)
    named = np.asarray(lens.targets) if tokens is None else tokens
    for pos, read in enumerate(axis_labels(tokenizer, named)):
        table.add_row(
            _plain(read),
            *(_plain(label) for label in axis_labels(tokenizer, top[:, pos])),
            "" if settled is None or settled[pos] == len(top) else str(int(settled[pos])),
            f"{log_prob[pos]:.2f}",
            f"{entropy[pos]:.2f}",
        )
    return table


def lens_heads_table(lens: LogitLens, start: int = 0) -> Table:
    """List the heads that give the model's own tokens the highest probability, from `start` on."""
    log_prob, rank = (np.asarray(x)[..., start:] for x in (lens.target_log_prob, lens.target_rank))
    mean = log_prob.mean(-1)
    table = Table(
        title=f"logit lens of {lens.site}: the token the model says", title_justify="left"
    )
    for name in ("layer", "head", "mean log p", "median rank", "on top"):
        table.add_column(name, justify="right")
    for cell in np.argsort(-mean, axis=None)[:_MOST_HEADS]:
        layer, head = map(int, np.unravel_index(cell, mean.shape))
        ranks = rank[layer, head]
        table.add_row(
            str(layer),
            str(head),
            f"{mean[layer, head]:.2f}",
            f"{np.median(ranks):.0f}",
            f"{(ranks == 0).mean():.0%}",
        )
    return table


def attribution_table(attribution: DirectLogitAttribution, start: int = 0) -> Table:
    """List the components and heads that add most to the next token's logit, from `start` on."""
    parts = {name: np.asarray(x) for name, x in attribution.by_component().items()}
    for site, heads in (
        ("attn", attribution.attn_heads),
        ("cross_attn", attribution.cross_attn_heads),
    ):
        for (layer, head), _ in np.ndenumerate(np.asarray(heads)[..., 0]):
            parts[f"{site} {layer}, head {head}"] = np.asarray(heads)[layer, head]
    mean = {name: float(part[start:].mean()) for name, part in parts.items()}
    total = float(np.asarray(attribution.logit)[start:].mean())
    table = Table(
        title=f"direct logit attribution: of the next token's mean logit {total:.2f}",
        title_justify="left",
    )
    for name in ("component", "mean", "least", "most"):
        table.add_column(name, justify="left" if name == "component" else "right")
    for name in sorted(mean, key=lambda name: -abs(mean[name]))[:_MOST_COMPONENTS]:
        part = parts[name][start:]
        table.add_row(name, *(f"{x:.2f}" for x in (mean[name], part.min(), part.max())))
    return table


def sweep_table(
    quantity: Quantity, labels: Sequence[str], baselines: str = "", most: int = 5
) -> Group:
    """List the cells with the largest numbers.

    Args:
        quantity: from `share` or `change`; changes count by their size, up or down.
        labels: the content of each window, from `window_labels`.
        baselines: values of the metric without patches, written after the title.
        most: number of cells.

    Returns:
        A title, and a row for each cell. Strengths, components, layers and positions have a column
        where there are several of them.
    """
    plan, values = quantity.plan, quantity.values
    named = ", ".join(plan.sites) if len(plan.components) > 1 else plan.component_names[0]
    table = Table()
    several = {
        "α": len(plan.alphas) > 1,
        "component": len(plan.components) > 1,
        "layer": plan.layers != (None,),
        "time" if plan.counts_frames else "position": len(plan.windows) > 1,
        "heard" if plan.counts_frames else "token": len(plan.windows) > 1,
    }
    shown = [name for name, wanted in several.items() if wanted]
    for name in shown:
        table.add_column(
            name, justify="left" if name in ("component", "token", "heard") else "right"
        )
    table.add_column("share" if quantity.unit == "share" else "change", justify="right")
    sizes = values if quantity.unit == "share" else np.abs(values)
    order = np.argsort(-np.nan_to_num(sizes, nan=-np.inf), axis=None, kind="stable")
    for cell in [cell for cell in order if np.isfinite(values.flat[cell])][:most]:
        alpha, component, layer, column = map(int, np.unravel_index(cell, values.shape))
        row = (
            f"{plan.alphas[alpha]:g}",
            plan.component_names[component],
            str(plan.layers[layer]),
            place(plan, plan.windows[column]),
            _plain(labels[column]),
        )
        kept = [text for text, wanted in zip(row, several.values(), strict=True) if wanted]
        table.add_row(*kept, quantity.text(float(values.flat[cell])))
    # A table would wrap its own title to its width.
    return Group(_plain(f"{named}: {quantity.label}{baselines}"), table)


def encoder_lens_table(dataset: "xarray.Dataset") -> Table:
    """Make a row for each depth: the reference's log-probability, errors, and the text."""
    table = Table(title="encoder lens: layers heard", title_justify="left")
    for name in ("depth", "log p", "WER", "loops", "text"):
        table.add_column(name, justify="left" if name == "text" else "right", overflow="fold")
    for depth in range(dataset.sizes["depth"]):
        row = dataset.isel(depth=depth)
        table.add_row(
            str(depth),
            f"{float(row.reference_log_prob.mean()):.2f}",
            f"{100 * float(row.wer):.0f}%",
            "yes" if row.loop else "",
            _plain(textwrap.shorten(str(row.text.item()), _LONGEST_TEXT, placeholder=" …")),
        )
    return table


def text_sweep_table(swept: TextSweep) -> Group:
    """List the edits that stop most loops; if there are none, those that change the text most."""
    looped = swept.loops[0]
    known = np.isfinite(swept.rate(0))
    table = Table()
    columns = ("edit", "changed", "loops", *(("resolved",) if looped.any() else ()))
    for name in (*columns, *(("WER",) if known else ())):
        table.add_column(name, justify="left" if name == "edit" else "right", overflow="fold")
    changed = np.array([swept.rate(i, "unedited") for i in range(len(swept.generated))])
    resolved = (~swept.loops[:, looped]).sum(1)
    wrong = np.array([swept.rate(i) for i in range(len(swept.generated))]) if known else changed
    order = np.lexsort((wrong, -resolved) if looped.any() else (-changed,))
    for i in [0, *(int(i) for i in order if i)][: _MOST_EDITS + 1]:
        row = [
            _plain(swept.interventions[i].text),
            f"{100 * changed[i]:.1f}%",
            f"{int(swept.loops[i].sum())} of {len(looped)}",
        ]
        if looped.any():
            row.append(f"{int(resolved[i])} of {int(looped.sum())}")
        if known:
            interval = swept.interval(i)
            low, high = 100 * interval.low, 100 * interval.high
            row.append(f"{100 * interval.estimate:.1f}% ({low:.1f}-{high:.1f})")
        table.add_row(*row)
    return Group("texts under each edit (word error rates; against the transcript with 95%)", table)


def aggregate_table(summary: "xarray.Dataset", most: int) -> Group:
    """List the cells of a data-set sweep's summary that recover most, with their intervals."""
    table = Table()
    axes = [str(axis) for axis in summary["mean"].dims]
    for axis in axes:
        right = axis in ("layer", "alpha")
        table.add_column(axis, justify="right" if right else "left", overflow="fold")
    for name in ("recovered", f"{100 * summary.attrs['level']:g}% interval", "questions"):
        table.add_column(name, justify="right")
    for cell in top_cells(summary, most):
        interval = f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}%"
        table.add_row(
            *(_plain(str(cell[axis])) for axis in axes),
            f"{100 * cell['mean']:.1f}%",
            interval,
            str(cell["questions"]),
        )
    return Group(f"mean recovered {summary.attrs['metric']} over questions", table)


def probe_table(name: str, report: ProbeReport) -> Group:
    """List the score of every layer with its interval, and the scores of every control."""
    score = report.scores[0]
    table = Table()
    table.add_column("layer", justify="right")
    for curve in report.curves:
        table.add_column(curve, justify="right")
    for layer in range(len(report.probes.l2_index)):
        cells = []
        for scores in report.curves.values():
            ends = (scores.estimate, scores.low, scores.high)
            estimate, low, high = (float(end[score][layer]) for end in ends)
            cells.append(f"{estimate:.3f} ({low:.3f}-{high:.3f})")
        table.add_row(f"{layer}{' *' if layer == report.best_layer else ''}", *cells)
    lines = ", ".join(f"{line} {scores[score]:.3f}" for line, scores in report.lines.items())
    named = score.replace("_", " ")
    return Group(
        _plain(f"{name} in {report.variable}: {named} (95%), without layers: {lines}"), table
    )


def window_labels(plan: SweepPlan, token_labels: Sequence[str], words: Sequence[Word]) -> list[str]:
    """Return the content of each window of a plan: its tokens, or the words said in its time."""
    if not plan.counts_frames:
        return [" ".join(token_labels[start:stop]) for start, stop in plan.windows]
    return [
        " ".join(word.text for word in words if word.frames[0] < stop and word.frames[1] > start)
        for start, stop in plan.windows
    ]


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
