"""Functions that work on the host, and the one sentence that they say under a JAX transformation.

Under `jax.jit`, `jax.vmap` and `jax.grad` arrays are tracers, whose numbers are not known. What
plans, reads files, writes text or looks at numbers cannot use them.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, ValuesView
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxasr_interp.errors import InputError

_OUTSIDE = "call it outside, and give what it returns to the function that is transformed"
GENERATE_FIXED = (
    "use generate_fixed under them, or generate_batch for several clips and generate_rows for "
    "several edits outside"
)
DECODE_EDITED = (
    "use decode under them, with an edit such as At(Interchange(acts), layer), or "
    "activation_patching_batch for several pairs outside"
)


def host_only[**P, Result](
    instead: str = _OUTSIDE,
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Make a decorator of functions that work on the host.

    Args:
        instead: what to do instead of calling the function under a transformation.

    Returns:
        The decorator; its function raises `InputError` where one of the arguments is traced, or
        where `jax.jit` would trace all that it computes.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def on_host(*args: P.args, **kwargs: P.kwargs) -> Result:
            # Under `jax.jit` every new array is traced.
            refuse_traced((args, kwargs, jnp.zeros(())), function.__name__, instead)
            return function(*args, **kwargs)

        return on_host

    return decorate


def refuse_traced(tree: Any, what: str, instead: str) -> None:
    """Raise `InputError`, which names `what` and what to do `instead`, if a value is traced."""
    if any(isinstance(value, Tracer) for value in _values(tree)):
        raise InputError(
            f"{what} works on the host, so it cannot run under jax.jit, jax.vmap or jax.grad: "
            f"{instead}."
        )


def _values(tree: Any) -> Iterator[Any]:
    """Yield all leaves, also those of dataclasses and functions that are no pytrees."""
    # JAX warns of these leaves, which could be taken for containers.
    for leaf in jax.tree.leaves(tree, is_leaf=lambda one: isinstance(one, Iterator | ValuesView)):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _values(vars(leaf))
        elif isinstance(leaf, types.FunctionType):
            yield from _values([cell.cell_contents for cell in leaf.__closure__ or ()])
        else:
            yield leaf
