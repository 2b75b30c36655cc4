"""How a token is chosen: of equal ones the first, and by chance with the right probabilities."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import END, PROMPT, log_softmax
from helpers.generating import encoded, ending, expect_same, louder, of_each_clip, written
from jaxasr_interp.generation import batch_sizes, rollout
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import Choice


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return encoded(model, golden)


def test_of_equal_logits_the_first_is_taken():
    for row in ([1.0, 3.0, 3.0, 2.0], [-jnp.inf, -2.0, -3.0, -2.0], [0.0] * 5):
        assert rollout.first_largest(jnp.asarray(row)) == np.argmax(row)


def expect_drawn(tokens, probabilities):
    """Pearson's chi-squared stays within what chance allows; rare tokens are one group."""
    expected = len(tokens) * probabilities
    observed = np.bincount(tokens, minlength=len(probabilities))
    rank = np.argsort(-expected)
    groups = np.minimum(rank.argsort(), (expected >= 5).sum() - 1)
    expected, observed = (np.bincount(groups, counts) for counts in (expected, observed))
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    assert freedom >= 8
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5, (statistic, freedom)


def test_tokens_are_drawn_with_their_probabilities(model, states):
    n, temperature = 2000, 1.7
    choice = Choice(suppress=False, max_new_tokens=2, temperature=temperature, seed=5)
    heard = jnp.broadcast_to(states[0], (n, *states[0].shape))
    results = ji.generate_batch(model, heard, prompts=[PROMPT] * n, choice=choice)
    texts = np.asarray([[*written(one), END][:2] for one in results])
    first = np.asarray(ji.decode(model, PROMPT, states[0]).logits[-1])
    expect_drawn(texts[:, 0], np.exp(log_softmax(first / temperature)))
    # The second token after the commonest first one.
    common = int(np.bincount(texts[:, 0]).argmax())
    assert common != END
    second = np.asarray(ji.decode(model, [*PROMPT, common], states[0]).logits[-1])
    after = texts[texts[:, 0] == common, 1]
    expect_drawn(after, np.exp(log_softmax(second / temperature)))
    for one in results:
        if one.tokens and one.tokens[0] == common:
            token = written(one)[1]
            expected = log_softmax(first)[common], log_softmax(second)[token]
            np.testing.assert_allclose(one.log_probs, expected, rtol=1e-9)
    # The first clip draws as it does alone.
    alone = ji.generate(model, states[0], prompt=PROMPT, choice=choice)
    expect_same(
        [alone, ji.generate(model, states[0], prompt=PROMPT, choice=choice)], results[:1] * 2
    )
    seeds = [
        ji.generate(
            model, states[0], prompt=PROMPT, choice=dataclasses.replace(choice, seed=seed)
        ).tokens
        for seed in range(8)
    ]
    assert len(set(seeds)) > 4


def test_drawn_texts_do_not_depend_on_the_batch(model, states, monkeypatch):
    ends = [5, 4, 12, 4, 6, 19, 4, 5, 4, 4, 15, 4, 5, 4, 6, 4]
    mixed = jnp.linspace(0.0, 1.0, len(ends))[:, None, None]
    heard = (1 - mixed) * states[:1] + mixed * states[1:]
    edits = [[ending(end, 1.0)] for end in ends]
    choice = Choice(suppress=False, max_new_tokens=14, temperature=1.0)
    kept, keep = [], rollout._keep
    monkeypatch.setattr(rollout, "_keep", lambda *args: kept.append(args) or keep(*args))

    def run(order=1, draws=None):
        return of_each_clip(
            generate_rows(
                model,
                heard[::order],
                edits[::order],
                prompts=[PROMPT] * len(ends),
                choice=choice,
                draws=draws,
            )
        )

    results = run()
    assert kept
    assert len({one.tokens for one in results}) > 8
    expect_same(run(-1, range(len(ends))[::-1]), results[::-1])
    monkeypatch.setattr(rollout, "_WORTH_SHRINKING", 10**9)
    kept.clear()
    expect_same(run(), results)
    assert not kept
    monkeypatch.setattr(batch_sizes, "_ROWS_ON_CPU", 4)
    expect_same(run(), results)


def test_a_low_temperature_is_greedy(model, states):
    results = [
        ji.generate(model, states[0], prompt=PROMPT, choice=choice)
        for choice in (Choice(max_new_tokens=8, temperature=1e-3), Choice(max_new_tokens=8))
    ]
    expect_same(results[:1], results[1:])


BAD_CHOICES = {
    "negative": ({"temperature": -0.1}, "temperature is -0.1: expected 0, or at least 0.001"),
    "low": ({"temperature": 1e-4}, "temperature is 0.0001: expected 0, or at least"),
    "infinite": ({"temperature": float("inf")}, "temperature is inf"),
    "no number": ({"temperature": float("nan")}, "temperature is nan"),
    "no beam": ({"beam_size": 0}, "beam_size is 0: expected at least 1"),
    "wide beam": ({"beam_size": 48}, "beam_size is 48: expected less than the 48 tokens"),
    "no token": ({"max_new_tokens": 0}, "max_new_tokens is 0: expected at least 1"),
    "both": ({"beam_size": 2, "temperature": 0.5}, "Beam search does not draw"),
}


@pytest.mark.parametrize(("options", "message"), BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_bad_choices_are_named_in_one_sentence(model, states, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.generate(model, states[0], prompt=PROMPT, choice=Choice(**options))
