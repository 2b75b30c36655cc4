"""Generation under interventions against full recomputes, beams against plain Python, torch."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, real_model
from test_decoding import BEGIN, END, NO_TIMESTAMPS, PROMPT, forbidden_by_openai, log_softmax

import jaxasr_interp as ji
from jaxasr_interp.config import GenerationSettings
from jaxasr_interp.decoding import Choice, generate_rows
from jaxasr_interp.generation import rollout
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
                row = [
                    ji.At(
                        edit if i == on else others[0], site=where, **(cell if i == on else NOWHERE)
                    )
                    for i, (where, others) in enumerate(parts)
                ]
                rows.append(ji.Several(tuple(row)))
                labels.append((site, edit, cell))
    return rows, labels


def scaled_and_shifted(site):
    random = np.random.default_rng(len(site))
    if SITES[site][-1] == "key":
        # No vector fits keys of any number, and zero scores would let positions look ahead.
        return [ji.Scale(0.4)]
    vector = jnp.asarray(random.normal(0, 1, SIZES[SITES[site][-1]]))
    return [
        ji.Several((ji.Scale(0.4), ji.Add(jnp.zeros_like(vector)))),
        ji.Several((ji.Scale(1.0), ji.Add(vector))),
    ]


ANY_SITE = [(site, scaled_and_shifted(site)) for site in SITES]
ZEROS = [(site, [ji.Zero()]) for site in ("z", "resid_mid", "cross_k", "cross_pattern", "mlp_post")]
KNOCKOUTS = [
    ("pattern", [ji.Knockout(0, 2), ji.Knockout(5, 7), ji.Knockout(0, ALWAYS)]),
    ("cross_pattern", [ji.Knockout(0, 5), ji.Knockout(0, ALWAYS)]),
]
NOISE = [(site, [ji.Noise(0.5, 3), ji.Noise(0.5, 4)]) for site in ("resid_pre", "z", "cross_v")]


@pytest.mark.parametrize("parts", [ANY_SITE + ZEROS + KNOCKOUTS, NOISE], ids=["exact", "noise"])
def test_edits_at_every_site_equal_the_full_recompute(model, states, parts):
    allowed = never_end(model)
    rows, labels = one_by_one(parts)
    off, off_labels = one_by_one(parts, WHOLE | {"alpha": 0.0}, confined=0)
    rows, labels = rows + off, labels + off_labels
    batch = stacked(rows)
    heard = jnp.broadcast_to(states[0], (len(rows), *states[0].shape))
    expected = recompute(
        lambda tokens: whole_runs(model, heard, tokens, batch), [PROMPT] * len(rows), 8, allowed
    )
    choice = Choice(max_new_tokens=8)
    (results,) = generate_rows(model, states[:1], [rows], prompts=[PROMPT], choice=choice)
    expect(results, expected, labels)
    # Each edit does something somewhere, and nothing at strength 0.
    plain = ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=8)
    expect_same(results[-len(off) :], [plain] * len(off))
    for i in range(0, len(rows) - len(off), 2):
        moved = [np.abs(np.subtract(one.log_probs, plain.log_probs)) for one in results[i : i + 2]]
        assert np.max(moved) > 1e-6, labels[i]


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
        for site in SITES
    }
    return Swap(acts, jnp.full(len(labels), limit, jnp.int32), cells)


def test_a_reference_run_goes_in_step(model, states):
    allowed = never_end(model)
    rows, labels = one_by_one([(site, [ji.Interchange()]) for site in SITES])
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


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_run_that_takes_everything_from_its_reference_is_the_reference(model, states, beam_size):
    options = {"prompt": PROMPT, "max_new_tokens": 8, "beam_size": beam_size}
    swapped = ji.generate(
        model, states[0], edit=ji.Interchange(), reference=states[1], **options
    )
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
