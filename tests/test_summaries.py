"""What Python shows of results: a few lines of names, shapes and dtypes."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.pytree import summary


@dataclasses.dataclass
class Result:
    tokens: tuple[int, ...]
    values: np.ndarray
    other: int | None = None


@pytest.fixture
def results(tiny32, golden):
    mel = jnp.asarray(golden["mel_a"], jnp.float32)
    tokens = jnp.asarray(golden["tokens_a"], jnp.int32)
    run = ji.encode(tiny32, mel, sites="all")
    decoded = ji.decode(tiny32, tokens, run.states, sites="all")
    plan = ji.plan_sweep(tiny32, tokens=tokens)
    clean, corrupted = ji.Utterance(mel, tokens), ji.Utterance(-mel, tokens)
    swept = ji.activation_patching(
        tiny32, plan, clean=clean, corrupted=corrupted, metric=ji.metrics.kl()
    )
    rng = np.random.default_rng(0)
    examples = rng.normal(size=(2, 40, 5)).astype(np.float32)
    probes = ji.fit_probes(examples, rng.integers(0, 2, 40))["target"]
    return {
        "model": tiny32,
        "encoder run": run,
        "decoder run": decoded,
        "utterance": clean,
        "generated": ji.generate(tiny32, run.states),
        "plan": plan,
        "wide plan": ji.plan_sweep(
            tiny32,
            tokens=tokens,
            stack="encoder",
            positions=list(itertools.combinations(range(13), 2)),
        ),
        "sweep": swept,
        "lens": ji.logit_lens(tiny32, decoded),
        "encoder lens": ji.encoder_lens(tiny32, mel),
        "probes": probes,
        "scores": ji.score_probes(probes, n_resamples=10)[0],
        "edit": ji.Add(jnp.ones(16)),
    }


def test_results_are_shown_in_at_most_twenty_lines(results):
    shown = {name: repr(result) for name, result in results.items()}
    assert not {n: text for n, text in shown.items() if text.count("\n") >= 20}
    assert not {n: text for n, text in shown.items() if "array" in text.lower() or len(text) > 2000}
    assert shown["edit"] == "Add(vector=f32[16])"
    assert "cross_pattern=f32[3,2,7,12]" in shown["decoder run"].replace("\n", "")


def test_long_sequences_are_cut_and_defaults_left_out():
    short = Result((1, 2), np.zeros((2, 3), np.float16))
    assert summary(short) == "Result(tokens=(1, 2), values=f16[2,3])"
    long = Result(tuple(range(500)), np.zeros(0, bool), 5)
    assert summary(long) == "Result(tokens=(0, 1, 2, … 500 in all), values=bool[0], other=5)"


def test_very_wide_results_end_in_an_ellipsis():
    names = [f"a_rather_long_name_{i}" for i in range(300)]
    wide = dataclasses.make_dataclass("Wide", names)(*range(300))
    lines = summary(wide).splitlines()
    assert len(lines) == 20
    assert max(map(len, lines)) <= 100
    assert lines[-1].endswith("…")
