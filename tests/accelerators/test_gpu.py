"""Programs compiled for an H100 by JAX's CUDA plugin, which needs no GPU."""

import jax
import pytest
from jaxasr_interp.kernels.attention import attend  # pyright: ignore[reportMissingImports]

from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler
from jaxasr_interp.runtime.targets import TargetMachine

H100 = TargetMachine.parse("h100-1")
pytestmark = pytest.mark.skipif(not has_compiler(H100), reason="no CUDA plugin: see the extra gpu")

QUERIES, HEADS, KEYS, D_HEAD = 4096, 20, 1500, 64


@pytest.mark.parametrize(("dtype", "holds_scores"), [("bfloat16", False), ("float32", True)])
def test_cudnn_is_chosen_for_the_device_that_a_program_is_compiled_for(dtype, holds_scores):
    of_keys = jax.ShapeDtypeStruct((HEADS, KEYS, D_HEAD), dtype)
    arguments = jax.ShapeDtypeStruct((QUERIES, HEADS, D_HEAD), dtype), of_keys, of_keys
    found = DeviceCompiler(H100).compile(jax.jit(attend), arguments, {})
    assert found is not None
    assert (found.temporaries >= 4 * QUERIES * HEADS * KEYS) == holds_scores
    assert found.temporaries < 50e6 or holds_scores
