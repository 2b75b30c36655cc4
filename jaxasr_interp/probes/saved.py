"""Probes on disk: arrays in an Orbax checkpoint, the rest as JSON beside it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.probes.linear import LinearProbe
from jaxasr_interp.probes.mlp import MLPProbe
from jaxasr_interp.probes.options import FitOptions
from jaxasr_interp.probes.result import HeldOut, Probes
from jaxasr_interp.probes.targets import Target
from jaxasr_interp.pytree import replace
from jaxasr_interp.runtime.store import check_sealed, new_folder, sealed, write_arrays, write_json
from jaxasr_interp.runtime.transforms import host_only

_MARKER, _ARRAYS = "probes.json", "arrays"


@host_only()
def save_probes(probes: Probes, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save the probes of one target so that `load_probes` gives back the same bits.

    Args:
        probes: from `fit_probes`.
        folder: appears only once everything is written.
        overwrite: replace what is at `folder`.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists.
    """
    description = {
        "target": {k: v for k, v in vars(probes.target).items() if k != "labels"},
        "options": dataclasses.asdict(probes.options),
        "features": probes.features,
    }
    arrays = _arrays(probes)
    with new_folder(folder, overwrite=overwrite) as partial:
        write_arrays(partial / _ARRAYS, arrays)
        write_json(partial / _MARKER, sealed(description, arrays))
    return Path(folder).absolute()


@host_only()
def load_probes(folder: str | Path) -> Probes:
    """Load what `save_probes` wrote.

    Raises:
        InputError: the folder holds no probes, or they are damaged.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    try:
        description = json.loads((folder / _MARKER).read_text("utf-8"))
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = jax.tree.map(np.asarray, checkpointer.restore(folder / _ARRAYS))
        check_sealed(folder, description, arrays)
        target = description["target"] | {"classes": tuple(description["target"]["classes"])}
        return Probes(
            target=Target(labels=arrays["labels"], **target),
            options=FitOptions(**description["options"]),
            folds=arrays["folds"],
            groups=arrays.get("groups"),
            held_out=HeldOut(**arrays["held_out"]),
            shuffled=HeldOut(**arrays["shuffled"]) if "shuffled" in arrays else None,
            shuffled_labels=arrays.get("shuffled_labels"),
            probe=_probe(arrays["probe"]),
            l2_index=arrays["l2_index"],
            features=description["features"],
        )
    except InputError:
        raise
    except Exception as error:  # A damaged file may raise anything in its readers.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{folder} holds no probes that can be read: {reason}.") from None


def _arrays(probes: Probes) -> dict[str, Any]:
    probe = probes.probe
    layers = {"linear": probe} if isinstance(probe, LinearProbe) else vars(probe)
    arrays: dict[str, Any] = {
        "labels": probes.target.labels,
        "folds": probes.folds,
        "held_out": dict(vars(probes.held_out)),
        "probe": {name: dict(vars(layer)) for name, layer in layers.items()},
        "l2_index": probes.l2_index,
        "groups": probes.groups,
        "shuffled": None if probes.shuffled is None else dict(vars(probes.shuffled)),
        "shuffled_labels": probes.shuffled_labels,
    }
    return {name: value for name, value in arrays.items() if value is not None}


def _probe(layers: dict[str, dict[str, Any]]) -> LinearProbe | MLPProbe:
    empty = LinearProbe.zeros(1, 1, jnp.dtype(jnp.float32))
    parts = {name: replace(empty, **arrays) for name, arrays in layers.items()}
    return parts["linear"] if "linear" in parts else MLPProbe(**parts)
