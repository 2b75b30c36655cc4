"""The lens kernel, every implementation of it, against float64 numpy at awkward sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxasr_interp.kernels.lens import log_sum_exp, mean_embedding

IMPLEMENTATIONS = ["xla"]
# Less than a chunk, a multiple of it, and neither.
SIZES = [(1, 3, 2), (5, 16, 4096), (7, 16, 5003)]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


def states(rows, d_model, d_vocab, scale=1.0):
    generator = np.random.default_rng(rows)
    hidden = generator.normal(0, 1, (rows, d_model)).astype(np.float32)
    embed = generator.normal(0, scale / d_model**0.5, (d_vocab, d_model)).astype(np.float32)
    return hidden, embed


def softmax(hidden, embed):
    """Log-sum-exp and probabilities in float64."""
    logits = hidden.astype(np.float64) @ embed.T.astype(np.float64)
    lse = np.logaddexp.reduce(logits, axis=-1)
    return lse, np.exp(logits - lse[:, None])


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("size", SIZES)
def test_log_sum_exp_and_its_gradients(implementation, size, scale):
    hidden, embed = states(*size, scale)
    lse, p = softmax(hidden, embed)
    weights = np.random.default_rng(1).normal(size=len(hidden)).astype(np.float32)

    @jax.jit
    def both(hidden, embed, weights):
        def weighted(hidden, embed):
            lse = log_sum_exp(hidden, embed, implementation=implementation)
            return (weights * lse).sum(), lse

        grad = jax.grad(weighted, argnums=(0, 1), has_aux=True)
        return grad(hidden, embed), mean_embedding(hidden, embed, implementation=implementation)

    ((of_hidden, of_embed), value), (same, mean) = both(*map(jnp.asarray, (hidden, embed, weights)))
    near = {"rtol": 1e-4, "atol": 2e-5 * scale}
    np.testing.assert_allclose(value, lse, **near)
    np.testing.assert_array_equal(value, same)
    np.testing.assert_allclose(mean, p @ embed, **near)
    np.testing.assert_allclose(of_hidden, weights[:, None] * (p @ embed), **near)
    np.testing.assert_allclose(of_embed, (weights[:, None] * p).T @ hidden, **near)
