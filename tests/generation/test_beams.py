"""Beam search against a search in plain Python."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import BEGIN, END, PROMPT, forbidden_by_openai, log_softmax
from helpers.generating import (
    CONTEXT,
    GERMAN,
    VOCABULARY,
    encoded,
    expect,
    expect_same,
    louder,
    of_each_clip,
    stacked,
    whole_runs,
)
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import Choice


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return encoded(model, golden)


MOST_BEAMS = 5


def best_first(scores):
    return sorted(scores, key=lambda text: -sum(scores[text]))


def beam_search(log_probs_of, size, n):
    """Beam search as openai/whisper does it, sequence by sequence.

    Args:
        log_probs_of: log-probabilities of the next token after each of some texts.
        size: texts that are kept.
        n: tokens at most.

    Returns:
        Tokens, with the end of text if it came, and their log-probabilities.
    """
    going, finished = {(): []}, {}
    for _ in range(n):
        extended = {}
        for text, log_p in zip(going, log_probs_of(list(going)), strict=True):
            for token in np.argsort(-log_p)[: size + 1].tolist():
                extended[*text, token] = [*going[text], log_p[token]]
        going, ended = {}, []
        for text in best_first(extended):
            if text[-1] == END:
                ended.append(text)
            else:
                going[text] = extended[text]
                if len(going) == size:
                    break
        for text in ended[: size - len(finished)]:
            finished[text] = extended[text]
        if len(finished) == size:
            break
    for text in best_first(going)[: size - len(finished)]:
        finished[text] = going[text]

    def mean(text):
        return sum(finished[text]) / max(1, len(text) - (text[-1] == END))

    best = max(finished, key=mean)
    return list(best), finished[best]


def leaning(early, late, shift):
    """Makes the end likelier early and late in the text, and moves what is said before."""
    vector = np.zeros(VOCABULARY)
    vector[END] = 1.0
    return ji.Several(
        (
            ji.At(ji.Add(jnp.asarray(early * vector)), stop=7, site="logits"),
            ji.At(ji.Add(jnp.asarray(late * vector)), start=7, site="logits"),
            ji.At(ji.Scale(jnp.asarray(shift)), layer=1, start=3, stop=9, site="mlp_out"),
        )
    )


LEANINGS = [(0.0, 0.0, 1.0), (1.5, 1.5, 1.0), (2.5, 2.5, -2.0), (3.5, 3.5, 3.0), (2.0, 9.0, 1.0)]
"""The last ends some texts early, and then more of them at once than there is room for."""


def expect_beams(model, states, prompts, size, n, suppress, allowed):
    edits = [leaning(*leans) for leans in LEANINGS]
    choice = Choice(suppress=suppress, max_new_tokens=n, beam_size=size)
    results = generate_rows(model, states, [edits] * len(states), prompts=prompts, choice=choice)
    expected, greedy = [], []
    for prompt, clip in zip(prompts, states, strict=True):
        heard = jnp.broadcast_to(clip, (MOST_BEAMS, *clip.shape))
        for edit in edits:
            edits_of_beams = stacked([edit] * MOST_BEAMS)

            def log_probs_of(texts, heard=heard, prompt=prompt, edits=edits_of_beams):
                tokens = np.zeros((MOST_BEAMS, CONTEXT), np.int32)
                for row, text in enumerate(texts):
                    tokens[row, : len(prompt) + len(text)] = [*prompt, *text]
                logits = np.array(whole_runs(model, heard, jnp.asarray(tokens), edits))
                last = len(prompt) + len(texts[0]) - 1
                return [
                    log_softmax(allowed(logits[row, last], text)) for row, text in enumerate(texts)
                ]

            limit = min(n, CONTEXT + 1 - len(prompt))
            expected.append(beam_search(log_probs_of, size, limit))
            greedy.append(beam_search(log_probs_of, 1, limit))
    labels = [(i, leans) for i in range(len(prompts)) for leans in LEANINGS]
    expect(of_each_clip(results), expected, labels)
    assert expected != greedy
    return of_each_clip(results)


@pytest.mark.parametrize(("size", "n"), [(2, 6), (3, 100), (5, 10)])
def test_beams_equal_a_search_in_plain_python(model, states, size, n):
    def allowed(logits, text):
        logits[list(model.generation.suppress)] = -np.inf
        if not text:
            logits[list(model.generation.suppress_first)] = -np.inf
        return logits

    prompts = [PROMPT, GERMAN]
    free = expect_beams(model, states, prompts, size, n, False, lambda logits, text: logits)
    held = expect_beams(model, states, prompts, size, n, True, allowed)
    assert {one.finished for one in free} == {True, False}
    assert {one.tokens for one in free} != {one.tokens for one in held}


def test_beams_follow_the_rules_of_timestamps(model, states):
    def allowed(logits, text):
        logits[list(model.generation.suppress)] = -np.inf
        if not text:
            logits[list(model.generation.suppress_first)] = -np.inf
        return forbidden_by_openai(logits, text)

    prompts = [PROMPT[:-1], GERMAN[:-1]]
    results = expect_beams(model, states, prompts, 3, 8, True, allowed)
    assert all(one.tokens[0] >= BEGIN for one in results)


def test_one_beam_is_greedy(model, states):
    expect_same(
        [
            ji.generate(
                model, states[0], prompt=PROMPT, choice=ji.Choice(max_new_tokens=8, beam_size=1)
            )
        ],
        [ji.generate(model, states[0], prompt=PROMPT, choice=ji.Choice(max_new_tokens=8))],
    )
