"""Compiling programs for a TPU core on a machine that has none, to learn what memory they take.

The compiler is libtpu's own (the extra `tpu`), so its figures are those of the device: with the
padding of every layout, and all temporaries.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxasr_interp.runtime.devices import make_mesh

# libtpu looks for the TPU of this machine and for its other users, unless it is told these.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """The bytes that a program takes in addition to its arguments.

    Attributes:
        results: its results.
        temporaries: what it needs while it runs.
        code: its instructions.
    """

    results: int
    temporaries: int
    code: int


def has_compiler() -> bool:
    """Tell whether the TPU's compiler is installed here."""
    return importlib.util.find_spec("libtpu") is not None


class TpuCompiler:
    """The compiler of one TPU core.

    Args:
        topology: the core's name in the compiler, such as `v5e:1x1`.
    """

    def __init__(self, topology: str):
        from jax.experimental import topologies

        for name, value in _NO_TPU_HERE.items():
            os.environ.setdefault(name, value)
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
        self.mesh: Mesh = make_mesh(found.devices[:1])

    def size(self, tree: Any) -> int:
        """Return the bytes that arrays take on the core, with the padding of their layouts."""
        return sum(self._size(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))

    def compile(self, program: Any, arguments: Any, static: dict[str, Any]) -> ProgramMemory | None:
        """Compile a jitted program.

        Args:
            program: the program.
            arguments: its arguments, of which only shapes and dtypes count.
            static: its static arguments.

        Returns:
            What it takes; `None` if it does not fit the core's memory at all.
        """
        lowered = program.lower(*self._placed(arguments), **static)
        try:
            with not_cached():
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
        found = compiled.memory_analysis()
        return ProgramMemory(
            found.output_size_in_bytes,
            found.temp_size_in_bytes,
            found.generated_code_size_in_bytes,
        )

    @functools.cache  # noqa: B019
    def _size(self, shape: tuple[int, ...], dtype: Any) -> int:
        array = self._placed(jax.ShapeDtypeStruct(shape, dtype))
        with not_cached():
            compiled = jax.jit(lambda x: x).lower(array).compile()
        found = compiled.memory_analysis()
        assert found is not None
        return found.argument_size_in_bytes

    def _placed[Tree](self, tree: Tree) -> Tree:
        sharding = NamedSharding(self.mesh, P())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )


@contextlib.contextmanager
def not_cached() -> Iterator[None]:
    """Keep programs out of the cache on disk: those of absent devices cannot be read from it."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)
