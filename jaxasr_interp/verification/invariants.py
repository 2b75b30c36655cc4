"""Invariants of sweeps, which must hold for every model and clip, and their errors.

Every shortcut of the engine is compared with the slow computation, and every patch whose outcome is
known beforehand must have that outcome. Errors are shares of the effect, which is the change of the
metric between the two runs, or under the patches if that is larger.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxasr_interp.interventions.kinds import Noise
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.array_sizes import base_bytes
from jaxasr_interp.patching.metrics import LogProb, log_prob
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.planning import PlanOptions, plan_sweep
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.patching.sweep import (
    SweepOptions,
    activation_patching,
    activation_patching_batch,
)
from jaxasr_interp.speech.positions import Window
from jaxasr_interp.speech.utterance import Utterance

BOUNDS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.1}
"""The largest error between two ways to the same number, by the dtype of the model."""

_SINGLE_PRECISION_BOUND = 1e-3
_ROOM = 2 << 30
_MOST_POSITIONS = 16

type Values = Float[np.ndarray, "*cells"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison that measures an invariant.

    Attributes:
        name: name of the invariant.
        compares: description of what was compared.
        error: the largest difference, as a share of the effect.
        bound: largest error that is allowed; `None` if the error is only reported.
    """

    name: str
    compares: str
    error: float
    bound: float | None

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the bound."""
        return math.isfinite(self.error) and (self.bound is None or self.error <= self.bound)


@dataclasses.dataclass(frozen=True)
class Case:
    """The pair of runs on which everything is measured.

    Attributes:
        model: the model.
        clean: the run whose activations are copied.
        corrupted: the run into which they are copied; it has the same number of tokens.
        tops: each run's most probable next token; the metric is the first one's log-probability.
        effect: difference of the metric between the two runs.
        cells: number of random patches at each decoder site; encoder sites have half as many.
        seed: seed of the random patches.
        memory: bytes that a sweep may use; if `None`, those of its runs and 2 GiB.
    """

    model: Whisper
    clean: Utterance
    corrupted: Utterance
    tops: tuple[int, int]
    effect: float
    cells: int
    seed: int
    memory: int | None

    @property
    def n_tokens(self) -> int:
        """Number of tokens of each run."""
        return len(self.clean.tokens)

    @property
    def metrics(self) -> tuple[LogProb, LogProb]:
        """Log-probability of each run's most probable next token."""
        return log_prob(self.tops[0]), log_prob(self.tops[1])

    def plan(self, *, alpha: float = 1.0, stride: int | None = None, **chosen: Any) -> SweepPlan:
        """Run `plan_sweep` for the corrupted run, within the memory."""
        memory = 1 << 62 if self.memory is None else self.memory
        options = PlanOptions(alpha=alpha, stride=stride, memory=memory)
        plan = plan_sweep(self.model, tokens=self.corrupted.tokens, options=options, **chosen)
        if self.memory is not None:
            return plan
        return dataclasses.replace(plan, memory=base_bytes(plan, 2) + _ROOM)

    def sweep(self, plan: SweepPlan, *, method: str = "minimal", **inputs: Any) -> SweepResult:
        """Run `activation_patching`, by default with the two runs and the first metric."""
        runs = {"clean": self.clean, "corrupted": self.corrupted, "metric": self.metrics[0]}
        options = SweepOptions(method=method)
        return activation_patching(self.model, plan, options=options, **(runs | inputs))

    def check(
        self, name: str, compares: str, values: Values, expected: Values | float, base: float
    ) -> Check:
        """Compare values with the values that they should have.

        Args:
            name: name of the invariant.
            compares: description of what is compared.
            values: the metric of some patches.
            expected: the metric as it should be.
            base: the metric of the run that is patched.

        Returns:
            The check: `max |values - expected| / max(effect, max |expected - base|)`.
        """
        wide = np.asarray(expected, np.float64)
        scale = max(self.effect, float(np.abs(wide - base).max()))
        error = float(np.abs(values.astype(np.float64) - wide).max()) / scale
        return Check(name, compares, error, BOUNDS[str(self.model.dtype)])

    def as_dtype(self, dtype: str) -> "Case":
        """Return the same case with parameters and spectrograms of another dtype."""

        def cast(leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        runs = (self.model, self.clean, self.corrupted)
        model, clean, corrupted = jax.tree.map(cast, runs)
        return dataclasses.replace(self, model=model, clean=clean, corrupted=corrupted)


def random_windows(case: Case, rng: np.random.Generator, *, frames: bool) -> list[Window]:
    """Choose random windows, one for each cell to check.

    Args:
        case: the pair of runs.
        rng: random number generator.
        frames: choose windows of up to a thirtieth of the frames (1 s), preferably where the
            spectrograms of the runs differ, rather than windows of one or two tokens.

    Returns:
        Windows of different starts, the widest first.
    """
    size, widest, weight = case.n_tokens, 2, np.ones(case.n_tokens)
    if frames:
        size = case.model.config.max_frames
        widest = max(1, size // 30)
        mels = (np.asarray(run.mel, np.float64) for run in (case.clean, case.corrupted))
        difference = np.square(np.subtract(*mels)).reshape(-1, size, 2).sum((0, 2))
        weight = difference if difference.any() else np.ones(size)
    n = min(case.cells, np.count_nonzero(weight))
    starts = rng.choice(size, n, replace=False, p=weight / weight.sum())
    widths = rng.integers(-(-widest // 2), widest + 1, n)
    stops = np.minimum(starts + widths, size)
    windows = zip(starts.tolist(), stops.tolist(), strict=True)
    return sorted(windows, key=lambda window: window[0] - window[1])


def all_patch(case: Case) -> list[Check]:
    """Check that a run patched at every position of the first layer becomes the other run."""
    # Only the input of the patched stack differs; the other stack has the clean run's input.
    tokens = (case.clean.tokens + 1) % case.model.config.d_vocab
    corrupted = {
        "encoder": Utterance(case.corrupted.mel, case.clean.tokens),
        "decoder": Utterance(case.clean.mel, tokens),
    }
    checks = []
    for stack, other in corrupted.items():
        plan = case.plan(stack=stack, layers=[0], positions="all")
        result = case.sweep(plan, corrupted=other)
        checks.append(
            case.check(
                "all-patch = the other run",
                f"{stack}, every position of resid_pre in layer 0",
                result.patched,
                float(result.clean[0]),
                float(result.corrupted[0]),
            )
        )
    return checks


def causality(case: Case) -> list[Check]:
    """Check that patches of the decoder after the position that is read change nothing."""
    read = (case.n_tokens - 1) // 2
    behind = range(read + 1, min(case.n_tokens, read + 1 + case.cells))
    plan = case.plan(positions=list(behind))
    checks = []
    for method in ("minimal", "reference"):
        result = case.sweep(plan, method=method, metric=log_prob(case.tops[0], read))
        base = float(result.corrupted[0])
        compares = f"decoder resid_pre behind the position that is read, {method}"
        checks.append(case.check("causality", compares, result.patched, base, base))
    return checks


def methods(case: Case) -> list[Check]:
    """Check that all methods of a sweep give the same values, with noise at half strength."""
    windows = random_windows(case, np.random.default_rng(case.seed), frames=False)
    plan = case.plan(site="cross_z", positions=windows, alpha=0.5)
    window = np.arange(len(windows))
    plan = plan.select(window % len(plan.layers) * len(windows) + window)
    results = {
        method: case.sweep(plan, edit=Noise(1.0), method=method)
        for method in ("reference", "vmap", "minimal")
    }
    reference = results.pop("reference")
    chosen = np.isfinite(reference.patched)
    return [
        case.check(
            "methods agree",
            f"{method} and reference, decoder cross_z, noise at α = 0.5",
            result.patched[chosen],
            reference.patched[chosen],
            float(reference.corrupted[0]),
        )
        for method, result in results.items()
    ]


def chunking(case: Case) -> list[Check]:
    """Check that a memory budget for few patches at a time gives the values of a large one."""
    plan = _grid(case)
    least = base_bytes(plan, 1) + plan.select([0]).chunks()[0].bytes
    small = dataclasses.replace(plan, memory=least)
    expected, result = (case.sweep(one) for one in (plan, small))
    sizes = f"{len(small.chunks())} chunks and {len(plan.chunks())}"
    base = float(expected.corrupted[0])
    compares = f"decoder resid_pre in {sizes}"
    return [case.check("chunked = whole", compares, result.patched, expected.patched, base)]


def batch(case: Case) -> list[Check]:
    """Check that a sweep of two pairs of runs gives the values of a sweep of each pair."""
    plan, pairs = _grid(case), [(case.clean, case.corrupted), (case.corrupted, case.clean)]
    clean, corrupted = zip(*pairs, strict=True)
    in_one_sweep = activation_patching_batch(
        case.model, plan, clean=clean, corrupted=corrupted, metric=case.metrics
    )
    checks = []
    for number, result in enumerate(in_one_sweep):
        runs = {"clean": clean[number], "corrupted": corrupted[number]}
        alone = case.sweep(plan, metric=case.metrics[number], **runs)
        compares = f"decoder resid_pre, pair {number + 1} of 2"
        base = float(alone.corrupted[0])
        checks.append(case.check("batch = single", compares, result.patched, alone.patched, base))
    return checks


def _rounds_products() -> bool:
    """Tell whether products of float32 are rounded here, unless a precision is asked for."""
    return jax.default_backend() != "cpu"


def precision(case: Case) -> list[Check]:
    """Measure how much rounding changes the effects of patches."""
    swept = {name: _swept_as(case, name) for name in ("float64", "float32", "bfloat16")}
    rows = [("float32", "float64", _SINGLE_PRECISION_BOUND), ("bfloat16", "float32", None)]
    if _rounds_products():
        with jax.default_matmul_precision("default"):
            swept["float32 by default"] = _swept_as(case, "float32")
        rows.append(("float32 by default", "float64", None))
    checks = []
    for name, reference, bound in rows:
        ours, theirs = swept[name], swept[reference]
        compares = f"{name} and {reference}, decoder resid_pre"
        base = float(theirs.corrupted[0])
        check = case.check("precision", compares, ours.patched, theirs.patched, base)
        checks.append(dataclasses.replace(check, bound=bound))
    return checks


def _swept_as(case: Case, dtype: str) -> SweepResult:
    with jax.enable_x64(dtype == "float64"):
        cast = case.as_dtype(dtype)
        return cast.sweep(_grid(cast))


def _grid(case: Case) -> SweepPlan:
    """Plan a sweep of decoder `resid_pre` at all layers, and all positions of short runs."""
    return case.plan(stride=-(-case.n_tokens // _MOST_POSITIONS))
