"""The lens kernel, every implementation of it, against float64 numpy at awkward sizes.

Kernels are interpreted: what a block for a TPU has beyond its array is NaN then.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxasr_interp as ji
from helpers.tpu import tpu_mesh
from jaxasr_interp.kernels.lens import log_sum_exp, mean_embedding, mosaic_gpu, readout
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler, not_cached
from jaxasr_interp.runtime.devices import make_mesh
from jaxasr_interp.runtime.targets import TargetMachine

pytestmark = pytest.mark.usefixtures("optimised")

IMPLEMENTATIONS = ["xla", "mosaic_tpu"]
V5E, H100 = map(TargetMachine.parse, ("v5e-1", "h100-1"))
RAGGED = (3, 5, 16, 5003)
# Less than a chunk, a multiple of one, and neither, of tokens and then of rows, too:
# [stack, pos, d_model, d_vocab].
SIZES = [(2, 1, 3, 2), (1, 2, 16, 4096), RAGGED, (2, 261, 8, 1030)]
# Of `small` and `large-v3`.
SMALL, LARGE = (6, 64, 768, 51865), (8, 128, 1280, 51866)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def gpu_of_cpu(monkeypatch):
    """The CPU, as if it were a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with plgpu.force_gpu_interpret_mode():
        yield


@pytest.fixture(params=[*IMPLEMENTATIONS, "mosaic_gpu"])
def implementation_of_narrow(request):
    if request.param == "mosaic_gpu":
        request.getfixturevalue("gpu_of_cpu")
    return request.param


@functools.partial(jax.jit, static_argnames=("top_k", "implementation"))
def read(hidden, final, embed, targets, top_k, implementation):
    return readout(hidden, final, embed, targets, top_k=top_k, implementation=implementation)


def states(size, scale=1.0):
    """Hidden states, of which the last of the stack are the final ones, and embeddings."""
    stack, pos, d_model, d_vocab = size
    generator = np.random.default_rng(pos)
    hidden = generator.normal(0, 1, (stack, pos, d_model)).astype(np.float32)
    embed = generator.normal(0, scale / d_model**0.5, (d_vocab, d_model)).astype(np.float32)
    return hidden, embed


def dominated():
    """One token far above all others at every position, and one far below."""
    hidden, embed = states(RAGGED)
    hidden[..., 0] = 1
    embed[[4000, 17], 0] = 1000, -1000
    return hidden, embed


def tied():
    """Small integers, whose dots are exact: hundreds of tokens have the same logit."""
    generator = np.random.default_rng(0)
    stack, pos, d_model, d_vocab = RAGGED
    shapes = (stack, pos, d_model), (d_vocab, d_model)
    return tuple(generator.integers(-1, 2, shape).astype(np.float32) for shape in shapes)


CASES = {
    **{"x".join(map(str, size)): functools.partial(states, size) for size in SIZES},
    "sharp": functools.partial(states, RAGGED, 30.0),
    "dominated": dominated,
    "tied": tied,
}


def expect(read, hidden, embed, targets, near):
    """Hold a readout against float64 numpy."""
    hidden, embed = hidden.astype(np.float64), embed.astype(np.float64)
    logits = hidden @ embed.T
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    top_k = read.top_tokens.shape[-1]
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    np.testing.assert_array_equal(read.top_tokens, order)
    np.testing.assert_allclose(read.top_log_probs, np.take_along_axis(log_p, order, -1), **near)
    places = np.broadcast_to(targets, hidden.shape[:-1])[..., None]
    own = np.take_along_axis(log_p, places, -1)
    np.testing.assert_allclose(read.target_log_prob, own[..., 0], **near)
    rank = (logits > np.take_along_axis(logits, places, -1)).sum(-1)
    np.testing.assert_array_equal(read.target_rank, rank)
    np.testing.assert_allclose(read.entropy, -(np.exp(log_p) * log_p).sum(-1), **near)
    kl = (np.exp(log_p[-1]) * (log_p[-1] - log_p)).sum(-1)
    np.testing.assert_allclose(read.kl, kl, **near)
    assert (np.asarray(read.kl) >= 0).all()


@pytest.mark.parametrize("case", CASES)
def test_the_readout_equals_float64_numpy(implementation, case):
    hidden, embed = CASES[case]()
    targets = np.random.default_rng(0).integers(0, len(embed), hidden.shape[1]).astype(np.int32)
    arguments = map(jnp.asarray, (hidden, hidden[-1], embed, targets))
    out = read(*arguments, top_k=min(5, len(embed)), implementation=implementation)
    largest = np.abs(hidden @ embed.T).max()
    expect(out, hidden, embed, targets, {"rtol": 1e-5, "atol": 2e-6 * max(1, largest)})


@pytest.mark.parametrize("size", SIZES)
def test_narrow_states_are_read_in_float32(implementation_of_narrow, size):
    hidden, embed = (jnp.asarray(x, jnp.bfloat16) for x in states(size))
    targets = jnp.arange(size[1], dtype=jnp.int32) % size[3]
    top_k = min(5, size[3])
    out = read(
        hidden, hidden[-1], embed, targets, top_k=top_k, implementation=implementation_of_narrow
    )
    assert {str(x.dtype) for x in jax.tree.leaves(out)} == {"float32", "int32"}
    expect(out, *map(np.asarray, (hidden, embed, targets)), {"rtol": 1e-5, "atol": 1e-5})


@pytest.mark.parametrize("case", ["sharp", "dominated", "tied"])
def test_parts_of_the_vocabulary_are_merged(gpu_of_cpu, monkeypatch, case):
    """On a GPU; parts of many blocks, as real vocabularies have."""
    monkeypatch.setattr(mosaic_gpu, "_MULTIPROCESSORS", 2)
    hidden, embed = (jnp.asarray(x, jnp.bfloat16) for x in CASES[case]())
    targets = jnp.asarray([17, 4000, 0, 5002, 2499], jnp.int32)
    out = readout(hidden, hidden[-1], embed, targets, top_k=16, implementation="mosaic_gpu")
    hidden, embed = (np.asarray(x, np.float32) for x in (hidden, embed))
    largest = np.abs(hidden @ embed.T).max()
    near = {"rtol": 1e-5, "atol": 2e-6 * max(1, largest)}
    expect(out, hidden, embed, np.asarray(targets), near)


def test_a_token_is_not_above_itself(implementation):
    """Though its logit, of another dot, may be rounded down."""
    hidden, embed = states((1, 300, 64, 1500))
    best = (hidden[0].astype(np.float64) @ embed.T.astype(np.float64)).argmax(-1)
    arguments = map(jnp.asarray, (hidden, hidden[-1], embed, best.astype(np.int32)))
    out = read(*arguments, top_k=1, implementation=implementation)
    np.testing.assert_array_equal(out.target_rank, 0)


@pytest.mark.parametrize(
    ("implementation", "top_k"), [("xla", 16), ("mosaic_tpu", 16), ("xla", 4000)]
)
def test_many_top_tokens(implementation, top_k):
    """As many as the kernel for TPUs can give, and more than a chunk has."""
    hidden, embed = tied()
    targets = np.arange(5, dtype=np.int32)
    arguments = map(jnp.asarray, (hidden, hidden[-1], embed, targets))
    out = read(*arguments, top_k=top_k, implementation=implementation)
    expect(out, hidden, embed, targets, {"rtol": 1e-5, "atol": 2e-5})


def test_readouts_can_be_vmapped(implementation):
    hidden, embed = map(jnp.asarray, states(RAGGED))
    targets = jnp.arange(5, dtype=jnp.int32)

    def one(hidden):
        return readout(hidden, hidden, embed, targets, implementation=implementation)

    each = jax.jit(functools.partial(jax.lax.map, one))(hidden)
    together = jax.jit(jax.vmap(one))(hidden)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(near, together, each)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("size", SIZES)
def test_log_sum_exp_and_its_gradients(implementation, size, scale):
    hidden, embed = states(size, scale)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    logits = hidden.astype(np.float64) @ embed.T.astype(np.float64)
    lse = np.logaddexp.reduce(logits, axis=-1)
    p = np.exp(logits - lse[:, None])
    weights = np.random.default_rng(1).normal(size=len(hidden)).astype(np.float32)
    arguments = map(jnp.asarray, (hidden, embed, weights))
    ((of_hidden, of_embed), value), (same, mean) = differentiate(*arguments, implementation)
    near = {"rtol": 1e-4, "atol": 2e-5 * scale}
    np.testing.assert_allclose(value, lse, **near)
    np.testing.assert_array_equal(value, same)
    np.testing.assert_allclose(mean, p @ embed, **near)
    np.testing.assert_allclose(of_hidden, weights[:, None] * (p @ embed), **near)
    np.testing.assert_allclose(of_embed, (weights[:, None] * p).T @ hidden, **near)


@functools.partial(jax.jit, static_argnames="implementation")
def differentiate(hidden, embed, weights, implementation):
    """The gradient of a weighted sum of log-sum-exps, those, and the mean embeddings."""

    def weighted(hidden, embed):
        lse = log_sum_exp(hidden, embed, implementation=implementation)
        return (weights * lse).sum(), lse

    gradient = jax.grad(weighted, argnums=(0, 1), has_aux=True)
    return gradient(hidden, embed), mean_embedding(hidden, embed, implementation=implementation)


def test_the_logits_are_never_whole():
    """At the sizes of `base` with 128 positions, against the six layers' logits alone."""
    implementation = "xla"
    d_model, d_vocab = 512, 51865

    def bytes_of(function, *shapes):
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def lens(hidden, embed):
        targets = jnp.zeros(128, jnp.int32)
        return readout(hidden, hidden[-1], embed, targets, implementation=implementation)

    def training(hidden, embed):
        return log_sum_exp(hidden, embed, implementation=implementation).sum()

    logits = 4 * 6 * 128 * d_vocab
    assert bytes_of(lens, (6, 128, d_model), (d_vocab, d_model)) < logits / 10
    assert bytes_of(jax.grad(training), (6 * 128, d_model), (d_vocab, d_model)) < logits / 10


def test_what_a_kernel_does_not_take_is_said(x64, monkeypatch):
    def ask(hidden, embed, top_k=5, implementation="mosaic_tpu"):
        targets = jnp.zeros(hidden.shape[1], jnp.int32)
        arguments = hidden, hidden[-1], embed, targets
        return readout(*arguments, top_k=top_k, implementation=implementation)

    hidden, embed = map(jnp.asarray, states(RAGGED))
    with pytest.raises(ji.InputError, match="takes float32 or bfloat16, not float64: choose 'xla'"):
        ask(hidden.astype("float64"), embed.astype("float64"))
    with pytest.raises(ji.InputError, match=r"takes .*, not bfloat16 and float32: choose 'xla'"):
        ask(hidden, embed.astype("bfloat16"))
    with pytest.raises(ji.InputError, match="gives up to 16 top tokens, not 17: choose 'xla'"):
        ask(hidden, embed, top_k=17)
    shared = jax.device_put(embed, NamedSharding(make_mesh(jax.devices()), P()))
    with pytest.raises(ji.InputError, match="runs on one device, not on 4: choose 'xla'"):
        ask(hidden, shared)
    narrow = hidden.astype("bfloat16"), embed.astype("bfloat16")
    with pytest.raises(ji.InputError, match="runs on NVIDIA GPUs, not on CPU: choose 'xla'"):
        ask(*narrow, implementation="mosaic_gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ji.InputError, match="runs on TPUs, not on GPU: choose 'xla'"):
        ask(hidden, embed)
    with pytest.raises(
        ji.InputError, match="No lens kernel 'magic': choose one of xla, mosaic_tpu"
    ):
        log_sum_exp(hidden[0], embed, implementation="magic")


def temporaries(machine, call, program, *arrays):
    """Compile a program for a machine and return the bytes of its temporaries."""
    lowered = jax.jit(program).lower(*DeviceCompiler(machine).placed(arrays))
    with not_cached():
        compiled = lowered.compile()
    assert call in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes


def lens_of(size, dtype, implementation):
    """A lens, its arrays, and the bytes that its logits would take."""
    layer, pos, d_model, d_vocab = size
    arrays = ((layer, pos, d_model), dtype), ((d_vocab, d_model), dtype)

    def lens(hidden, embed):
        targets = jnp.zeros(pos, jnp.int32)
        return readout(hidden, hidden[-1], embed, targets, top_k=16, implementation=implementation)

    return lens, [jax.ShapeDtypeStruct(*array) for array in arrays], 4 * layer * pos * d_vocab


@pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu")
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (LARGE, "bfloat16"),
        pytest.param(LARGE, "float32", marks=pytest.mark.slow),
        pytest.param(SMALL, "bfloat16", marks=pytest.mark.slow),
        (SMALL, "float32"),
    ],
)
def test_a_tpu_writes_no_logits(size, dtype):
    lens, arrays, logits = lens_of(size, dtype, None)
    assert temporaries(V5E, "tpu_custom_call", lens, *arrays) < logits / 20
    rows = jax.ShapeDtypeStruct((size[0] * size[1], size[2]), dtype)
    assert temporaries(V5E, "tpu_custom_call", log_sum_exp, rows, arrays[1]) < logits / 20


@pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu")
def test_the_kernel_for_tpus_where_float64_is_enabled():
    lens, arrays, logits = lens_of((2, 64, 128, 5003), "float32", None)
    with jax.enable_x64(True):
        assert temporaries(V5E, "tpu_custom_call", lens, *arrays) < logits


@pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu")
def test_on_several_tpus_xla_reads():
    DeviceCompiler(V5E)
    shared = NamedSharding(tpu_mesh("v5e:2x4", 8), P())
    lens, arrays, _ = lens_of((2, 64, 128, 5003), "float32", None)
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shared) for x in arrays]
    assert "tpu_custom_call" not in jax.jit(lens).lower(*arrays).as_text()


@pytest.mark.skipif(not has_compiler(H100), reason="no GPU compiler: see the extra gpu")
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_gpu_writes_no_logits(monkeypatch, size):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    lens, arrays, logits = lens_of(size, "bfloat16", "mosaic_gpu")
    padded = 2 * size[2] * (size[3] + 8)
    assert temporaries(H100, "mosaic_gpu", lens, *arrays) < padded + logits / 20
