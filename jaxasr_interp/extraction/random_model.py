"""A model with random weights: the control for probes, which shows what training added."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.devices import mesh_of
from jaxasr_interp.runtime.transforms import host_only


@host_only()
def random_model(model: Whisper, seed: int = 0) -> Whisper:
    """Make a model of the same shape, dtype, tokenizer, settings and place with random weights.

    Args:
        model: the model that gives the shape.
        seed: seed of the weights.

    Returns:
        The model. Linear maps and convolutions are drawn from `N(0, 1/fan_in)`, embeddings from
        `N(0, 0.02²)`; biases are 0, and the encoder's positions are Whisper's fixed sinusoids.
    """
    control = Whisper(model.config, rngs=nnx.Rngs(seed))
    control = jax.tree.map(
        lambda x: x.astype(model.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, control
    )
    leaves, structure = jax.tree.flatten(control)
    if mesh_of(model) is not None:
        places = [x.sharding for x in jax.tree.leaves(model)]
        control = jax.tree.unflatten(structure, jax.device_put(leaves, places))
    control.generation, control.tokenizer = model.generation, model.tokenizer
    control.source = f"random weights (seed {seed}) in the shape of {model.source}"
    return control
