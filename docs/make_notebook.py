"""Make `tour.ipynb`: the README's blocks in their order, each with cells that show its results.

python docs/make_notebook.py
"""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
HEAD = """# A tour of jaxasr-interp

The blocks of the README, and what they find. `clip.flac` and `other.flac` are recordings of the
same words, `clips.tsv` is a table of recordings (columns `path`, `lang`, `gender`, `speaker`,
`text`, `word_class`).
"""
SHOWN = {
    "lens = ji.logit_lens(model, run)  #": ["lens", "lens.plot()"],
    "result = ji.activation_patching(": [
        "result",
        """with ji.progress() as on_progress:
    result = ji.activation_patching(
        model,
        plan,
        clean=ji.Utterance(mel, jnp.asarray(tokens)),
        corrupted=ji.Utterance(other_mel, jnp.asarray(tokens)),
        metric=ji.metrics.log_prob(token),
        on_progress=on_progress,
    )
result.plot()""",
    ],
    "swept = ji.ablation_sweep(": [
        "swept",
        "depths",
        "ji.transcribe(model, audio, times=True)",
    ],
    "fit = ji.fit_probes(": ['fit["gender"]', "run", "scores"],
}
"""What is shown behind the block that has a piece of code."""


def blocks() -> list[str]:
    """The README's blocks of Python."""
    text = (DOCS.parent / "README.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)\n```", text, re.MULTILINE | re.DOTALL)


def cells() -> list[tuple[str, str]]:
    """Kind and content of each cell."""
    made = [("markdown", HEAD)]
    for block in blocks():
        made.append(("code", block.rstrip()))
        for piece, shown in SHOWN.items():
            made += [("code", code) for code in shown if piece in block]
    return made


def notebook() -> dict[str, Any]:
    """The notebook, without outputs."""
    of_code = {"execution_count": None, "outputs": []}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [
            {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": content}
            | (of_code if kind == "code" else {})
            for number, (kind, content) in enumerate(cells())
        ],
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text() -> str:
    """The content of the file."""
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (DOCS / "tour.ipynb").write_text(text(), "utf-8")
