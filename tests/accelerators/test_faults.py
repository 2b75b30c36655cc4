"""What the gate for accelerators looks for is found where it is: each fault put in, and named."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from helpers.hlo import problems
from helpers.tpu import tpu_mesh
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler, not_cached
from jaxasr_interp.runtime.devices import DATA
from jaxasr_interp.runtime.targets import TargetMachine

V5E = TargetMachine.parse("v5e-1")
pytestmark = [
    pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu"),
    pytest.mark.usefixtures("optimised"),
]
LAYERS, WIDTH = 6, 4096


def found(program, *arguments):
    lowered = jax.jit(program).lower(*arguments)
    with not_cached():
        return problems(lowered, lowered.compile(), LAYERS)


@pytest.fixture(scope="module")
def on_tpu():
    return DeviceCompiler(V5E).placed


def through_layers(weights, rows):
    return jax.lax.fori_loop(0, LAYERS, lambda i, rows: rows @ weights[i], rows)


@pytest.mark.parametrize(("dtype", "copied"), [("bfloat16", False), ("float32", True)])
def test_a_copy_of_all_layers_weights_is_found(on_tpu, dtype, copied):
    """For products of float32 the compiler rounds the weights of all layers before the loop."""
    shapes = (LAYERS, WIDTH, WIDTH), (8, WIDTH)
    said = found(through_layers, *on_tpu([jax.ShapeDtypeStruct(s, dtype) for s in shapes]))
    assert said == [f"convert of a whole stack, bf16[{LAYERS}x{WIDTH}x{WIDTH}], in "] * copied


def test_an_exchange_between_devices_is_found():
    mesh = tpu_mesh("v5e:2x4", 8)
    rows = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=NamedSharding(mesh, P(DATA)))
    total = functools.partial(jnp.sum, axis=0)
    assert found(total, rows) == ["exchanges values between devices: all-reduce"]


def test_an_oversize_temporary_is_found(on_tpu):
    """Scores of all pairs of rows, of which there are more than weights and rows."""
    rows = on_tpu(jax.ShapeDtypeStruct((8192, 256), jnp.bfloat16))

    def through_scores(rows):
        scores = jax.nn.softmax(rows @ rows.T)
        return (scores @ rows).astype(rows.dtype), scores.sort().max(0)

    said = found(through_scores, rows)
    assert said
    assert all("of more than twice what comes in or goes out" in one for one in said)
    assert any("[8192x8192]" in one for one in said)


def test_float64_is_found(on_tpu):
    with jax.enable_x64(True):
        rows = on_tpu(jax.ShapeDtypeStruct((8, 128), jnp.float32))
        (said,) = found(lambda rows: (rows.astype(jnp.float64) + 1).astype(jnp.float32), rows)
    assert said.startswith("float64: ")
    assert "f64" in said
