"""Generation under an edit at every site, and beside a reference run, equals full recomputes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import PROMPT
from helpers.generating import (
    ALWAYS,
    CONTEXT,
    GERMAN,
    NOWHERE,
    SITES,
    SIZES,
    WHOLE,
    encoded,
    expect,
    expect_same,
    louder,
    never_end,
    one_by_one,
    recompute,
    stacked,
    whole_acts,
    whole_runs,
)
from jaxasr_interp.generation.batching import generate_rows
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.pytree import pytree_dataclass


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return encoded(model, golden)


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
    plain = ji.generate(model, states[0], prompt=PROMPT, choice=ji.Choice(max_new_tokens=8))
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
    options = {"prompt": PROMPT, "choice": Choice(max_new_tokens=8, beam_size=beam_size)}
    swapped = ji.generate(model, states[0], edit=edit, reference=states[1], **options)
    other = ji.generate(model, states[1], **options)
    expect_same([swapped], [other])
    assert swapped.no_speech_prob == pytest.approx(other.no_speech_prob)
