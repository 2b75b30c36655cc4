"""Attribution patching: the effect of every patch to first order, from a few backward passes.

The exact sweep runs the model once per patch. Here each swept site moves a little towards its
patched value, `ã = a + ε (edit(a) - a)` with a separate ε for every layer, position and head; the
derivatives with respect to all ε are the effects of all patches to first order.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.edits import EditLike
from jaxasr_interp.model.sites import position_axis
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.numerics import accumulation_dtype
from jaxasr_interp.patching.engine.slopes import slopes_of
from jaxasr_interp.patching.inputs import SweepInputs
from jaxasr_interp.patching.metrics import MetricLike, Rank, as_metrics
from jaxasr_interp.patching.plan import SweepPlan
from jaxasr_interp.patching.prepared import Prepared, prepare
from jaxasr_interp.patching.result import SweepResult
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.transforms import DECODE_EDITED, host_only
from jaxasr_interp.speech.utterance import Utterance

type Slopes = dict[str, Float[np.ndarray, "metric layer *cell"]]


@dataclasses.dataclass(frozen=True)
class AttributionOptions:
    """How attribution patching compares runs, and in how many steps it follows the patches.

    Attributes:
        direction: see `SweepOptions`.
        alignment: see `SweepOptions`.
        steps: 1 takes the gradient at the patched run; more steps take integrated gradients.
    """

    direction: str = "clean_to_corrupted"
    alignment: Sequence[int] | None = None
    steps: int = 1


_DEFAULT = AttributionOptions()


@host_only(DECODE_EDITED)
def attribution_patching(
    model: Whisper,
    plan: SweepPlan,
    *,
    clean: Utterance,
    corrupted: Utterance,
    metric: MetricLike | Sequence[MetricLike],
    edit: EditLike | None = None,
    options: AttributionOptions = _DEFAULT,
    on_progress: Progress | None = None,
) -> SweepResult:
    """Approximate `activation_patching` by gradients.

    To first order the metric under a patch of strength α is

    `metric(a) + α Σ (edit(a) - a) · ∂metric/∂a`

    summed over the patch's positions and heads. One forward pass of the patched run and one
    backward pass for each metric give the effects of all cells at all sites of the plan.

    With `options.steps` > 1 the gradient is averaged over that many midpoints of the straight path
    from `a` to `edit(a)`, on which all positions and heads of one site and layer move together
    (integrated gradients): as `steps` grows, the sum over all positions approaches the effect of
    patching them all at once. This takes `steps` forward and backward passes for each site and
    layer.

    Args:
        model: the model.
        plan: from `plan_sweep`.
        clean: the run in which the behaviour of interest happens.
        corrupted: the run in which it does not.
        metric: one or several of `ji.metrics` that have a gradient. The gradient of the KL
            divergence from the clean run is 0 at that run: to patch the clean run, take `steps`.
        edit: see `activation_patching`.
        options: which run is patched, and in how many steps.
        on_progress: see `activation_patching`.

    Returns:
        The approximate metrics, in the shape of the exact sweep; `method` names the approximation.

    Raises:
        InputError: see `activation_patching`; also if a metric is a rank, `steps` is less than 1,
            or the memory budget is too small for one pass.

    Source: Nanda 2023 ("Attribution patching"); Sundararajan et al. 2017 (integrated gradients).
    """
    steps = options.steps
    if steps < 1:
        raise InputError(f"The number of steps is {steps}: expected 1 or more.")
    for one in as_metrics(metric):
        if isinstance(one, Rank):
            raise InputError(
                f"Metric {one.name} counts tokens and has no gradient: sweep it exactly, or choose "
                "another."
            )
    inputs = SweepInputs([clean], [corrupted], [metric], edit, options.direction, options.alignment)
    ready = prepare(model, plan, inputs, minimal=False)
    together = _passes_at_once(ready, steps)
    if steps == 1:
        slopes = _run(ready, dict.fromkeys(plan.sites, np.zeros((1, _n_layers(plan)))), together)
        if on_progress is not None:
            on_progress(plan.runs, plan.runs, "patches")
    else:
        slopes = _integrate(ready, steps, together, on_progress)
    effects = _effects(plan, slopes).astype(ready.readout.clean_logits.dtype)
    base = ready.corrupted if options.direction == "clean_to_corrupted" else ready.clean
    (result,) = ready.results(np.asarray(base)[:, None, :] + effects.T[None])
    method = "attribution" if steps == 1 else f"integrated gradients, {steps} steps"
    return dataclasses.replace(result, method=method)


def _run(ready: Prepared, strengths: dict[str, np.ndarray], together: int) -> Slopes:
    """Compute slopes, averaged over steps, with every site and layer moved by its strength."""
    dtype = ready.readout.clean_logits.dtype
    slopes = slopes_of(
        ready.model,
        *ready.pair(0),
        {site: jnp.asarray(values, dtype) for site, values in strengths.items()},
        stack=ready.plan.stack,
        together=together,
    )
    return {site: np.asarray(values) for site, values in slopes.items()}


def _integrate(ready: Prepared, steps: int, together: int, on_progress: Progress | None) -> Slopes:
    """Average slopes along the path of each site and layer that has cells; NaN in the others."""
    plan, slopes, done = ready.plan, {}, 0
    cells = plan.cells()
    sites = np.array([site for site, _ in plan.components])[cells["component"]]
    chosen = np.arange(plan.size) if plan.only is None else np.array(plan.only)
    midpoints = (np.arange(steps) + 0.5) / steps
    for site in plan.sites:
        for layer in np.unique(cells["layer"][chosen]):
            here = (sites[chosen] == site) & (cells["layer"][chosen] == layer)
            if not here.any():
                continue
            strengths = {name: np.zeros((steps, _n_layers(plan))) for name in plan.sites}
            strengths[site][:, layer] = midpoints
            moved = _run(ready, strengths, together)[site]
            slopes.setdefault(site, np.full_like(moved, np.nan))[:, layer] = moved[:, layer]
            done += int(here.sum())
            if on_progress is not None:
                on_progress(done, plan.runs, "patches")
    return slopes


def _n_layers(plan: SweepPlan) -> int:
    """Count the layers of the plan's sites; sites outside the layers count as one."""
    if plan.layers == (None,):
        return 1
    return plan.config.layers(plan.stack)


def _effects(plan: SweepPlan, slopes: Slopes) -> Float[np.ndarray, "metric cell"]:
    """Sum the slopes over each cell's positions and heads, and multiply by its strength."""
    layers = [0 if layer is None else layer for layer in plan.layers]
    components = []
    for site, head in plan.components:
        # Metrics and layers come before the activation's own axes.
        by_pos = np.moveaxis(slopes[site][:, layers], 2 + position_axis(site), 2)
        by_pos = by_pos.reshape(*by_pos.shape[:3], -1)
        by_pos = by_pos.sum(-1) if head is None else by_pos[..., head]
        components.append(np.stack([by_pos[:, :, a:b].sum(-1) for a, b in plan.windows], axis=-1))
    alphas = np.array(plan.alphas)[None, :, None, None, None]
    effects = (alphas * np.stack(components, axis=1)[:, None]).reshape(-1, plan.size)
    if plan.only is not None:
        effects[:, np.setdiff1d(np.arange(plan.size), plan.only)] = np.nan
    return effects


def _passes_at_once(ready: Prepared, steps: int) -> int:
    """Return how many steps fit the memory budget at once."""
    # Indexing the pair out of its leading axis makes a second copy.
    kept = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves((ready.base, ready.edits)))
    each = _pass_bytes(ready.plan)
    if kept + each > ready.plan.memory:
        raise InputError(
            f"A memory budget of {ready.plan.memory} bytes is too small: the runs and one backward "
            f"pass of the {ready.plan.stack} take {kept + each}."
        )
    return min(steps, (ready.plan.memory - kept) // each)


def _pass_bytes(plan: SweepPlan) -> int:
    """Estimate the bytes of a kept forward pass and of the backward pass through one layer."""
    c, size = plan.config, jnp.dtype(plan.dtype).itemsize
    wide = accumulation_dtype(jnp.dtype(plan.dtype)).itemsize
    frames, tokens, d = c.max_frames, plan.n_tokens, c.d_model
    row = 3 * wide * c.decoder_heads * (frames + tokens) + size * (3 * c.decoder_d_mlp + 20 * d)
    total = (c.decoder_layers + 1) * tokens * row + 3 * wide * plan.reads * c.d_vocab
    if plan.stack == "encoder":
        row = 4 * wide * c.encoder_heads * frames + size * (6 * c.encoder_d_mlp + 28 * d)
        total += frames * (row + size * d * (c.encoder_layers + 2 * c.decoder_layers))
    return total
