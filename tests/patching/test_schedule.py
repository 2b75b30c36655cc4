"""Every way of going through the layers gives the same numbers."""

import dataclasses

import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.patching import chunks
from jaxasr_interp.patching.schedule import Schedule, make_schedule

# One of each way to enter: as the embeddings, in the layer (rows; keys), in the next one.
SITES = ["embed", "resid_pre", "k", "cross_q"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("together", "segments", "joined"),
    [
        (1, 0, False),
        (2, 0, False),
        (1, 0, True),
        (2, 0, True),
        (1, 1, False),
        (2, 2, True),
        (3, 1, False),
        (3, 3, False),
    ],
)
def test_schedules_differ_in_nothing_but_speed(
    tiny, utterances, golden, monkeypatch, site, together, segments, joined
):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site=site)
    metric = ji.metrics.log_prob(int(golden["t"]))
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric}
    whole = ji.activation_patching(tiny, plan, **runs, options=ji.SweepOptions(method="reference"))

    def forced(enters, _, platform):
        chosen = make_schedule(enters, min(together, len(enters)), platform)
        span = chosen.span is not None
        return dataclasses.replace(chosen, segments=segments if span else 0, joined=joined)

    monkeypatch.setattr(chunks, "make_schedule", forced)
    patched = ji.activation_patching(tiny, plan, **runs)
    np.testing.assert_allclose(patched.patched, whole.patched, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [[0], [2], [1, 2], [0, 2]])
@pytest.mark.parametrize("site", ["resid_pre", "mlp_out"])
def test_any_layers_can_be_swept(tiny, utterances, golden, layers, site):
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site=site, layers=layers)
    metric = ji.metrics.log_prob(int(golden["t"]))
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric}
    patched, whole = (
        ji.activation_patching(tiny, plan, **runs, options=ji.SweepOptions(method=method))
        for method in ("minimal", "reference")
    )
    np.testing.assert_allclose(patched.patched, whole.patched, rtol=1e-10, atol=1e-12)


def test_a_known_span_is_cut_into_parts():
    parts = [tuple(map(int, part)) for part in Schedule(4, (0, 11), 3).parts(11)]
    assert parts == [(0, 4, 4), (4, 7, 7), (7, 11, 11)]
    past = [tuple(map(int, part)) for part in Schedule(4, (1, 12), 2).parts(11)]
    assert past == [(1, 6, 5), (6, 11, 10)]
