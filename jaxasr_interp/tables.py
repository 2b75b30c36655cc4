"""Results as tables for the terminal."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from jaxasr_interp.lens import LogitLens
from jaxasr_interp.patching import SweepResult
from jaxasr_interp.plots import axis_labels
from jaxasr_interp.tokens import Tokenizer


def lens_table(lens: LogitLens, tokenizer: Tokenizer, tokens: Sequence[int]) -> Table:
    """One row for each token read: what each layer would say next, and how sure the last one is."""
    n_layers = len(lens.top_tokens)
    table = Table(
        title=f"logit lens: next token by layer (0-{n_layers - 1}), saturation layer, log-prob and "
        "entropy (nats) at the end",
        title_justify="left",
    )
    table.add_column("read")
    for layer in range(n_layers):
        table.add_column(str(layer))
    for name in ("sat.", "log p", "entr."):
        table.add_column(name, justify="right", no_wrap=True)
    top = np.asarray(lens.top_tokens)[:, :, 0]
    for pos, read in enumerate(axis_labels(tokenizer, tokens)):
        table.add_row(
            _plain(read),
            *(_plain(label) for label in axis_labels(tokenizer, top[:, pos])),
            str(int(lens.saturation_layer[pos])),
            f"{float(lens.target_log_prob[-1, pos]):.2f}",
            f"{float(lens.entropy[-1, pos]):.2f}",
        )
    return table


def sweep_table(result: SweepResult, token_labels: Sequence[str], most: int = 5) -> Table:
    """The cells that recover most of the first metric."""
    values = result.recovered[0]
    table = Table(
        title=f"{result.plan.component_names[0]}: patches that recover most of {result.metrics[0]} "
        f"(clean {result.clean[0]:.2f}, corrupted {result.corrupted[0]:.2f})",
        title_justify="left",
    )
    for name in ("layer", "position", "token", "recovered"):
        table.add_column(name, justify="left" if name == "token" else "right")
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None)[:most]
    for layer, column in zip(*np.unravel_index(order, values.shape), strict=True):
        pos = result.plan.positions[int(column)]
        table.add_row(
            str(result.plan.layers[int(layer)]),
            str(pos),
            _plain(token_labels[pos]),
            f"{values[layer, column]:.1%}",
        )
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
