"""What a sweep takes for a metric: one of `ji.metrics`, or a plain function of the logits."""

import jax
import jaxtyping
import numpy as np
import pytest

import jaxasr_interp as ji


def last_of_3(logits):
    return jax.nn.log_softmax(logits[-1])[3]


def test_a_plain_function_is_a_metric(tiny, utterances):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=clean.tokens, layers=[2])
    metric = [last_of_3, ji.metrics.log_prob(3)]
    plan.estimate(metric)
    found = ji.activation_patching(tiny, plan, clean=clean, corrupted=corrupted, metric=metric)
    assert found.metrics == ("last_of_3", "log_prob")
    np.testing.assert_allclose(found.patched[0], found.patched[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("kl", r"The metric is 'kl': make one, .*ji.metrics.custom\(function\)"),
        (ji.metrics.kl, r"The metric is kl: make one, as in ji.metrics.kl\(\)"),
        (np.ones(3), "The metric is ndarray: make one"),
        (lambda logits, clean: logits[0, 0], r"takes \(logits, clean\): .* of \(logits\)"),
        (lambda logits: logits, r"gives \(7, 48\): expected a single number"),
        (lambda logits: None, "gives NoneType: expected a single number"),
        (lambda logits: float(logits[0, 0]), "asks for the value of an argument"),
        (lambda logits: logits[0, 0] if logits[0, 0] > 0 else 0.0, r"jnp.where\(condition"),
    ],
)
def test_what_is_no_metric_is_named(tiny, utterances, monkeypatch, metric, message):
    # Else the tests' own check of types, which users do not have, comes first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=clean.tokens, layers=[2])
    with pytest.raises(ji.InputError, match=message):
        ji.activation_patching(tiny, plan, clean=clean, corrupted=corrupted, metric=metric)
