"""Shared-key attention against float64 numpy."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jaxasr_interp.kernels.attention import attend, holds_scores

import jaxasr_interp as ji

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
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_equals_numpy(shape, dtype, scale):
    with jax.enable_x64(dtype == "float64"):
        q, k, v = random_inputs(shape, dtype, scale)
        found = np.asarray(attend(q, k, v), np.float64)
    # A score of 1000 is known to 1e-4 in float32, and so are the ratios of its weights.
    largest = float(np.abs(np.einsum("qhd,hkd->hqk", *map(np.float64, (q, k)))).max())
    wide = np.finfo("float64" if dtype == "float64" else "float32")
    bar = BARS[dtype] + 4 * wide.eps * largest
    np.testing.assert_allclose(found, by_hand(q, k, v), rtol=0, atol=bar * np.abs(v).max())


def test_a_mask_hides_keys(x64):
    q, k, v = random_inputs((6, 2, 6, 8), "float64")
    mask = np.tril(np.ones((6, 6), bool))
    found = attend(q, k, v, jnp.asarray(mask))
    np.testing.assert_allclose(found, by_hand(q, k, v, mask), rtol=1e-12)
    np.testing.assert_allclose(found[0], v[:, 0], rtol=1e-12)


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
    with pytest.raises(ji.InputError, match="No attention kernel 'magic': choose one of xla"):
        attend(q, k, v, implementation="magic")
    assert holds_scores("bfloat16", "cpu")
    assert holds_scores("float32", "gpu")
    assert not holds_scores("bfloat16", "gpu")
