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
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


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


def rows_of(parts, cells_each):
    """Labels and cells: of each part one of all positions, and some that are confined."""
    turn = some_cells()
    for i in range(len(parts)):
        for cell in [WHOLE, *itertools.islice(turn, cells_each - 1)]:
            yield i, cell


def only(parts, on, cell):
    """The edit that does part `on` in a cell, and nothing elsewhere."""
    return ji.Several(
        tuple(
            ji.At(edit, site=site, **(cell if i == on else NOWHERE))
            for i, (site, edit) in enumerate(parts)
        )
    )


def edits_of(site):
    """The edits that make sense at a site, whatever the length of the run."""
    random = np.random.default_rng(len(site))
    yield ji.Scale(0.4)
    if site != "attn_scores":  # Zero would let positions look ahead.
        yield ji.Zero()
    if SITES[site][-1] != "key":
        yield ji.Add(jnp.asarray(random.normal(0, 1, SIZES[SITES[site][-1]])))
    if site in ("pattern", "cross_pattern"):
        yield from (ji.Knockout(0, 2), ji.Knockout(5, 7), ji.Knockout(0, ALWAYS))
    if site in ("resid_pre", "z", "cross_v", "logits"):
        yield ji.Noise(0.5, 3)


def test_every_edit_at_every_site_equals_the_full_recompute(model, states):
    allowed = never_end(model)
    parts = [(site, edit) for site in SITES for edit in edits_of(site)]
    cells = list(rows_of(parts, 3))
    rows = [only(parts, i, cell) for i, cell in cells]
    rows += [only(parts, i, WHOLE | {"alpha": 0.0}) for i in range(len(parts))]
    batch = stacked(rows)
    heard = jnp.broadcast_to(states[0], (len(rows), *states[0].shape))
    expected = recompute(
        lambda tokens: whole_runs(model, heard, tokens, batch), [PROMPT] * len(rows), 8, allowed
    )
    choice = Choice(max_new_tokens=8)
    (results,) = generate_rows(model, states[:1], [rows], prompts=[PROMPT], choice=choice)
    labels = [(*parts[i], cell) for i, cell in cells] + [(*part, "alpha 0") for part in parts]
    expect(results, expected, labels)
    # Each part does something somewhere, and nothing at strength 0.
    plain = ji.generate(model, states[0], prompt=PROMPT, max_new_tokens=8)
    still = results[len(cells) :]
    expect(still, [(list(plain.tokens), plain.log_probs)] * len(parts), labels[len(cells) :])
    for i, part in enumerate(parts):
        own = [one for one, (j, _) in zip(results, cells, strict=False) if j == i]
        moved = [np.abs(np.subtract(one.log_probs, plain.log_probs)).max() for one in own]
        assert max(moved) > 1e-6, part
    assert len({one.tokens for one in results}) > 50


@pytree_dataclass
class Swap:
    """`Interchange` in cells, written anew: takes activations of a run of the whole length."""

    acts: ji.DecoderActivations
    limit: jax.Array
    cells: dict[str, dict[str, jax.Array]]

    def __call__(self, site, layer, value):
        if site not in self.cells:
            return value
        cell, axes = self.cells[site], SITES[site]
        source = getattr(self.acts, site)
        source = source if layer is None else source[layer]
        where = jnp.indices(value.shape, jnp.int32)
        counts_frames = axes[0] == "frame"
        position = where[next(i for i, axis in enumerate(axes) if axis in ("pos", "query", "frame"))]
        chosen = (position >= cell["start"]) & (position < cell["stop"])
        chosen &= counts_frames | (position < self.limit)
        if "head" in axes:
            chosen &= (cell["head"] < 0) | (where[axes.index("head")] == cell["head"])
        if layer is not None:
            chosen &= (cell["layer"] < 0) | (cell["layer"] == layer)
        mixed = jnp.where(
            cell["alpha"] == 1, source, cell["alpha"] * source + (1 - cell["alpha"]) * value
        )
        return jnp.where(chosen, mixed, value)


def swap(sites, on, cell, acts, limit):
    cells = {site: cell if i == on else NOWHERE for i, site in enumerate(sites)}
    cells = jax.tree.map(lambda x: jnp.asarray(x, "float64" if isinstance(x, float) else "int32"), cells)
    return Swap(acts, jnp.asarray(limit, jnp.int32), cells)


def test_a_reference_run_goes_in_step(model, states):
    allowed = never_end(model)
    parts = [(site, ji.Interchange()) for site in SITES]
    cells = list(rows_of(parts, 3))
    rows = [only(parts, i, cell) for i, cell in cells]
    heard, references = (
        jnp.broadcast_to(one, (len(rows), *one.shape)) for one in (states[0], states[1])
    )

    def logits_of(tokens):
        acts = whole_acts(model, references, tokens)
        swaps = [
            swap(list(SITES), i, cell, jax.tree.map(lambda x, j=j: x[j], acts), ALWAYS)
            for j, (i, cell) in enumerate(cells)
        ]
        return whole_runs(model, heard, tokens, stacked(swaps))

    expected = recompute(logits_of, [PROMPT] * len(rows), 8, allowed)
    (results,) = generate_rows(
        model,
        states[:1],
        [rows],
        prompts=[PROMPT],
        references=states[1:],
        choice=Choice(max_new_tokens=8),
    )
    expect(results, expected, [(parts[i][0], cell) for i, cell in cells])
