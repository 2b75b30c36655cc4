"""Edits by hand: a factor and a shift of every cell; and brief clips to try them on."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxasr_interp as ji
from helpers.decoding import PROMPT
from helpers.generating import CONTEXT
from jaxasr_interp.generation import means
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.pytree import pytree_dataclass

LONGER = [37, 5, 9, 3, *PROMPT]
SAMPLES = 24 * 160
HIDDEN = -np.inf


@pytree_dataclass
class ByHand:
    """`a -> factor · a + shift`, every cell of every site with its own."""

    factor: dict[str, jax.Array]
    shift: dict[str, jax.Array]

    def __call__(self, site, layer, value):
        factor, shift = (
            x[site] if layer is None else x[site][layer] for x in (self.factor, self.shift)
        )
        return factor * value + shift


def by_hand(acts, changes):
    """Of changes one after another: `(site, cells, factor, shift)`, cells of all layers."""
    sites = {site: np.asarray(value) for site, value in vars(acts).items() if value is not None}
    factors = {site: np.ones(value.shape) for site, value in sites.items()}
    shifts = {site: np.zeros(value.shape) for site, value in sites.items()}
    for site, cells, factor, shift in changes:
        factors[site][cells] *= factor
        shifts[site][cells] = shifts[site][cells] * factor + shift
    return ByHand(*({k: jnp.asarray(v) for k, v in x.items()} for x in (factors, shifts)))


def briefly(audio, n_mels):
    """The spectrogram that the tiny model hears."""
    return ji.log_mel_spectrogram(audio, n_mels, 24)


def brief_clips():
    """Two clips that the tiny model hears to the end."""
    random, time = np.random.default_rng(5), np.arange(SAMPLES) / 16_000
    tone = np.sin(2 * np.pi * (300 + 4000 * time) * time)
    noise = random.normal(size=SAMPLES) * np.linspace(0, 1, SAMPLES)
    return [(0.3 * clip).astype(np.float32) for clip in (tone, noise)]


TOKENS = [*PROMPT, *np.random.default_rng(0).integers(0, 30, CONTEXT - len(PROMPT)).tolist()]


def expect_decoder(model, states, text, changes, prompt=4):
    """The run under the text is the run under the changes, and not the plain one."""
    plain = ji.decode(model, TOKENS, states, sites="all")
    expected = ji.decode(model, TOKENS, states, edit=by_hand(plain.acts, changes)).logits
    (parsed,) = means.resolve_means(model, [parse_edit(text, model)])
    found = ji.decode(model, TOKENS, states, edit=parsed.decoder_edit(prompt)).logits
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert np.abs(np.asarray(found - plain.logits)).max() > 1e-4
    assert parsed.encoder is ji.identity


def written_by_hand(model, states, prompt, edit_of, n=8):
    """Pure argmax, all positions at each step; `edit_of` all tokens, whose last are padding."""
    tokens = np.zeros(CONTEXT, np.int32)
    tokens[: len(prompt)] = prompt
    log_probs = []
    for last in range(len(prompt) - 1, len(prompt) - 1 + n):
        logits = ji.decode(model, tokens, states, edit=edit_of(tokens)).logits[last]
        log_p = np.asarray(jax.nn.log_softmax(logits))
        tokens[last + 1] = log_p.argmax()
        log_probs.append(log_p.max())
    return tokens[len(prompt) : len(prompt) + n].tolist(), log_probs


def expect_written(model, states, prompt, edit, expected, reference=None):
    result = ji.generate(
        model,
        states,
        prompt=prompt,
        edit=edit,
        reference=reference,
        choice=ji.Choice(suppress=False, max_new_tokens=len(expected[0])),
    )
    tokens, log_probs = expected
    n = len(result.log_probs)
    assert [*result.tokens, *([30] if result.finished else [])] == tokens[:n]
    np.testing.assert_allclose(result.log_probs, log_probs[:n], rtol=1e-9, atol=1e-10)
    assert n > 3
