"""Measurement of the invariants of sweeps on the user's own checkpoint and clips.

The metric is the log-probability, at the last position, of the token that the clean run finds most
probable there; errors are shares of the effect on it.
"""

import difflib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.run import decode, encode
from jaxasr_interp.model.sites import Stack
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.speech.tokenizer import Tokenizer
from jaxasr_interp.speech.utterance import Utterance
from jaxasr_interp.verification import invariants
from jaxasr_interp.verification.invariants import Case, Check
from jaxasr_interp.verification.sites import identity, minimal, site_groups

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Check", "verify", "verify_table"]

_STACKS: tuple[Stack, ...] = ("encoder", "decoder")
_LEAST_EFFECT = 1e-2

type Step = tuple[str, Callable[[], list[Check]]]


def verify(
    model: Whisper,
    clean: Utterance,
    corrupted: Utterance,
    *,
    cells: int = 4,
    seed: int = 0,
    memory: int | None = None,
    on_progress: Progress | None = None,
) -> list[Check]:
    """Measure the invariants of sweeps on a checkpoint and a pair of runs.

    Matrix products have the device's highest precision. On an accelerator one more check reports
    how much its default precision changes.

    Args:
        model: the model.
        clean: a run in which the model knows the next token.
        corrupted: a run with the same number of tokens in which the model predicts another next
            token, or none with confidence.
        cells: number of random patches at each site that are compared with whole runs; encoder
            sites, which take longest, get half as many.
        seed: seed of the random patches.
        memory: bytes that a sweep may use in addition to the model; by default those of its runs
            and 2 GiB.
        on_progress: called with the steps done, their number and the name of the next step.

    Returns:
        The checks; those of one invariant follow each other.

    Raises:
        InputError: the runs have fewer than two tokens or different lengths, their effect is too
            small to measure errors by, there are no cells, or the memory is too small for one
            patch.
    """
    checks: list[Check] = []
    with jax.default_matmul_precision("highest"):
        case = make_case(model, clean, corrupted, cells=cells, seed=seed, memory=memory)
        steps = _steps(case)
        for done, (name, measure) in enumerate(steps):
            if on_progress is not None:
                on_progress(done, len(steps), name)
            checks += measure()
    if on_progress is not None:
        on_progress(len(steps), len(steps), "done")
    return checks


def make_case(
    model: Whisper,
    clean: Utterance,
    corrupted: Utterance,
    *,
    cells: int = 4,
    seed: int = 0,
    memory: int | None = None,
) -> Case:
    """Check a pair of runs, and run both to find their next tokens and their effect.

    Args:
        model: see `verify`.
        clean: see `verify`.
        corrupted: see `verify`.
        cells: see `verify`.
        seed: see `verify`.
        memory: see `verify`.

    Returns:
        The case on which every invariant is measured.

    Raises:
        InputError: see `verify`.
    """
    if cells < 1:
        raise InputError(f"The number of cells is {cells}: expected at least 1.")
    if len(clean.tokens) < 2 or len(clean.tokens) != len(corrupted.tokens):
        raise InputError(
            f"The runs have {len(clean.tokens)} and {len(corrupted.tokens)} tokens: expected the "
            "same number, at least 2."
        )
    first, second = (
        np.asarray(decode(model, run.tokens, encode(model, run.mel, sites=()).states).logits[-1])
        for run in (clean, corrupted)
    )
    tops = int(first.argmax()), int(second.argmax())
    before, after = (float(row[tops[0]] - np.logaddexp.reduce(row)) for row in (first, second))
    effect = abs(before - after)
    if not effect >= _LEAST_EFFECT:
        raise InputError(
            f"The log-probability of the clean run's next token is {before:.3f}, and {after:.3f} "
            "in the corrupted run: give runs that differ in it, to measure errors by."
        )
    return Case(model, clean, corrupted, tops, effect, cells, seed, memory)


def verify_table(checks: Sequence[Check]) -> "Table":
    """Make a table with a row for each invariant and its largest error, and for each failure."""
    from rich.table import Table

    failed = sum(not check.passed for check in checks)
    verdict = (
        f"{failed} of {len(checks)} checks fail" if failed else f"all {len(checks)} checks hold"
    )
    table = Table(title=f"verify: {verdict}; errors are shares of the effect", title_justify="left")
    table.add_column("invariant")
    table.add_column("compared", overflow="fold")
    for name in ("error", "bound", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for _, some in itertools.groupby(checks, lambda check: (check.name, check.bound)):
        group = list(some)
        holding = [check for check in group if check.passed]
        if holding:
            worst = max(holding, key=lambda check: check.error)
            many = f"{len(holding)}, the worst: " if len(holding) > 1 else ""
            table.add_row(*_row(worst, many + worst.compares))
        for check in group:
            if not check.passed:
                table.add_row(*_row(check, check.compares), style="red")
    return table


def _row(check: Check, compares: str) -> tuple[str, ...]:
    verdict = "reported" if check.bound is None else "holds"
    bound = "" if check.bound is None else f"{check.bound:.0e}"
    return check.name, compares, f"{check.error:.1e}", bound, verdict if check.passed else "FAILS"


def text_to_tokens(tokenizer: Tokenizer | None, tokens: Sequence[int]) -> list[Check]:
    """Check that encoding a run's transcript again gives the tokens that the model generated.

    A text has several tokenisations, and a model may generate another one than the tokenizer's, so
    that this is only reported.
    """
    if tokenizer is None:
        return []
    generated = [token for token in tokens if tokenizer.is_text(token)]
    again = tokenizer.encode(tokenizer.decode(generated))
    blocks = difflib.SequenceMatcher(None, generated, again, autojunk=False).get_matching_blocks()
    differ = len(generated) - sum(block.size for block in blocks)
    share = differ / max(1, len(generated))
    compares = f"the transcript encoded again: {differ} of {len(generated)} tokens differ"
    merges = tokenizer.merges
    known = merges.state == "complete"
    rule = (
        f"{len(merges.pairs)} merges are those of the ids, {merges.restored} put back"
        if known
        else "a vocabulary of another build: its merges are taken as they are"
    )
    return [
        Check("text to tokens", compares, share, None),
        Check("merges", rule, float(not known), 0.0 if known else None),
    ]


def _steps(case: Case) -> list[Step]:
    """List the name and function of each measurement, in the order of the table."""
    tokens = np.asarray(case.clean.tokens).tolist()
    of_text = functools.partial(text_to_tokens, case.model.tokenizer, tokens)
    steps: list[Step] = [("text to tokens", of_text)]
    for name, measure in (("identity patch", identity), ("minimal = reference", minimal)):
        for stack in _STACKS:
            for sites in site_groups(case, stack):
                of_sites = functools.partial(measure, case, stack, sites)
                steps.append((f"{name}, {stack} {', '.join(sites)}", of_sites))
    others = {
        "methods agree": invariants.methods,
        "all-patch": invariants.all_patch,
        "causality": invariants.causality,
        "chunked = whole": invariants.chunking,
        "batch = single": invariants.batch,
        "precision": invariants.precision,
    }
    return steps + [(name, functools.partial(run, case)) for name, run in others.items()]
