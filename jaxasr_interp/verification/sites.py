"""Checks at every site of both stacks that the engine gives the values of whole runs.

A whole run is the plain forward pass under an edit. The edit's site is data, so that one program
checks many sites; compiling a program for each site would take longer than all the runs.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.interventions.kinds import Interchange
from jaxasr_interp.interventions.where import At
from jaxasr_interp.model.edits import WHOLE_RUN, Edit, EditContext, LayerIndex
from jaxasr_interp.model.run import decode, encode
from jaxasr_interp.model.sites import SITES, Stack, counts_frames, head_axis, sweepable_sites
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.engine.full_run import patched_logits
from jaxasr_interp.patching.metrics import Metric
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.runs import BaseRun
from jaxasr_interp.patching.unpatched import RunSet, encode_utterances, run_utterances
from jaxasr_interp.pytree import pytree_dataclass, static
from jaxasr_interp.speech.utterance import Utterance
from jaxasr_interp.verification.invariants import Case, Check, random_windows

_KEPT = 1 << 29

type SiteGroup = tuple[str, ...]


@pytree_dataclass
class CopyOrZero(Edit):
    """The edit of a patch: an interchange or a zero ablation; the choice is data."""

    source: Interchange
    zero: Bool[Array, ""]

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the other run's value, or zeros."""
        copied = self.source(site, layer, value, context)
        return jnp.where(self.zero, jnp.zeros_like(copied), copied)


@pytree_dataclass
class AtAnySite(Edit):
    """An edit confined to some cells of one site, `sites[number]`."""

    edit: Edit
    number: Int[Array, ""]
    layer: Int[Array, ""]
    head: Int[Array, ""]
    start: Int[Array, ""]
    stop: Int[Array, ""]
    alpha: Float[Array, ""]
    sites: SiteGroup = static()

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return `value`, edited if `site` is the chosen one."""
        if site not in self.sites:
            return value
        at = At(self.edit, self.layer, self.start, self.stop, self.head, self.alpha, site)
        return jnp.where(
            self.number == self.sites.index(site), at(site, layer, value, context), value
        )


def site_groups(case: Case, stack: Stack) -> list[SiteGroup]:
    """Group the sites of a stack that can be swept, such that each group shares a plan.

    Groups of the encoder are split where the activations, which are kept of both runs, are large.
    """
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for site in sweepable_sites(stack):
        kind = SITES[stack][site][0] == "layer", counts_frames(stack, site)
        kinds.setdefault(kind, []).append(site)
    if stack == "decoder":
        return [tuple(sites) for sites in kinds.values()]
    acts = jax.eval_shape(
        lambda model, mel: model.encoder(mel, patterns=True)[1], case.model, case.clean.mel
    )
    groups: list[list[str]] = []
    for sites in kinds.values():
        left = 0
        for site in sites:
            size = getattr(acts, site).size * getattr(acts, site).dtype.itemsize
            if size > left:
                groups.append([])
                left = _KEPT
            groups[-1].append(site)
            left -= size
    return [tuple(sites) for sites in groups]


def identity(case: Case, stack: Stack, sites: SiteGroup) -> list[Check]:
    """Check that a run patched with its own activations does not change."""
    plan, cells = _sample(case, stack, sites)
    cells = _of_one_layer(plan, cells)
    edit = CopyOrZero(_source(case, case.corrupted, stack, sites), jnp.asarray(False))
    result = case.sweep(plan.select(cells.ravel()), edit=edit)
    base = float(result.corrupted[0])
    return [
        case.check(f"identity patch, {stack}", site, values, base, base)
        for site, values in zip(sites, result.patched.reshape(-1)[cells], strict=True)
    ]


def minimal(case: Case, stack: Stack, sites: SiteGroup) -> list[Check]:
    """Check that the engine gives the values of a whole run for each patch."""
    source = _source(case, case.clean, stack, sites)
    checks = []
    for phrase, zero, alpha in (("interchange", False, 1.0), ("zero at α = 0.5", True, 0.5)):
        plan, cells = _sample(case, stack, sites, alpha=alpha)
        cells = _of_one_layer(plan, cells) if zero else cells
        edit = CopyOrZero(source, jnp.asarray(zero))
        result = case.sweep(plan.select(cells.ravel()), edit=edit)
        base = float(result.corrupted[0])
        values = result.patched.reshape(-1)[cells]
        expected = _run_each(case, plan, cells.ravel(), edit).reshape(cells.shape)
        for site, ours, theirs in zip(sites, values, expected, strict=True):
            name = f"minimal = reference, {stack}"
            checks.append(case.check(name, f"{site}, {phrase}", ours, theirs, base))
    return checks


def _run_each(
    case: Case, plan: SweepPlan, numbers: Int[np.ndarray, " cell"], edit: CopyOrZero
) -> Float[np.ndarray, " cell"]:
    """Compute the metric under some patches of a plan, with a whole run for each patch."""
    model, run, cells = case.model, case.corrupted, plan.cells()
    sites = tuple(site for site, acts in vars(edit.source.source).items() if acts is not None)
    nothing, last = frozenset[str](), np.array([[len(run.tokens) - 1]])
    alone = RunSet([run], encode_utterances(model, [run], nothing), nothing, last)
    base = jax.tree.map(lambda leaf: leaf[0], run_utterances(model, alone))
    values = []
    for number in numbers:
        site, _ = plan.components[cells["component"][number]]
        layer, head, start, stop = (
            jnp.asarray(cells[name][number], jnp.int32)
            for name in ("layer", "head", "start", "stop")
        )
        alpha = jnp.asarray(cells["alpha"][number], jnp.float32)
        index = jnp.asarray(sites.index(site), jnp.int32)
        patch = AtAnySite(edit, index, layer, head, start, stop, alpha, sites)
        values.append(_whole_run(model, base, patch, case.metrics[0], plan.stack))
    return np.stack(values)


@functools.partial(jax.jit, static_argnames="stack")
def _whole_run(
    model: Whisper, base: BaseRun, patch: Edit, metric: Metric, stack: Stack
) -> Float[Array, ""]:
    """Compute the metric of one run under a patch."""
    last = jnp.asarray([len(base.tokens) - 1], jnp.int32)
    logits = patched_logits(model, base, patch, stack, last)
    return metric(logits, logits)


def _source(case: Case, run: Utterance, stack: Stack, sites: SiteGroup) -> Interchange:
    """Keep a run's activations at some sites; in the decoder at all sites, as they are small."""
    if stack == "encoder":
        return Interchange(encode(case.model, run.mel, sites=sites).acts)
    states = encode(case.model, run.mel, sites=()).states
    return Interchange(
        decode(case.model, run.tokens, states, sites=sweepable_sites("decoder")).acts
    )


def _sample(
    case: Case, stack: Stack, sites: SiteGroup, **options: Any
) -> tuple[SweepPlan, Int[np.ndarray, "site cell"]]:
    """Plan sites that can share a plan, and choose random cells of each.

    All sites get the same windows and take turns at the layers. So their chunks have the same
    shapes, for which one program is compiled.
    """
    rng = np.random.default_rng(case.seed)
    # Each patch of the encoder takes an encoder run, so that its sites get half as many cells.
    some = dataclasses.replace(case, cells=-(-case.cells // 2)) if stack == "encoder" else case
    windows = random_windows(some, rng, frames=counts_frames(stack, sites[0]))
    have_heads = any(head_axis(site) is not None for site in sites)
    heads = "each" if have_heads else None
    plan = case.plan(stack=stack, site=sites, heads=heads, positions=windows, **options)
    grid = (len(plan.components), len(plan.layers), len(windows))
    window, cells = np.arange(len(windows)), []
    for number, site in enumerate(sites):
        components = [i for i, (name, _) in enumerate(plan.components) if name == site]
        layer = (window + number) % len(plan.layers)
        component = rng.choice(components, len(windows))
        cells.append(np.ravel_multi_index((component, layer, window), grid))
    return plan, np.stack(cells)


def _of_one_layer(
    plan: SweepPlan, cells: Int[np.ndarray, "site cell"]
) -> Int[np.ndarray, "site some"]:
    """Keep the sampled cells in each site's first layer; their chunks have an equal shape."""
    return cells[:, :: len(plan.layers)]
