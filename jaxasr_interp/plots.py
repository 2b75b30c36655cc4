"""Pictures: layers upwards, tokens written along the bottom."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxasr_interp.lens import LogitLens
from jaxasr_interp.patching import SweepResult
from jaxasr_interp.tokens import Tokenizer

_INK = "#222222"
_WORTH_WRITING = 0.03
_SHORT = {"<|startoftranscript|>": "‹start›", "<|notimestamps|>": "‹no times›"}


def axis_labels(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """What is written on an axis for some tokens: their text, a word's leading space left out."""
    return [tokenizer.label(int(token)).strip() or "␣" for token in tokens]


def plot_sweep(
    result: SweepResult, metric: str, token_labels: Sequence[str], title: str, path: Path
) -> Path:
    """Draw how much of one metric each patch recovers.

    Args:
        result: from `activation_patching`.
        metric: name of the metric to draw.
        token_labels: text of every token of the run.
        title: written above.
        path: PNG to write.

    Returns:
        The path.
    """
    values = result.recovered[result.metrics.index(metric)]
    labels = [token_labels[pos] for pos in result.plan.positions]
    limit = max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    figure, axes = _canvas(values, labels, result.plan.layers)
    image = axes.imshow(
        values, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        if np.abs(value) >= _WORTH_WRITING:
            colour = "white" if np.abs(value) > 0.6 * limit else _INK
            axes.text(
                column, row, f"{value:.0%}", ha="center", va="center", fontsize=8, color=colour
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label(f"share of {metric} recovered")
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(f"token whose {result.plan.component_names[0]} is taken from the clean run")
    return _save(figure, path)


def plot_lens(
    lens: LogitLens, tokenizer: Tokenizer, token_labels: Sequence[str], title: str, path: Path
) -> Path:
    """Draw the token each layer would say next, shaded by its probability.

    A frame marks the saturation layer, from which the top token stays the final one.

    Args:
        lens: from `logit_lens`.
        tokenizer: writes the tokens in the cells.
        token_labels: text of every token of the run.
        title: written above.
        path: PNG to write.

    Returns:
        The path.
    """
    from matplotlib.patches import Rectangle

    top = np.asarray(lens.top_tokens)[:, :, 0]
    probability = np.exp(np.asarray(lens.top_log_probs)[:, :, 0])
    figure, axes = _canvas(probability, token_labels, range(len(top)))
    image = axes.imshow(probability, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for layer, row in enumerate(top):
        for pos, label in enumerate(axis_labels(tokenizer, row)):
            colour = "white" if probability[layer, pos] > 0.6 else _INK
            text = _shorten(label, 11)
            axes.text(pos, layer, text, ha="center", va="center", fontsize=7, color=colour)
    for pos, layer in enumerate(np.asarray(lens.saturation_layer)):
        cell = (pos - 0.5, int(layer) - 0.5)
        axes.add_patch(Rectangle(cell, 1, 1, fill=False, edgecolor="#d1495b", linewidth=1.5))
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("probability of the top token")
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("token the decoder has just read (framed: saturation layer)")
    return _save(figure, path)


def _canvas(values: Float[np.ndarray, "layer pos"], labels: Sequence[str], layers: Sequence[int]):
    import matplotlib.figure

    rows, columns = values.shape
    size = (3.0 + 0.72 * columns, 2.2 + 0.42 * rows)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    plain = [_shorten(label, 18).replace("$", r"\$") for label in labels]
    axes.set_xticks(range(columns), plain, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(rows), [str(layer) for layer in layers], fontsize=9)
    axes.set_ylabel("layer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _shorten(text: str, longest: int) -> str:
    text = _SHORT.get(text, text).replace("<|", "‹").replace("|>", "›")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=130)
    partial.replace(path)
    return path
