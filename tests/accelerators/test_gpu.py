"""Programs compiled for an H100 by JAX's CUDA plugin, which needs no GPU."""

import jax
import pytest

from jaxasr_interp.kernels.attention import attend
from jaxasr_interp.kernels.lens import readout
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler
from jaxasr_interp.runtime.targets import TargetMachine

H100 = TargetMachine.parse("h100-1")
pytestmark = [
    pytest.mark.skipif(not has_compiler(H100), reason="no CUDA plugin: see the extra gpu"),
    pytest.mark.usefixtures("optimised"),
]

QUERIES, HEADS, KEYS, D_HEAD = 4096, 20, 1500, 64


@pytest.mark.parametrize(("dtype", "holds_scores"), [("bfloat16", False), ("float32", True)])
def test_cudnn_is_chosen_for_the_device_that_a_program_is_compiled_for(dtype, holds_scores):
    of_keys = jax.ShapeDtypeStruct((HEADS, KEYS, D_HEAD), dtype)
    arguments = jax.ShapeDtypeStruct((QUERIES, HEADS, D_HEAD), dtype), of_keys, of_keys
    found = DeviceCompiler(H100).compile(jax.jit(attend), arguments, {})
    assert found is not None
    assert (found.temporaries >= 4 * QUERIES * HEADS * KEYS) == holds_scores
    assert found.temporaries < 50e6 or holds_scores


def test_gradients_of_many_rows_compile():
    """As attribution takes them: cotangents of many runs, in whatever axis they come."""
    rows = jax.ShapeDtypeStruct((8, 64, 2, 64), "bfloat16")
    keys = jax.ShapeDtypeStruct((2, 1500, 64), "bfloat16")

    def slopes(rows, k, v):
        def total(q):
            return attend(q, k, v).swapaxes(0, 1).astype("float32").sum()

        return jax.vmap(jax.grad(total))(rows)

    assert DeviceCompiler(H100).compile(jax.jit(slopes), (rows, keys, keys), {}) is not None


@pytest.mark.parametrize("positions", [32, 448])
def test_the_lens_of_all_layers_holds_a_bounded_part_of_the_logits(positions):
    layers, d_model, d_vocab = 32, 1280, 51866
    final = jax.ShapeDtypeStruct((positions, d_model), "bfloat16")
    embed = jax.ShapeDtypeStruct((d_vocab, d_model), "bfloat16")
    arguments = (
        jax.ShapeDtypeStruct((layers, positions, d_model), "bfloat16"),
        *(final, embed, jax.ShapeDtypeStruct((positions,), "int32")),
    )
    found = DeviceCompiler(H100).compile(jax.jit(readout), arguments, {})
    assert found is not None
    assert found.temporaries < 1e9
