"""Shared-key attention against float64 numpy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.kernels.attention import attend, attend_part, holds_scores, merge
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, has_compiler
from jaxasr_interp.runtime.targets import TargetMachine

V5E = TargetMachine.parse("v5e-1")
# Rows and keys that fill no block, and more rows than one block has.
pytestmark = pytest.mark.usefixtures("optimised")

FULL_REGISTERS = [(1, 2, 1, 64), (77, 4, 150, 64), (1300, 8, 33, 16)]
SHAPES = [(1, 1, 1, 4), (7, 2, 5, 64), (33, 3, 150, 16)]
BARS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}


def by_hand(q, k, v, mask=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("qhd,hkd->hqk", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask[None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,hkd->qhd", weights / weights.sum(-1, keepdims=True), v)


def random_inputs(shape, dtype, scale=1.0):
    queries, heads, keys, d_head = shape
    rng = np.random.default_rng(0)
    q = scale * rng.normal(size=(queries, heads, d_head))
    k, v = (rng.normal(size=(heads, keys, d_head)) for _ in range(2))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize(
    ("implementation", "dtype", "shape"),
    [
        *itertools.product([None], BARS, SHAPES),
        *itertools.product(["mosaic_tpu"], ["float32", "bfloat16"], FULL_REGISTERS),
    ],
)
def test_attention_equals_numpy(implementation, dtype, shape, scale):
    with jax.enable_x64(dtype == "float64"):
        q, k, v = random_inputs(shape, dtype, scale)
        found = np.asarray(attend(q, k, v, implementation=implementation), np.float64)
    # A score of 1000 is known to 1e-4 in float32, and so are the ratios of its weights.
    largest = float(np.abs(np.einsum("qhd,hkd->hqk", *map(np.float64, (q, k)))).max())
    wide = np.finfo("float64" if dtype == "float64" else "float32")
    bar = BARS[dtype] + 4 * wide.eps * largest
    np.testing.assert_allclose(found, by_hand(q, k, v), rtol=0, atol=bar * np.abs(v).max())


@pytest.mark.parametrize("implementation", ["xla", "mosaic_tpu"])
def test_a_mask_hides_keys(implementation):
    q, k, v = random_inputs((6, 2, 6, 64), "float32")
    mask = np.tril(np.ones((6, 6), bool))
    found = attend(q, k, v, jnp.asarray(mask), implementation=implementation)
    np.testing.assert_allclose(found, by_hand(q, k, v, mask), atol=1e-5)
    np.testing.assert_allclose(found[0], v[:, 0], rtol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "mosaic_tpu"])
def test_a_query_that_sees_no_key_gets_zero_and_spoils_no_other(implementation):
    q, k, v = random_inputs((9, 2, 70, 64), "float32")
    mask = jnp.ones((9, 70), bool).at[4].set(False)
    found = attend(q, k, v, mask, implementation=implementation)
    seen = np.delete(np.arange(9), 4)
    np.testing.assert_array_equal(found[4], 0)
    np.testing.assert_allclose(found[seen], by_hand(q, k, v)[seen], atol=1e-5)


def windows(queries, keys):
    """For each query a window of the keys, none for the first."""
    rng = np.random.default_rng(2)
    start, width = rng.integers(0, keys, queries), rng.integers(1, keys, queries)
    width[0] = 0
    return (np.arange(keys) >= start[:, None]) & (np.arange(keys) < (start + width)[:, None])


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", [None, "xla", "mosaic_tpu"])
def test_parts_of_the_keys_merge_to_the_whole(implementation, dtype, scale):
    """Each query's window apart from the keys around it; the first query's window is empty."""
    q, k, v = random_inputs((77, 2, 150, 64), dtype, scale)
    mask = windows(77, 150)
    inside, around = (
        attend_part(q, k, v, jnp.asarray(part), implementation=implementation)
        for part in (mask, ~mask)
    )
    np.testing.assert_array_equal(inside[0][0], 0)
    np.testing.assert_array_equal(inside[1][0], -np.inf)
    z, log_sum = (np.asarray(x, np.float64) for x in merge(inside, around))
    scores = np.einsum("qhd,hkd->qhk", *map(np.float64, (q, k))) / 8
    bar = BARS[dtype] + 4 * np.finfo("float32").eps * 8 * np.abs(scores).max()
    np.testing.assert_allclose(z, by_hand(q, k, v), rtol=0, atol=bar * np.abs(v).max())
    np.testing.assert_allclose(log_sum, np.logaddexp.reduce(scores, -1), rtol=1e-5, atol=bar)


@pytest.mark.parametrize("implementation", ["xla", "mosaic_tpu"])
def test_gradients_go_through_the_merging_of_parts(implementation):
    arrays = random_inputs((20, 2, 70, 64), "float32")
    mask = jnp.asarray(windows(20, 70))

    def total(q, k, v):
        parts = (attend_part(q, k, v, m, implementation=implementation) for m in (mask, ~mask))
        return jnp.sin(merge(*parts)[0]).sum()

    found = jax.grad(total, argnums=(0, 1, 2))(*arrays)
    expected = jax.grad(lambda *qkv: jnp.sin(attend(*qkv)).sum(), argnums=(0, 1, 2))(*arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_lies_behind_a_block_does_not_leak():
    """A block of queries that they do not fill is padded, when interpreted, with NaN."""
    q, k, v = random_inputs((700, 2, 50, 64), "float32")
    found = attend(q, k, v, implementation="mosaic_tpu")
    assert np.isfinite(np.asarray(found)).all()
    np.testing.assert_allclose(found, by_hand(q, k, v), atol=1e-5)


def test_gradients_of_the_kernel_are_those_of_xla():
    arrays = random_inputs((40, 2, 70, 64), "float32")
    mask = jnp.asarray(np.random.default_rng(1).random((40, 70)) < 0.7)

    def total(implementation, *arrays):
        return jnp.sin(attend(*arrays, mask, implementation=implementation)).sum()

    found, expected = (
        jax.grad(functools.partial(total, name), argnums=(0, 1, 2))(*arrays)
        for name in ("mosaic_tpu", "xla")
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.skipif(not has_compiler(V5E), reason="no TPU compiler: see the extra tpu")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("run", "queries", "keys", "masked"),
    [(attend, 1056, 1500, False), (attend, 528, 560, True), (attend_part, 960, 1500, True)],
    ids=["all", "masked", "part"],
)
def test_on_a_tpu_no_scores_are_written(run, dtype, queries, keys, masked):
    shapes = (queries, 20, 64), (20, keys, 64), (20, keys, 64)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    mask = [jax.ShapeDtypeStruct((queries, keys), bool)] * masked
    found = DeviceCompiler(V5E).compile(jax.jit(run), [*arrays, *mask], {})
    assert found is not None, "it does not fit the chip's fast memory"
    assert found.temporaries < 4 * 20 * queries * keys / 10


def test_it_can_be_differentiated(x64):
    q, k, v = random_inputs((4, 2, 5, 8), "float64")
    jax.test_util.check_grads(
        lambda *qkv: attend(*map(jnp.asarray, qkv)), (q, k, v), order=1, modes=["rev"]
    )


def test_what_an_implementation_does_not_take_is_said():
    q, k, v = random_inputs(SHAPES[1], "float32")
    with pytest.raises(ji.InputError, match=r"bfloat16 or float16, not float32: choose .*xla"):
        attend(q, k, v, implementation="cudnn")
    half = (x.astype("bfloat16") for x in (q, k, v))
    with pytest.raises(ji.InputError, match="runs on NVIDIA GPUs, not on CPU"):
        attend(*half, implementation="cudnn")
    with pytest.raises(ji.InputError, match=r"no exact log-sum-exp: choose .*xla"):
        attend_part(q, k, v, implementation="cudnn")
    with pytest.raises(ji.InputError, match=r"heads that fill registers of 128 lanes, not 2 of 8"):
        attend(q[..., :8], k[..., :8], v[..., :8], implementation="mosaic_tpu")
    with pytest.raises(ji.InputError, match="No attention kernel 'magic': choose one of xla"):
        attend(q, k, v, implementation="magic")


def test_which_scores_are_held():
    assert holds_scores("bfloat16", "cpu", 12, 64)
    assert holds_scores("float32", "gpu", 12, 64)
    assert not holds_scores("bfloat16", "gpu", 12, 64)
    assert not holds_scores("float32", "tpu", 12, 64)
    assert holds_scores("float32", "tpu", 5, 64)
