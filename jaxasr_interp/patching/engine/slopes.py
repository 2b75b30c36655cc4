"""Derivatives of the metrics with respect to small moves of every activation of a run."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxasr_interp.model.blocks import EncoderBlock
from jaxasr_interp.model.edits import WHOLE_RUN, Edit, EditContext, LayerIndex, Tap
from jaxasr_interp.model.encoder import Encoder
from jaxasr_interp.model.sites import SITES, Stack
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.engine.readout import MetricReadout
from jaxasr_interp.patching.runs import BaseRun
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class _Nudged(Edit):
    """The edit `a -> a + ε (edit(a) - a)` at each site that has nudges ε, one for each cell."""

    edit: Edit
    nudges: dict[str, Array]

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the nudged value; the value it moves towards counts as a constant."""
        if site not in self.nudges:
            return value
        here = jax.lax.stop_gradient(value)
        nudge = self.nudges[site][0 if layer is None else layer]
        moved = nudge * (self.edit(site, layer, here, context) - here).astype(nudge.dtype)
        return value + moved.astype(value.dtype)


@functools.partial(jax.jit, static_argnames=("stack", "together"))
def slopes_of(
    model: Whisper,
    base: BaseRun,
    edit: Edit,
    readout: MetricReadout,
    strengths: dict[str, Float[Array, "step layer"]],
    *,
    stack: Stack,
    together: int,
) -> dict[str, Float[Array, "metric layer *cell"]]:
    """Compute `∂metric/∂ε` for each site, layer, position and head, averaged over some steps.

    Args:
        model: the model.
        base: the run that is patched.
        edit: edit that a patch makes at full strength.
        readout: metrics and their positions.
        strengths: for each swept site, the ε of all its cells at which derivatives are taken.
        stack: the stack that is swept.
        together: number of steps that run at once.
    """
    shapes = {site: _cell_shape(model, base, stack, site) for site in strengths}
    at_read = jnp.asarray(readout.positions.pos)

    def metrics_of(nudges: dict[str, Array]) -> Array:
        nudged = _Nudged(edit, nudges)
        if stack == "encoder":
            states = _encode(model.encoder, base.mel, nudged)
            run = model.decoder.run(base.tokens, states, logits_at=at_read)
        else:
            run = model.decoder.run(
                base.tokens, base.states, nudged, cross=base.cross, logits_at=at_read
            )
        return readout(run.logits)

    def at(strengths: dict[str, Float[Array, " layer"]]) -> dict[str, Array]:
        nudges = {
            site: jax.vmap(functools.partial(jnp.full, shapes[site]))(values)
            for site, values in strengths.items()
        }
        values, pull_back = jax.vjp(metrics_of, nudges)
        # Metrics run one after the other, so that they share one backward pass's memory.
        return jax.lax.map(lambda one: pull_back(one)[0], jnp.eye(len(values), dtype=values.dtype))

    of_steps = jax.lax.map(at, strengths, batch_size=together)
    return jax.tree.map(lambda slopes: slopes.mean(0), of_steps)


def _encode(encoder: Encoder, mel: Array, edit: Edit) -> Float[Array, "frame d_model"]:
    """Encode a clip such that the backward pass holds one layer's attention at a time."""
    stem = encoder(mel)[1].conv2_out  # The compiler drops the layers after it.
    tap = Tap(edit, None)

    @jax.checkpoint
    def layer(resid: Array, block_and_index: tuple[EncoderBlock, Array]) -> tuple[Array, None]:
        block, index = block_and_index
        return block(Tap(edit, index), resid), None

    resid = tap("conv2_out", stem) + tap("pos_embed", encoder.pos_embed[...])
    layers = (encoder.blocks, jnp.arange(encoder.n_layers))
    return tap("ln_final", encoder.final_norm(jax.lax.scan(layer, resid, layers)[0]))


def _cell_shape(model: Whisper, base: BaseRun, stack: Stack, site: str) -> tuple[int, ...]:
    """Return the shape of one layer's activation, with size 1 for its last axis."""
    frames, tokens = len(base.states), len(base.tokens)
    queries = frames if stack == "encoder" else tokens
    sizes = {"frame": frames, "pos": tokens, "query": queries, "head": model.config.heads(stack)}
    return (*(sizes[axis] for axis in SITES[stack][site][:-1] if axis != "layer"), 1)
