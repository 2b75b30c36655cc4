"""Every kind of patch of a sweep, in one program."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxasr_interp as ji
from jaxasr_interp.pytree import pytree_dataclass


@pytree_dataclass
class OneOf:
    """The edit of that number: which one is data, so one program tests all."""

    kinds: tuple[ji.Edit, ...]
    number: jax.Array

    def __call__(self, site, layer, value):
        return jnp.stack([kind(site, layer, value) for kind in self.kinds])[self.number]


def random_edits(model, site, stack, clean):
    """Every kind of patch that the site takes."""
    enc = ji.encode(model, clean.mel, sites="all")
    dec = ji.decode(model, clean.tokens, enc.states, sites="all")
    acts = enc.acts if stack == "encoder" else dec.acts
    shape = getattr(acts, site).shape
    mean = jax.tree.map(lambda x: (x + jnp.flip(x, -1)) / 2, acts)
    rng = np.random.default_rng(7)
    kinds = [
        ji.Zero(),
        ji.Scale(jnp.asarray(1.7)),
        ji.Add(jnp.asarray(rng.normal(size=shape[-1:]))),
        ji.Noise(jnp.asarray(0.8), jnp.asarray(3, jnp.int32)),
        ji.Interchange(acts),
        ji.Interchange(mean),
    ]
    if site.endswith("pattern"):
        kinds.append(ji.Knockout(jnp.asarray(1, jnp.int32), jnp.asarray(4, jnp.int32)))
    return tuple(kinds)
