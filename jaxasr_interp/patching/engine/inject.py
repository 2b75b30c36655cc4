"""What a patch injects: the rows of the residual stream, keys and values that it changes at first.

A patch at one site of one layer finds every activation before it as the base run had it. So its
value is known beforehand, and with it one row per patched position of everything up to the layer's
end. Patches at `resid_pre`, `k` and `v` enter the layer itself; all others enter the next one as
changed rows of `resid_pre`: one primitive, "change these rows and propagate", serves them all.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxasr_interp.interventions.where import At, Several, blend
from jaxasr_interp.model.blocks import DecoderBlock, EncoderBlock
from jaxasr_interp.model.edits import (
    WHOLE_RUN,
    Activations,
    Edit,
    EditContext,
    LayerIndex,
    Tap,
    apply_edit,
    untouched,
)
from jaxasr_interp.model.layers import KeysValues
from jaxasr_interp.model.sites import SITES, EncoderActivations, head_axis, position_axis
from jaxasr_interp.patching.cells import Cells
from jaxasr_interp.patching.runs import BaseRun, for_each_run
from jaxasr_interp.pytree import pytree_dataclass

_ENTERING = ("resid_pre", "k", "v")
_EMBEDDINGS = ("embed", "pos_embed", "conv2_out")
_RESIDUAL = ("resid_pre", "resid_mid", "resid_mid_cross")


def entry_layer(site: str, layer: int) -> int:
    """The layer that a patch at `site` of `layer` enters (the number of layers: past the last)."""
    return 0 if site in _EMBEDDINGS else layer if site in _ENTERING else layer + 1


@pytree_dataclass
class Entry:
    """Changed rows, as the layer they enter finds them.

    Attributes:
        resid: their `resid_pre` (after the last layer, their `resid_post`).
        q: their queries; `None` with keys and values, if the layer is to project the rows itself.
        k: their keys.
        v: their values.
    """

    resid: Float[Array, "*layer patch row d_model"]
    q: Float[Array, "*layer patch row head d_head"] | None = None
    k: Float[Array, "*layer patch row head d_head"] | None = None
    v: Float[Array, "*layer patch row head d_head"] | None = None


@pytree_dataclass
class Substitute(Edit):
    """The edit that replaces whole sites: what leads up to them is dropped by the compiler."""

    values: dict[str, Array]

    def __call__(
        self, site: str, layer: LayerIndex, value: Array, context: EditContext = WHOLE_RUN
    ) -> Array:
        """Return the site's substitute, if it has one."""
        return self.values.get(site, value)


def at_layer(tree: Any, layer: Int[Array, ""]) -> Any:
    """One layer of stacked parameters or activations; the last one past the end."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), tree
    )


def stream_at(acts: Activations, entry: Int[Array, ""]) -> Float[Array, "pos d_model"]:
    """The residual stream that enters a layer; past the last one, what leaves it."""
    # Joining the two would copy all layers.
    last = acts.resid_post[-1]
    return jnp.where(entry < len(acts.resid_pre), at_layer(acts.resid_pre, entry), last)


def where_rows(
    chosen: Bool[Array, " row"], rows: Float[Array, "row *rest"], others: Float[Array, "row *rest"]
) -> Float[Array, "row *rest"]:
    """Some rows of one array, and the rest of another."""
    return jnp.where(chosen.reshape(-1, *(1,) * (rows.ndim - 1)), rows, others)


def window_rows(cells: Cells, width: int, size: int) -> Int[Array, "patch row"]:
    """Positions `start … start + width - 1` of each patch, those past the end repeated."""
    return jnp.minimum(cells.start[:, None] + jnp.arange(width, dtype=jnp.int32)[None], size - 1)


def patched_rows(
    site: str, value: Array, edited: Array, cells: Cells, rows: Int[Array, "patch row"]
) -> Float[Array, "patch row *rest"]:
    """What each patch writes into its rows of a site.

    Args:
        site: the site.
        value: the base run's activation there.
        edited: the same after the edit, at full strength.
        cells: the patches.
        rows: the positions wanted of each.

    Returns:
        The positions' values, positions first: blended in the patch's window and head, else the
        base run's.
    """
    axis = position_axis(site)
    before, after = (jnp.moveaxis(x, axis, 0)[rows] for x in (value, edited))
    mixed = jax.vmap(blend)(cells.alpha, before, after)
    inside = (rows >= cells.start[:, None]) & (rows < cells.stop[:, None])
    chosen = inside.reshape(inside.shape + (1,) * (before.ndim - 2))
    heads = head_axis(site)
    if heads is not None:
        n_heads = value.shape[heads]
        head = cells.head[:, None] == jnp.arange(n_heads, dtype=jnp.int32)[None]
        head = head | (cells.head < 0)[:, None]
        # Positions were moved to the front: heads before them move one axis back.
        place = 2 + heads - (heads > axis)
        shape = [1] * before.ndim
        shape[0], shape[place] = head.shape
        chosen = chosen & head.reshape(shape)
    return jnp.where(chosen, mixed, before)


@functools.partial(jax.jit, static_argnames=("site", "width", "project"))
def inject(
    blocks: EncoderBlock | DecoderBlock,
    bases: BaseRun,
    edits: Edit,
    cells: Cells,
    layers: Int[Array, " layer"],
    *,
    site: str,
    width: int,
    project: bool = True,
) -> Entry:
    """The rows that some patches of each layer change, at the layer they enter.

    Args:
        blocks: the stack's layers.
        bases: the runs that are patched, with `kept_sites`.
        edits: what the patches do at full strength, for each run.
        cells: the patches of one layer; all layers have the same.
        layers: the layers.
        site: their site.
        width: positions of the widest patch.
        project: whether to compute queries, keys and values of the rows, which patches at `k` and
            `v` have in any case.

    Returns:
        For each run, layer and patch `width` rows from its `start` on; those past its `stop` are
        the base run's. Patches at `cross_k` and `cross_v` change every position: their rows are
        all of them.
    """

    def one(base: BaseRun, edit: Edit) -> Entry:
        def enter(layer: Array) -> Entry:
            entry = _inject(blocks, base, edit, cells, layer, site, width)
            return entry if project or site in ("k", "v") else Entry(entry.resid)

        return jax.lax.map(enter, layers)

    return for_each_run(one, bases, edits)


def _inject(
    blocks: EncoderBlock | DecoderBlock,
    base: BaseRun,
    edit: Edit,
    cells: Cells,
    layer: Int[Array, ""],
    site: str,
    width: int,
) -> Entry:
    if site in ("cross_k", "cross_v"):
        assert isinstance(blocks, DecoderBlock)
        resid = _through_cross(blocks, base, edit, cells, layer, site)
        return _project(at_layer(blocks, layer + 1), resid)
    acts = base.acts("encoder" if isinstance(blocks, EncoderBlock) else "decoder")
    inside = SITES["decoder" if site in SITES["decoder"] else "encoder"][site][0] == "layer"
    value = at_layer(getattr(acts, site), layer) if inside else getattr(acts, site)
    edited = apply_edit(edit, site, layer if inside else None, value)
    rows = window_rows(cells, width, value.shape[position_axis(site)])
    written = patched_rows(site, value, edited, cells, rows)
    if site in ("k", "v"):
        q, k, v, resid = (
            at_layer(getattr(acts, name), layer)[rows] for name in ("q", "k", "v", "resid_pre")
        )
        return Entry(resid, q, written if site == "k" else k, written if site == "v" else v)
    if site == "resid_pre":
        return _project(at_layer(blocks, layer), written)
    if site in _EMBEDDINGS:
        (other,) = _stem(acts) - {site}
        return _project(
            at_layer(blocks, jnp.zeros_like(layer)), written + getattr(acts, other)[rows]
        )
    resid = _through_layer(blocks, base, acts, written, layer, rows, site)
    return _project(at_layer(blocks, layer + 1), resid)


def _stem(acts: Activations) -> set[str]:
    """The two sites whose sum enters the first layer."""
    return {"conv2_out" if isinstance(acts, EncoderActivations) else "embed", "pos_embed"}


def _through_layer(
    blocks: EncoderBlock | DecoderBlock,
    base: BaseRun,
    acts: Activations,
    written: Float[Array, "patch row *rest"],
    layer: Int[Array, ""],
    rows: Int[Array, "patch row"],
    site: str,
) -> Float[Array, "patch row d_model"]:
    """`resid_post` of rows whose `site` is given, everything else being the base run's."""
    flat = rows.reshape(-1)
    order = list(vars(acts))
    values = {
        name: at_layer(getattr(acts, name), layer)[flat]
        for name in _RESIDUAL
        if name in order and order.index(name) < order.index(site)
    }
    values[site] = jnp.moveaxis(written.reshape(-1, *written.shape[2:]), 0, position_axis(site))
    tap = Tap(Substitute(values), layer)
    k, v = (at_layer(getattr(acts, name), layer).swapaxes(0, 1) for name in ("k", "v"))
    block, resid = at_layer(blocks, layer), values["resid_pre"]
    if isinstance(block, EncoderBlock):
        out = block(tap, resid, lambda _: KeysValues(k, v))
    else:
        mask = jnp.arange(k.shape[1], dtype=jnp.int32)[None, :] <= flat[:, None]
        out = block(tap, resid, at_layer(base.cross, layer), mask, lambda _: KeysValues(k, v))
    return out.reshape(*rows.shape, -1)


def _through_cross(
    blocks: DecoderBlock, base: BaseRun, edit: Edit, cells: Cells, layer: Int[Array, ""], site: str
) -> Float[Array, "patch pos d_model"]:
    """`resid_post` of all positions under patches of the cross-attention's keys or values."""
    block, cross = at_layer(blocks, layer), at_layer(base.cross, layer)
    resid_pre, resid_mid = (
        at_layer(getattr(base.decoder, name), layer) for name in ("resid_pre", "resid_mid")
    )
    known = Substitute({"resid_mid": resid_mid})

    def one(cell: Cells) -> Float[Array, "pos d_model"]:
        at = At(edit, layer, cell.start, cell.stop, cell.head, cell.alpha, site)
        tap = Tap(Several((at, known)), layer)
        everywhere = jnp.ones((len(resid_pre), len(resid_pre)), bool)
        return block(tap, resid_pre, cross, everywhere)

    return jax.vmap(one)(cells)


def _project(block: EncoderBlock | DecoderBlock, resid: Float[Array, "patch row d_model"]) -> Entry:
    q, kv = block.project(untouched(), resid.reshape(-1, resid.shape[-1]))
    rows = (q, kv.k.swapaxes(0, 1), kv.v.swapaxes(0, 1))
    return Entry(resid, *(x.reshape(*resid.shape[:2], *x.shape[1:]) for x in rows))
