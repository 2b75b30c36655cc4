"""Which programs the library runs, and with what shapes; none of them is run."""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxasr_interp

_JITTED = type(jax.jit(lambda: None))


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a jitted function.

    Attributes:
        name: module and name of the function.
        program: the function.
        arguments: its arguments, with shapes for arrays.
        keywords: those given by name, static ones among them.
        results: the shapes of what it returns.
    """

    name: str
    program: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: Any


@dataclasses.dataclass
class Recorder:
    """Stands for a jitted function: it notes each call, and makes up what it returns.

    Attributes:
        name: module and name of the function.
        program: the function.
        calls: the calls of all functions so far, those of the same shapes once.
    """

    name: str
    program: Any
    calls: dict[Any, Call]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Note the call; within another program run as ever."""
        leaves = jax.tree.leaves((arguments, keywords))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self.program(*arguments, **keywords)
        results = self.program.eval_shape(*arguments, **keywords)
        call = Call(self.name, self.program, *_shapes((arguments, keywords)), results)
        shapes, structure = jax.tree.flatten((call.arguments, call.keywords))
        self.calls.setdefault((self.name, structure, *shapes), call)
        return jax.tree.map(_made_up, results)


def record(monkeypatch: Any) -> dict[Any, Call]:
    """From now on note the calls of all jitted functions of the library.

    Args:
        monkeypatch: pytest's, which ends it.

    Returns:
        The calls; it grows with them.
    """
    calls: dict[Any, Call] = {}
    recorders = {name: Recorder(name, program, calls) for name, program in jitted().items()}
    by_program = {id(one.program): one for one in recorders.values()}
    for module, name, value in _values():
        if isinstance(value, _JITTED) and id(value) in by_program:
            monkeypatch.setattr(module, name, by_program[id(value)])
    return calls


@functools.cache
def jitted() -> dict[str, Any]:
    """All jitted functions of the library, by module and name."""
    folder = Path(jaxasr_interp.__file__).parent
    for room in ("cli", "studies", "verification"):
        # What these import is all there is.
        for file in (folder / room).glob("*.py"):
            importlib.import_module(f"jaxasr_interp.{room}.{file.stem}")
    return {
        f"{module.__name__.removeprefix('jaxasr_interp.')}.{name}": value
        for module, name, value in _values()
        if isinstance(value, _JITTED) and value.__module__ == module.__name__
    }


def _values() -> Iterator[tuple[Any, str, Any]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "jaxasr_interp":
            for name, value in list(vars(module).items()):
                yield module, name, value


def _made_up(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros, and truth: whoever asks whether something is done hears that it is."""
    return jnp.full(leaf.shape, leaf.dtype == bool, leaf.dtype)


def _shapes(tree: Any) -> Any:
    def shape(leaf: Any) -> Any:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        # Of a host's array JAX takes the dtype that it has itself.
        return jax.ShapeDtypeStruct(leaf.shape, jnp.asarray(leaf).dtype)

    return jax.tree.map(shape, tree)
