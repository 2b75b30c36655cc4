"""Generation under interventions against full recomputes, beams against plain Python, torch."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, TINY_FIRST, real_model
from test_decoding import BEGIN, END, NO_TIMESTAMPS, PROMPT, forbidden_by_openai, log_softmax

import jaxasr_interp as ji
from jaxasr_interp.config import GenerationSettings
from jaxasr_interp.decoding import Choice, generate_rows
from jaxasr_interp.edits import shifted, with_source
from jaxasr_interp.generation import batches, rollout
from jaxasr_interp.pytree import pytree_dataclass

GERMAN = [31, 33, 35, NO_TIMESTAMPS]
CONTEXT, VOCABULARY, FRAMES = 20, 48, 12
SITES = {
    site: axes[1:] if axes[0] == "layer" else axes for site, axes in ji.SITES["decoder"].items()
}
SIZES = {"d_model": 16, "d_head": 8, "d_mlp": 40, "d_vocab": VOCABULARY, "frame": FRAMES}
ALWAYS = 10**6
WHOLE = {"start": 0, "stop": ALWAYS, "layer": -1, "head": -1, "alpha": 1.0}
NOWHERE = WHOLE | {"stop": 0}
WINDOWS = [(1, 3), (2, 6), (5, 8), (3, 4), (6, ALWAYS)]
"""Before, across and behind the border between the 4 tokens of the prompt and what follows."""


@pytest.fixture
def model(tiny):
    """Louder positions: otherwise the tiny model writes one token over and over."""
    tiny.decoder.pos_embed[...] = tiny.decoder.pos_embed[...] * 10
    return tiny


@pytest.fixture
def states(model, golden):
    mels = [jnp.asarray(golden["mel_a"]), jnp.asarray(golden["mel_b"])]
    return jnp.stack([ji.encode(model, mel).states for mel in mels])


# The slow way: one full forward pass for each token.


def stacked(trees):
    def stack(*leaves):
        values = np.stack(leaves)
        return jnp.asarray(values, jnp.int32 if values.dtype.kind == "i" else values.dtype)

    return jax.tree.map(stack, *trees)


@jax.jit
def whole_runs(model, states, tokens, edits):
    """Logits of each row's run over all its tokens at once."""

    def one(states, tokens, edit):
        return ji.decode(model, tokens, states, edit=edit).logits

    return jax.vmap(one)(states, tokens, edits)


@jax.jit
def whole_acts(model, states, tokens):
    """All activations of each row's run."""
    return jax.vmap(lambda states, tokens: ji.decode(model, tokens, states, sites="all").acts)(
        states, tokens
    )


def recompute(logits_of, prompts, n, allowed=lambda logits, step: logits):
    """Greedy decoding of many rows; `logits_of` runs the decoder over all positions there are.

    What stands behind the last token is padding, at which causal attention does not look.
    """
    length = len(prompts[0])
    n = min(n, CONTEXT + 1 - length)
    tokens = np.zeros((len(prompts), CONTEXT + 1), np.int32)
    tokens[:, :length] = prompts
    log_probs = np.zeros((len(prompts), n))
    for step in range(n):
        logits = np.array(logits_of(jnp.asarray(tokens[:, :-1])))[:, length + step - 1]
        for row, values in enumerate(logits):
            log_p = log_softmax(allowed(values, step))
            tokens[row, length + step] = log_p.argmax()
            log_probs[row, step] = log_p.max()
    results = []
    for row, probabilities in zip(tokens[:, length : length + n].tolist(), log_probs, strict=True):
        end = row.index(END) + 1 if END in row else n
        results.append((row[:end], probabilities[:end]))
    return results


def written(result):
    return [*result.tokens, END] if result.finished else list(result.tokens)


def expect(results, expected, labels):
    """Every row has the expected tokens and log-probabilities."""
    wrong = []
    for result, (tokens, log_probs), label in zip(results, expected, labels, strict=True):
        same = written(result) == tokens
        if not same or not np.allclose(result.log_probs, log_probs, rtol=1e-9, atol=1e-11):
            wrong.append(f"{label}: {written(result)}, not {tokens}")
    assert not wrong, "\n".join(wrong)


def expect_same(results, others):
    expect(results, [(written(one), one.log_probs) for one in others], range(len(others)))


def never_end(model):
    """Let every row write to the limit; returns what is allowed."""
    model.generation = GenerationSettings(suppress=(END,))

    def allowed(logits, step):
        logits[END] = -np.inf
        return logits

    return allowed


# Rows: one edit at one site and in one cell each, all of one structure and so of one program.


def some_cells():
    """Windows, layers, heads and strengths that take turns."""
    turns = zip(
        itertools.cycle(WINDOWS),
        itertools.cycle([-1, 1, 2]),
        itertools.cycle([-1, 0, -1, 1]),
        itertools.cycle([1.0, 1.0, 0.4, 1.0, 1.0, 1.0, 0.7]),
        strict=False,
    )
    for (start, stop), layer, head, alpha in turns:
        yield {"start": start, "stop": stop, "layer": layer, "head": head, "alpha": alpha}


def one_by_one(parts, whole=WHOLE, confined=1):
    """Rows that do one edit each and nothing elsewhere, of all `parts`: `(site, edits)`.

    Each edit has one row for the `whole` run and some that are `confined`; `labels` say which.
    """
    rows, labels, turn = [], [], some_cells()
    for on, (site, edits) in enumerate(parts):
        for edit in edits:
            for cell in [whole, *itertools.islice(turn, confined)]:
                own = cell if "head" in SITES[site] else cell | {"head": -1}
                row = [
                    ji.At(
                        edit if i == on else others[0], site=where, **(own if i == on else NOWHERE)
                    )
                    for i, (where, others) in enumerate(parts)
                ]
                rows.append(ji.Several(tuple(row)))
                labels.append((site, edit, own))
    return rows, labels


def moved(site):
    if SITES[site][-1] == "key":
        # No vector fits keys of any number.
        return ji.Scale(0.4)
    vector = np.random.default_rng(len(site)).normal(0, 1, SIZES[SITES[site][-1]])
    return ji.Several((ji.Scale(0.4), ji.Add(jnp.asarray(vector))))


ANY_SITE = [(site, [moved(site)]) for site in SITES]
ZEROS = [(site, [ji.Zero()]) for site in ("z", "resid_mid", "cross_k", "attn_scores", "mlp_post")]
KNOCKOUTS = [
    ("pattern", [ji.Knockout(0, 2), ji.Knockout(5, 7), ji.Knockout(0, ALWAYS)]),
    ("cross_pattern", [ji.Knockout(0, 5), ji.Knockout(0, ALWAYS)]),
]
NOISE = [(site, [ji.Noise(0.5, 3), ji.Noise(0.5, 4)]) for site in ("z", "pattern")]


@pytest.mark.parametrize("parts", [ANY_SITE + ZEROS + KNOCKOUTS, NOISE], ids=["exact", "noise"])
def test_edits_at_every_site_equal_the_full_recompute(model, states, parts):
    allowed = never_end(model)
    rows, labels = one_by_one(parts)
    off = [ji.At(edits[0], site=site, **(WHOLE | {"alpha": 0.0})) for site, edits in parts]
    rows.append(ji.Several(tuple(off)))
    batch = stacked(rows)
    heard = jnp.broadcast_to(states[0], (len(rows), *states[0].shape))
    expected = recompute(
        lambda tokens: whole_runs(model, heard, tokens, batch), [PROMPT] * len(rows), 8, allowed
    )
    choice = Choice(max_new_tokens=8)
    (results,) = generate_rows(model, states[:1], [rows], prompts=[PROMPT], choice=choice)
    expect(results, expected, [*labels, "nothing"])
    # Each edit does something somewhere, and nothing at strength 0.
    plain = ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=8)
    expect_same(results[-1:], [plain])
    for i in range(0, len(labels), 2):
        changes = [
            np.abs(np.subtract(one.log_probs, plain.log_probs)) for one in results[i : i + 2]
        ]
        assert np.max(changes) > 1e-6, labels[i]


@pytree_dataclass
class Swap:
    """`Interchange` in cells of one site after another, written anew for runs of the whole length.

    Attributes:
        acts: of a run of the whole length.
        limit: positions from here on keep their value.
        cells: of each site, as `At` has them.
    """

    acts: ji.DecoderActivations
    limit: jax.Array
    cells: dict[str, dict[str, jax.Array]]

    def __call__(self, site, layer, value):
        if site not in self.cells:
            return value
        cell, axes = self.cells[site], SITES[site]
        source = getattr(self.acts, site)
        source = source if layer is None else source[layer]
        index = dict(zip(axes, jnp.indices(value.shape, jnp.int32), strict=True))
        position = index.get("pos", index.get("query", index.get("frame")))
        chosen = (position >= cell["start"]) & (position < cell["stop"])
        if axes[0] != "frame":
            chosen &= position < self.limit
        if "head" in axes:
            chosen &= (cell["head"] < 0) | (index["head"] == cell["head"])
        if layer is not None:
            chosen &= (cell["layer"] < 0) | (cell["layer"] == jnp.asarray(layer, jnp.int32))
        alpha = cell["alpha"]
        mixed = jnp.where(alpha == 1, source, alpha * source + (1 - alpha) * value)
        return jnp.where(chosen, mixed, value)


def swaps(labels, acts, limit):
    """One of each row, for activations `[row, ...]`."""
    cells = {
        site: {
            name: jnp.asarray(
                [(cell if site == on else NOWHERE)[name] for on, _, cell in labels],
                jnp.float64 if name == "alpha" else jnp.int32,
            )
            for name in WHOLE
        }
        for site in dict.fromkeys(site for site, _, _ in labels)
    }
    return Swap(acts, jnp.full(len(labels), limit, jnp.int32), cells)


def test_a_reference_run_goes_in_step(model, states):
    allowed = never_end(model)
    sites = [site for site in SITES if not site.startswith(("resid", "mlp", "pos"))]
    rows, labels = one_by_one([(site, [ji.Interchange()]) for site in [*sites, "resid_mid"]])
    heard, references = (
        jnp.broadcast_to(one, (len(rows), *one.shape)) for one in (states[0], states[1])
    )

    def logits_of(tokens):
        acts = whole_acts(model, references, tokens)
        return whole_runs(model, heard, tokens, swaps(labels, acts, ALWAYS))

    expected = recompute(logits_of, [PROMPT] * len(rows), 8, allowed)
    choice = Choice(max_new_tokens=8)
    (results,) = generate_rows(
        model, states[:1], [rows], prompts=[PROMPT], references=states[1:], choice=choice
    )
    expect(results, expected, labels)


def test_positions_behind_the_source_keep_their_value(model, states):
    allowed, length = never_end(model), 7
    tokens = [*GERMAN, 3, 17, 44]
    source = ji.decode(model, tokens, states[1], sites="all").acts
    sites = ["embed", "resid_mid", "k", "z", "cross_v", "cross_pattern", "logits"]
    rows, labels = one_by_one([(site, [ji.Interchange(source)]) for site in sites], confined=3)
    padded = jnp.asarray([tokens + [0] * (CONTEXT - length)] * len(rows), jnp.int32)
    heard, other = (
        jnp.broadcast_to(one, (len(rows), *one.shape)) for one in (states[0], states[1])
    )
    edits = swaps(labels, whole_acts(model, other, padded), length)
    expected = recompute(
        lambda tokens: whole_runs(model, heard, tokens, edits), [PROMPT] * len(rows), 8, allowed
    )
    choice = Choice(max_new_tokens=8)
    (results,) = generate_rows(model, states[:1], [rows], prompts=[PROMPT], choice=choice)
    expect(results, expected, labels)


@pytest.mark.parametrize(
    ("edit", "beam_size"), [(ji.Interchange(), 1), (ji.At(ji.Interchange(), site="logits"), 3)]
)
def test_a_run_that_takes_all_from_its_reference_is_the_reference(model, states, edit, beam_size):
    options = {"prompt": PROMPT, "max_new_tokens": 8, "beam_size": beam_size}
    swapped = ji.generate(model, states[0], edit=edit, reference=states[1], **options)
    other = ji.generate(model, states[1], **options)
    expect_same([swapped], [other])
    assert swapped.no_speech_prob == pytest.approx(other.no_speech_prob)


# Batches.


def ending(position, shift):
    """Ends the text after so many tokens of prompt and text, and moves what it says before."""
    vector = np.zeros(VOCABULARY)
    vector[END] = 1e4
    return ji.Several(
        (
            ji.At(ji.Add(jnp.asarray(-vector)), stop=position, site="logits"),
            ji.At(ji.Add(jnp.asarray(vector)), start=position, site="logits"),
            ji.At(ji.Scale(jnp.asarray(shift)), layer=1, start=2, site="mlp_out"),
        )
    )


def of_each_clip(results):
    return [one for of_clip in results for one in of_clip]


def expect_recomputed(model, states, edits, prompts, results, n):
    """The rows of several clips are what full recomputes of each one give."""
    heard = jnp.repeat(states, len(edits[0]), axis=0)
    batch = stacked(of_each_clip(edits))
    expected = recompute(
        lambda tokens: whole_runs(model, heard, tokens, batch),
        [prompt for prompt, of_clip in zip(prompts, edits, strict=True) for _ in of_clip],
        n,
    )
    labels = [(i, j) for i, of_clip in enumerate(edits) for j in range(len(of_clip))]
    expect(of_each_clip(results), expected, labels)
    return expected


def test_rows_and_clips_are_the_same_in_batches_of_any_size(model, states):
    prompts = [PROMPT, GERMAN]
    shifts = [[0.0, 1.0, -3.0, 2.0, 1.5], [4.0, 1.0, 0.2, -1.0, 6.0]]
    edits = [[ending(9 + i, shift) for i, shift in enumerate(of_clip)] for of_clip in shifts]
    choice = Choice(suppress=False, max_new_tokens=12)

    def run(**options):
        done = []
        results = generate_rows(
            model,
            states,
            edits,
            prompts=prompts,
            choice=choice,
            on_progress=done.append,
            **options,
        )
        assert done == sorted(set(done))
        assert done[-1] == 10
        return results, done

    results, done = run()
    assert done == [10]
    expect_recomputed(model, states, edits, prompts, results, 12)
    with pytest.raises(ji.InputError, match="budget of 1 bytes is too small") as refusal:
        run(memory=1)
    least = int(re.findall(r"takes (\d+)", str(refusal.value))[0])
    for memory, n_batches in [(least, 10), (int(2.4 * least), 4)]:
        others, done = run(memory=memory)
        assert len(done) == n_batches
        expect_same(of_each_clip(others), of_each_clip(results))
        for one, other in zip(of_each_clip(results), of_each_clip(others), strict=True):
            assert one.no_speech_prob == pytest.approx(other.no_speech_prob, rel=1e-9)
    alone = ji.generate(
        model, states[1], prompt=GERMAN, edit=edits[1][2], suppress=False, max_new_tokens=12
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

    options = {"prompt": PROMPT, "max_new_tokens": 6, "suppress": False}
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
    result = ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=100, sites="resid_post")
    tokens = [*PROMPT, *result.tokens]
    assert len(tokens) == CONTEXT + 1
    expected = ji.decode(model, tokens[:CONTEXT], states[0]).acts.resid_post
    np.testing.assert_allclose(result.acts.resid_post, expected, rtol=1e-9, atol=1e-12)
    assert ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=100).acts is None


# Choice of a token.


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
    options = {"suppress": False, "max_new_tokens": 2, "temperature": temperature, "seed": 5}
    heard = jnp.broadcast_to(states[0], (n, *states[0].shape))
    results = ji.generate_batch(model, heard, prompts=[PROMPT] * n, **options)
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
    alone = ji.generate(model, states[0], prompt=PROMPT, **options)
    expect_same([alone, ji.generate(model, states[0], prompt=PROMPT, **options)], results[:1] * 2)
    seeds = [
        ji.generate(model, states[0], prompt=PROMPT, **(options | {"seed": seed})).tokens
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
    monkeypatch.setattr(batches, "_ROWS_ON_CPU", 4)
    expect_same(run(), results)


def test_a_low_temperature_is_greedy(model, states):
    options = {"prompt": PROMPT, "max_new_tokens": 8}
    greedy = ji.generate(model, states[0], **options)
    expect_same([ji.generate(model, states[0], temperature=1e-3, **options)], [greedy])


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
        ji.generate(model, states[0], prompt=PROMPT, **options)


# Beam search.

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
        [ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=8, beam_size=1)],
        [ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=8)],
    )


# Real weights and speech.

CLOSE = 1e-3


def heard(model, data, clips, layer=0, head=0, stop=0):
    """Encoder states; with a head of the encoder zeroed up to frame `stop`."""
    edit = ji.At(ji.Zero(), layer, 0, stop, head, site="z")
    mels = [ji.log_mel_spectrogram(ji.load_audio(data / clip)) for clip in clips]
    return jnp.stack([ji.encode(model, mel, edit=edit, sites=()).states for mel in mels])


def where_they_part(ours, theirs):
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def expect_torch(results, expected, end_of_text):
    """Tokens of `results[clip, key]` are torch's up to a choice that was too close to call."""
    wrong = []
    for (clip, key), result in results.items():
        ours = [*result.tokens, end_of_text] if result.finished else list(result.tokens)
        theirs = expected[clip]["plain"] if key == "plain" else expected[clip]["heads"][key]
        at = where_they_part(ours, theirs)
        gap = expected[clip]["close"].get(key, {}).get(str(at), float("inf"))
        if ours != theirs and gap >= CLOSE:
            wrong.append((clip, key, at, gap))
    assert not wrong


def head_of(key):
    site, head = key.split(".", 1)[1].split("@")
    return site, *map(int, head.split("."))


def first_clips(golden, count):
    return dict(list(golden["clips"].items())[:count])


TWO_OR_ALL = pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.corpus)])


@pytest.mark.real
@TWO_OR_ALL
def test_every_decoder_head_zeroed_writes_what_torch_writes(data, count):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "heads_tiny.en.json").read_text())
    clips = first_clips(golden, count)
    keys = [key for key in next(iter(clips.values()))["heads"] if key.startswith("decoder")]
    rows = []
    for key in ["plain", *keys]:
        site, layer, head = ("none", 0, 0) if key == "plain" else head_of(key)
        rows.append(
            ji.Several(
                tuple(
                    ji.At(ji.Zero(), layer, stop=ALWAYS if one == site else 0, head=head, site=one)
                    for one in ("z", "cross_z")
                )
            )
        )
    choice = Choice(max_new_tokens=golden["max_new_tokens"])
    results = [
        generate_rows(model, states[None], [rows], prompts=[golden["prompt"]], choice=choice)[0]
        for states in heard(model, data, clips)
    ]
    assert len(keys) == 2 * model.config.decoder_layers * model.config.decoder_heads
    by_name = {
        (clip, key): one
        for clip, of_clip in zip(clips, results, strict=True)
        for key, one in zip(["plain", *keys], of_clip, strict=True)
    }
    expect_torch(by_name, clips, golden["end_of_text"])
    changed = [one.tokens != of_clip[0].tokens for of_clip in results for one in of_clip]
    assert sum(changed) > 8 * count


@pytest.mark.real
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.corpus), 13])
def test_encoder_heads_zeroed_write_what_torch_writes(data, every):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "heads_tiny.en.json").read_text())
    names, states = [], []
    for i, (clip, expected) in enumerate(golden["clips"].items()):
        keys = [key for key in expected["heads"] if key.startswith("encoder")]
        for key in keys[i % every :: every]:
            _, layer, head = head_of(key)
            states.append(heard(model, data, [clip], layer, head, ALWAYS)[0])
            names.append((clip, key))
    results = ji.generate_batch(
        model,
        jnp.stack(states),
        prompts=[golden["prompt"]] * len(states),
        max_new_tokens=golden["max_new_tokens"],
    )
    by_name = dict(zip(names, results, strict=True))
    expect_torch(by_name, golden["clips"], golden["end_of_text"])


@pytest.mark.real
@TWO_OR_ALL
def test_beams_equal_openai_whisper(data, count):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "beams_tiny.en.json").read_text())
    clips = first_clips(golden, count)
    results = ji.generate_batch(
        model,
        heard(model, data, clips),
        prompts=[golden["prompt"]] * len(clips),
        max_new_tokens=golden["max_new_tokens"],
        beam_size=golden["beam_size"],
    )
    for (clip, expected), result in zip(clips.items(), results, strict=True):
        assert list(result.tokens) == expected["tokens"], clip
        assert result.text.strip() == expected["text"], clip
        assert abs(result.mean_log_prob - expected["avg_logprob"]) < 1e-4, clip


@pytest.mark.real
@pytest.mark.parametrize("name", TINY_FIRST)
def test_edits_of_a_real_model_equal_the_full_recompute(data, name):
    model = real_model(name)
    golden = json.loads((GOLDEN / "heads_tiny.en.json").read_text())
    clip, other = heard(model, data, list(golden["clips"])[:2])
    prompt, n = model.tokenizer.prompt(), 20
    text = [*prompt, *next(iter(golden["clips"].values()))["plain"]]
    source = ji.decode(model, text[:12], other, sites="cross_z").acts
    steer = np.random.default_rng(0).normal(0, 1, model.config.d_model)
    parts = [
        ("z", ji.Zero()),
        ("resid_post", ji.Add(jnp.asarray(steer, jnp.float32))),
        ("pattern", ji.Knockout(3, 8)),
        ("cross_pattern", ji.Knockout(50, 150)),
        ("cross_z", ji.Interchange(source)),
        ("cross_attn_out", ji.Interchange()),
    ]
    rows, labels = one_by_one([(site, [edit]) for site, edit in parts])
    choice = Choice(max_new_tokens=n)
    (results,) = generate_rows(
        model, clip[None], [rows], prompts=[prompt], references=other[None], choice=choice
    )
    suppressed = list(model.generation.suppress)

    def expect_chosen(result, row):
        """By induction: each token is the likeliest one after those before it."""
        tokens = [*prompt, *result.tokens] + [model.tokenizer.end_of_text] * result.finished
        padded = np.asarray(tokens + [0] * (24 - len(tokens)), np.int32)
        acts = ji.decode(model, padded, other, sites="cross_attn_out").acts
        # Shifted, though by nothing: its source may then be shorter than the run.
        edit = with_source(shifted(row, 0), acts)
        logits = np.array(ji.decode(model, padded, clip, edit=edit, sites=()).logits, np.float64)
        for step, token in enumerate(tokens[len(prompt) :]):
            values = logits[len(prompt) + step - 1]
            values[suppressed + list(model.generation.suppress_first) * (step == 0)] = -np.inf
            log_p = log_softmax(values)
            assert log_p.max() - log_p[token] < CLOSE
            assert abs(log_p[token] - result.log_probs[step]) < CLOSE

    for result, row, label in zip(results, rows, labels, strict=True):
        try:
            expect_chosen(result, row)
        except AssertionError as error:
            raise AssertionError(label[0], label[2]) from error
    assert len({one.tokens for one in results}) > len(parts)
