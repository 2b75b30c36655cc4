"""Generation the slow way, one full forward pass for each token; and rows of edits to try."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxasr_interp as ji
from helpers.decoding import END, NO_TIMESTAMPS, log_softmax
from jaxasr_interp.model.config import GenerationSettings

GERMAN = [31, 33, 35, NO_TIMESTAMPS]
CONTEXT, VOCABULARY, FRAMES = 20, 48, 12
SITES = {
    site: axes[1:] if axes[0] == "layer" else axes for site, axes in ji.SITES["decoder"].items()
}
SIZES = {"d_model": 16, "d_head": 8, "d_mlp": 40, "d_vocab": VOCABULARY, "frame": FRAMES}
ALWAYS = 10**6


def louder(model):
    """Louder positions: otherwise the tiny model writes one token over and over."""
    model.decoder.pos_embed[...] = model.decoder.pos_embed[...] * 10
    return model


def encoded(model, golden):
    """Encoder states of the goldens' two clips."""
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


# Rows: one edit at one site and in one cell each, all of one structure and so of one program.

WHOLE = {"start": 0, "stop": ALWAYS, "layer": -1, "head": -1, "alpha": 1.0}
NOWHERE = WHOLE | {"stop": 0}
WINDOWS = [(1, 3), (2, 6), (5, 8), (3, 4), (6, ALWAYS)]
"""Before, across and behind the border between the 4 tokens of the prompt and what follows."""


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
