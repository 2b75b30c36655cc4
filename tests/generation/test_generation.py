"""Rows and clips in batches of any size, prompts of any length, and the activations of a text."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import PROMPT
from helpers.generating import (
    ALWAYS,
    CONTEXT,
    GERMAN,
    SITES,
    encoded,
    ending,
    expect_recomputed,
    expect_same,
    louder,
    never_end,
    of_each_clip,
)
from jaxasr_interp.generation import batching, rollout
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import Choice


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return encoded(model, golden)


def test_rows_and_clips_are_the_same_in_batches_of_any_size(model, states, monkeypatch):
    prompts = [PROMPT, GERMAN]
    shifts = [[0.0, 1.0, -3.0, 2.0, 1.5], [4.0, 1.0, 0.2, -1.0, 6.0]]
    edits = [[ending(9 + i, shift) for i, shift in enumerate(of_clip)] for of_clip in shifts]
    choice = Choice(suppress=False, max_new_tokens=12)

    run_batch = batching._run

    def run(**options):
        batches = []
        monkeypatch.setattr(
            batching, "_run", lambda job, *rest: batches.append(job) or run_batch(job, *rest)
        )
        results = generate_rows(model, states, edits, prompts=prompts, choice=choice, **options)
        return results, len(batches)

    results, n_batches = run()
    assert n_batches == 1
    expect_recomputed(model, states, edits, prompts, results, 12)
    with pytest.raises(ji.InputError, match="budget of 1 bytes is too small") as refusal:
        run(memory=1)
    least = int(re.findall(r"takes (\d+)", str(refusal.value))[0])
    for memory, expected in [(least, 10), (int(2.4 * least), 4)]:
        others, n_batches = run(memory=memory)
        assert n_batches == expected
        expect_same(of_each_clip(others), of_each_clip(results))
        for one, other in zip(of_each_clip(results), of_each_clip(others), strict=True):
            assert one.no_speech_prob == pytest.approx(other.no_speech_prob, rel=1e-9)
    alone = ji.generate(
        model,
        states[1],
        prompt=GERMAN,
        edit=edits[1][2],
        choice=ji.Choice(suppress=False, max_new_tokens=12),
    )
    expect_same([results[1][2]], [alone])
    assert results[1][2].prompt == tuple(GERMAN)
    assert results[1][2].text == alone.text == model.tokenizer.decode(alone.tokens)


STAGGERED = {
    "rows": [[4, 9, 6, 5], [19, 4, 5, 7], [5, 4, 8, 4], [4, 6, 4, ALWAYS], [4, 4, 5, 15]],
    "late": [[17, 18, 17, 17], [19, 17, 18, 18], [17, 18, 18, 17], [18, 17, 17, 18], [17] * 4],
    "clips": [[5, 4, 6, 4], [12, 9, 19, 18], [4, 7, 4, 5], [15, 14, ALWAYS, 13], [6, 5, 4, 8]],
}


@pytest.mark.parametrize("ends", STAGGERED.values(), ids=STAGGERED)
def test_rows_that_end_leave_and_memory_grows(model, states, monkeypatch, ends):
    mixed = jnp.linspace(0.0, 1.0, len(ends))[:, None, None]
    states = (1 - mixed) * states[:1] + mixed * states[1:]
    prompts = [PROMPT if i % 2 else GERMAN for i in range(len(ends))]
    random = np.random.default_rng(0)
    edits = [[ending(end, random.normal(1, 2)) for end in of_clip] for of_clip in ends]
    choice = Choice(suppress=False, max_new_tokens=100)
    shapes, grown = [], []
    advance, grow = rollout._advance, rollout._grow
    monkeypatch.setattr(
        rollout, "_advance", lambda *args: shapes.append(args[1].tokens.shape[:2]) or advance(*args)
    )
    monkeypatch.setattr(rollout, "_grow", lambda *args: grown.append(args[1]) or grow(*args))
    results = generate_rows(model, states, edits, prompts=prompts, choice=choice)
    assert len(set(shapes)) > 1
    assert not grown
    for one, end in zip(of_each_clip(results), itertools.chain(*ends), strict=True):
        if one.finished:
            assert len(one.tokens) == end - 3
        else:
            assert len(one.tokens) == CONTEXT + 1 - len(PROMPT)
    expect_recomputed(model, states, edits, prompts, results, 100)
    monkeypatch.setattr(rollout, "_SMALL_MEMORY", 0)
    monkeypatch.setattr(rollout, "_FIRST_CAPACITY", 1)
    again = generate_rows(model, states, edits, prompts=prompts, choice=choice)
    assert grown == [CONTEXT + 5]
    expect_same(of_each_clip(again), of_each_clip(results))


BAD_ROWS = {
    "shapes": ([[ji.Add(jnp.zeros(16)), ji.Add(jnp.zeros(8))]], {}, r"shapes, \[\(8,\), \(16,\)\]"),
    "layer": ([[ji.At(ji.Zero(), 3, site="z")]], {}, "acts at layer 3 of 'z': the decoder has 3"),
    "head": ([[ji.Several((ji.At(ji.Zero(), 1, head=-2, site="z"),))]], {}, "acts at head -2 of"),
    "structure": ([[ji.Zero(), ji.Scale(1.0)]], {}, "differ in structure"),
    "site": ([[ji.At(ji.Zero(), site="conv2_out")]], {}, "has no site 'conv2_out'"),
    "reference": ([[ji.At(ji.Interchange())]], {}, "from a reference run: give its clip"),
    "numbers": ([[ji.At(ji.Scale(jnp.nan), start=6)]], {}, "logits are no numbers"),
    "uneven": ([[ji.Zero()], [ji.Zero(), ji.Zero()]], {}, "give each clip as many edits"),
    "few": ([[ji.Zero()]] * 3, {}, "There are 2 clips and edits of 3"),
    "none": ([[], []], {}, "There are no edits"),
    "prompts": ([[ji.Zero()]] * 2, {"prompts": [PROMPT]}, "1 prompts for 2 clips"),
    "timestamps": ([[ji.Zero()]] * 2, {"prompts": [PROMPT, [*PROMPT[:3], 5]]}, "timestamps"),
    "starts": ([[ji.Zero()]] * 2, {"prompts": [PROMPT, [5, *PROMPT[:3]]]}, "start, or ask"),
}


@pytest.mark.parametrize(("rows", "options", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_named_in_one_sentence(model, states, rows, options, message):
    heard = states[: len(rows)]
    options = {"prompts": [PROMPT] * len(heard)} | options
    with pytest.raises(ji.InputError, match=message):
        generate_rows(model, heard, rows, choice=Choice(max_new_tokens=6), **options)


@pytest.mark.parametrize("length", [1, 8, 9, CONTEXT])
def test_prompts_of_any_length(model, states, length):
    prompt = np.random.default_rng(1).integers(0, 48, length).tolist()
    edit = ji.At(ji.Scale(jnp.asarray(-2.0)), start=3, stop=11)
    results = generate_rows(
        model,
        states[:1],
        [[edit]],
        prompts=[prompt],
        choice=Choice(suppress=False, max_new_tokens=4),
    )
    expect_recomputed(model, states[:1], [[edit]], [prompt], results, 4)


@pytest.mark.parametrize("sites", ["all", ("pattern", "resid_post")])
def test_activations_are_those_of_the_teacher_forced_run(model, states, sites):
    def edit(source):
        return ji.Several(
            (
                ji.At(ji.Scale(-2.0), layer=1, start=2, stop=7, site="mlp_out"),
                ji.At(ji.Interchange(source), start=5, alpha=0.5, site="cross_pattern"),
            )
        )

    options = {"prompt": PROMPT, "choice": Choice(suppress=False, max_new_tokens=6)}
    result = ji.generate(
        model, states[0], edit=edit(None), reference=states[1], sites=sites, **options
    )
    tokens = [*PROMPT, *result.tokens]
    source = ji.decode(model, tokens, states[1], sites="cross_pattern").acts
    expected = ji.decode(model, tokens, states[0], edit=edit(source), sites=sites).acts
    for site in SITES:
        ours, theirs = getattr(result.acts, site), getattr(expected, site)
        assert (ours is None) == (theirs is None) == (sites != "all" and site not in sites)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=site)
    if sites == "all":
        choices = result.acts.logits.argmax(-1)[len(PROMPT) - 1 : -1].tolist()
        assert choices == list(result.tokens)


def test_activations_of_a_text_that_fills_the_context(model, states):
    never_end(model)
    result = ji.generate(
        model, states[0], prompt=PROMPT, sites="resid_post", choice=ji.Choice(max_new_tokens=100)
    )
    tokens = [*PROMPT, *result.tokens]
    assert len(tokens) == CONTEXT + 1
    expected = ji.decode(model, tokens[:CONTEXT], states[0]).acts.resid_post
    np.testing.assert_allclose(result.acts.resid_post, expected, rtol=1e-9, atol=1e-12)
    assert (
        ji.generate(model, states[0], prompt=PROMPT, choice=ji.Choice(max_new_tokens=100)).acts
        is None
    )
