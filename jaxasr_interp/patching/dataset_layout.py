"""The store of a data-set sweep: its arrays, and what is known before anything runs."""

import dataclasses
import json
from typing import Any

import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import require_tokenizer
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.dataset_work import DatasetWork
from jaxasr_interp.patching.questions import Question
from jaxasr_interp.runtime.slot_store import Layout
from jaxasr_interp.runtime.store import provenance
from jaxasr_interp.speech.clips import Clips
from jaxasr_interp.speech.positions import FRAMES_PER_SECOND
from jaxasr_interp.speech.tokenizer import Tokenizer

DATASET_SWEEP = "data-set sweep"
"""The kind of work whose results the store holds."""


def dataset_layout(work: DatasetWork, table: Clips, options: DatasetOptions) -> Layout:
    """Return the layout of a sweep's store.

    Raises:
        InputError: a column of the table has the name of an array of ours.
    """
    plan = work.grids.plan(work.grids.shape(work.questions[0]))
    columns = {
        name: [table.rows[question.clip][name] for question in work.questions]
        for name in table.columns
    }
    tokenizer, most = require_tokenizer(work.model), work.axes["pos"]
    windows = [work.grids.windows(question) for question in work.questions]
    longest = max(windows, key=len)
    labels = np.full((len(windows), most), "", "T")
    for row, question, some in zip(labels, work.questions, windows, strict=True):
        for i, (start, stop) in enumerate(some):
            row[i] = _label(tokenizer, question, start, stop, timed=work.grids.sites.timed)
    known = {
        "metric": (("metric",), np.asarray(work.grids.metrics, "T")),
        "alpha": (("alpha",), np.asarray(plan.alphas)),
        "component": (("component",), np.asarray(plan.component_names, "T")),
        "layer": (("layer",), np.asarray([layer or 0 for layer in plan.layers])),
        "pos": (("pos",), np.asarray([start for start, _ in longest])),
        "pos_stop": (("pos",), np.asarray([stop for _, stop in longest])),
        "length": (("clip",), np.asarray([len(some) for some in windows])),
        "prompt": (("clip",), np.asarray([len(one.text.prompt) for one in work.questions])),
        "asked_word": (("clip",), np.asarray([one.word for one in work.questions], "T")),
        "target_token": (("clip",), np.asarray([one.target for one in work.questions])),
    }
    if options.reference == "noise":
        seeds = [work.pairs.noise_seed(question.clip) for question in work.questions]
        known["noise_seed"] = ("clip",), np.asarray(seeds)
    if work.grids.sites.timed:
        known["seconds"] = ("pos",), np.asarray([a / FRAMES_PER_SECOND for a, _ in longest])
        known["heard"] = ("clip", "pos"), labels
    else:
        known["token"] = ("clip", "pos"), labels
        if options.times:
            spans = np.full((*labels.shape, 2), np.nan)
            for row, question, some in zip(spans, work.questions, windows, strict=True):
                row[: len(some)] = [_seconds(question, start, stop) for start, stop in some]
            known["token_start"], known["token_stop"] = (
                (("clip", "pos"), spans[..., end]) for end in (0, 1)
            )
    if work.grids.sites.timed or options.times:
        asked = np.asarray([one.seconds or (np.nan, np.nan) for one in work.questions])
        known["word_start"], known["word_stop"] = (("clip",), asked[:, 0]), (("clip",), asked[:, 1])
    for name, values in columns.items():
        if name in {*known, *work.variables, "done", "clip"}:
            raise InputError(f"The column {name!r} has the name of an array of ours: rename it.")
        known[name] = ("clip",), np.asarray(values, "T")
    axes = {"clip", *work.axes}
    return Layout(
        kind=DATASET_SWEEP,
        rows=len(work.questions),
        rows_per_chunk=1,
        variables=work.variables,
        known={name: (over, v) for name, (over, v) in known.items() if axes.issuperset(over)},
        attributes=_attributes(work, options),
    )


def _label(tokenizer: Tokenizer, question: Question, start: int, stop: int, *, timed: bool) -> str:
    """Return the text of a window: its tokens, or the words that are said in it."""
    if not timed:
        return "".join(tokenizer.label(token) for token in question.tokens[start:stop])
    said = [w.text for w in question.text.words if w.frames[0] < stop and start < w.frames[1]]
    return " ".join(said)


def _seconds(question: Question, start: int, stop: int) -> tuple[float, float]:
    """Return when the words of some tokens are said; NaN if they are of no word."""
    said = [w.seconds for w in question.text.words if w.tokens[0] < stop and start < w.tokens[1]]
    return (said[0][0], said[-1][1]) if said else (np.nan, np.nan)


def _attributes(work: DatasetWork, options: DatasetOptions) -> dict[str, Any]:
    """Return the attributes of the store; all processes that make it make the same."""
    origin = {name: value for name, value in provenance(work.model).items() if name != "created"}
    return {
        **origin,
        "stack": work.grids.sites.stack,
        "position": "frame" if work.grids.sites.timed else "token",
        "options": json.dumps(dataclasses.asdict(options)),
    }
