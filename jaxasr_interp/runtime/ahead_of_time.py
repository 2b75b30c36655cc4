"""Compiling programs for a device that is not here, to learn what memory they take.

The compiler is the device's own (libtpu, the extra `tpu`; for GPUs JAX's CUDA plugin, the extra
`gpu`), so its figures are those of the device: with the padding of every layout, and all
temporaries.
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

from jaxasr_interp.kernels.attention import has_cudnn
from jaxasr_interp.runtime.devices import make_mesh
from jaxasr_interp.runtime.targets import TargetMachine

# The compilers look for the devices of this machine and for their users, unless told these.
_NO_DEVICE_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""
"""What XLA is told of a Hopper GPU (NVIDIA's H100 white paper)."""


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


def has_compiler(machine: TargetMachine) -> bool:
    """Tell whether the compiler for a machine that is not this one is installed here."""
    if machine.topology is not None:
        return importlib.util.find_spec("libtpu") is not None
    return machine.platform == "gpu" and machine.bandwidth is not None and has_cudnn()


class DeviceCompiler:
    """The compiler of one device of a machine that need not be here.

    Args:
        machine: a machine with TPUs or Hopper GPUs, from `TargetMachine.parse`.
    """

    def __init__(self, machine: TargetMachine):
        from jax.experimental import topologies

        for variable, value in _NO_DEVICE_HERE.items():
            os.environ.setdefault(variable, value)
        if machine.topology is not None:
            self.name = "libtpu"
            found = topologies.get_topology_desc(machine.topology, "tpu")
        else:
            self.name = "XLA"
            told = _HOPPER.format(
                name=machine.name, memory=machine.memory, bandwidth=machine.bandwidth
            )
            found = topologies.get_topology_desc(
                machine.name, "cuda", target_config=told, topology="1x1x1"
            )
        self.mesh: Mesh = make_mesh(found.devices[:1])

    def size(self, tree: Any) -> int:
        """Return the bytes that arrays take on the device, with the padding of their layouts."""
        return sum(self._size(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))

    def compile(self, program: Any, arguments: Any, static: dict[str, Any]) -> ProgramMemory | None:
        """Compile a jitted program.

        Args:
            program: the program.
            arguments: its arguments, of which only shapes and dtypes count.
            static: its static arguments.

        Returns:
            What it takes; `None` if it does not fit the memory at all.
        """
        lowered = program.lower(*self.placed(arguments), **static)
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
        array = self.placed(jax.ShapeDtypeStruct(shape, dtype))
        with not_cached():
            compiled = jax.jit(lambda x: x).lower(array).compile()
        found = compiled.memory_analysis()
        assert found is not None
        return found.argument_size_in_bytes

    def placed[Tree](self, tree: Tree) -> Tree:
        """Return the shapes of arrays, on the device; anything else stays as it is."""
        sharding = NamedSharding(self.mesh, P())

        def place(leaf: Any) -> Any:
            if not hasattr(leaf, "shape"):
                return leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, tree)


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
