"""Cached, batched decoding against the full recompute, and the rules of what may follow."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import jaxasr_interp as ji
from helpers.decoding import BEGIN, END, NO_TIMESTAMPS, PROMPT, forbidden_by_openai, log_softmax
from jaxasr_interp.generation.logit_filters import TimestampFilter
from jaxasr_interp.pytree import pytree_dataclass


@pytest.fixture
def states(tiny, golden):
    mels = [jnp.asarray(golden["mel_a"]), jnp.asarray(golden["mel_b"])]
    return jnp.stack([ji.encode(tiny, mel).states for mel in mels])


def recompute(model, states, prompt, n, allowed=lambda logits, step: logits, edit=ji.identity):
    """Greedy decoding with one full forward pass for each token, padded behind the last."""
    tokens, log_probs = list(prompt), []
    for step in range(n):
        padded = tokens + [0] * (model.config.max_tokens - len(tokens))
        run = ji.decode(model, padded, states, edit=edit)
        logits = allowed(np.array(run.logits[len(tokens) - 1], np.float64), step)
        log_p = log_softmax(logits)
        tokens.append(int(logits.argmax()))
        log_probs.append(log_p.max())
        if tokens[-1] == END or len(tokens) > model.config.max_tokens:
            break
    return tokens[len(prompt) :], log_probs


def without_end(tokens):
    return [token for token in tokens if token != END]


def test_cached_decoding_equals_full_recompute(tiny, states):
    for one in states:
        tokens, log_probs = recompute(tiny, one, PROMPT, 12)
        result = ji.generate(
            tiny, one, prompt=PROMPT, choice=ji.Choice(suppress=False, max_new_tokens=12)
        )
        assert list(result.tokens) == without_end(tokens)
        assert result.finished == (tokens[-1] == END)
        np.testing.assert_allclose(result.log_probs, log_probs, rtol=1e-9)
        mean = sum(log_probs) / (len(result.tokens) + 1)
        assert result.mean_log_prob == pytest.approx(mean)


def test_decoding_stops_where_the_context_ends(tiny, states):
    tokens, _ = recompute(tiny, states[0], PROMPT, 100)
    result = ji.generate(
        tiny, states[0], prompt=PROMPT, choice=ji.Choice(suppress=False, max_new_tokens=100)
    )
    assert list(result.tokens) == without_end(tokens)
    assert len(PROMPT) + len(tokens) <= tiny.config.max_tokens + 1


EDITED = ["resid_pre", "q", "k", "v", "z", "cross_k", "cross_z", "mlp_out"]


@pytree_dataclass
class Scale:
    """Scales sites in layer 1: one program whichever site it is."""

    factors: dict[str, Array]

    def __call__(self, site, layer, value):
        if site not in self.factors:
            return value
        return jnp.where(layer == 1, value * self.factors[site], value)


@pytest.mark.parametrize("site", EDITED)
def test_an_edit_applies_at_every_step(tiny, states, site):
    edit = Scale({name: jnp.asarray(0.3 if name == site else 1.0) for name in EDITED})
    tokens, log_probs = recompute(tiny, states[0], PROMPT, 8, edit=edit)
    plain = ji.generate(
        tiny, states[0], prompt=PROMPT, choice=ji.Choice(suppress=False, max_new_tokens=8)
    )
    result = ji.generate(
        tiny,
        states[0],
        prompt=PROMPT,
        edit=edit,
        choice=ji.Choice(suppress=False, max_new_tokens=8),
    )
    assert list(result.tokens) == without_end(tokens)
    np.testing.assert_allclose(result.log_probs, log_probs, rtol=1e-9)
    assert result.log_probs != plain.log_probs


def test_a_batch_equals_its_clips_one_by_one(tiny, states):
    prompts = [PROMPT, [31, 33, 35, NO_TIMESTAMPS]]
    batch = ji.generate_batch(
        tiny, states, prompts=prompts, choice=ji.Choice(suppress=False, max_new_tokens=10)
    )
    for one, prompt, together in zip(states, prompts, batch, strict=True):
        alone = ji.generate(
            tiny, one, prompt=prompt, choice=ji.Choice(suppress=False, max_new_tokens=10)
        )
        assert alone.tokens == together.tokens
        np.testing.assert_allclose(alone.log_probs, together.log_probs, rtol=1e-9)
        assert alone.no_speech_prob == pytest.approx(together.no_speech_prob)


def test_suppressed_tokens_are_never_written(tiny, states):
    forbidden, first = list(tiny.generation.suppress), list(tiny.generation.suppress_first)

    def allowed(logits, step):
        logits[forbidden] = -np.inf
        if step == 0:
            logits[first] = -np.inf
        return logits

    for one in states:
        tokens, log_probs = recompute(tiny, one, PROMPT, 12, allowed)
        result = ji.generate(tiny, one, prompt=PROMPT, choice=ji.Choice(max_new_tokens=12))
        assert list(result.tokens) == without_end(tokens)
        assert not set(result.tokens) & set(forbidden)
        np.testing.assert_allclose(result.log_probs, log_probs, rtol=1e-9)


def test_the_no_speech_probability_is_read_at_the_start_token(tiny, states):
    previous = [37, 1, 2, 3]
    prompt = [*previous, *PROMPT]
    result = ji.generate(tiny, states[0], prompt=prompt, choice=ji.Choice(max_new_tokens=1))
    logits = np.asarray(ji.decode(tiny, prompt, states[0]).logits[len(previous)], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert result.no_speech_prob == pytest.approx(probabilities[38])


@pytest.mark.parametrize("seed", range(12))
def test_timestamp_rules_are_openais(x64, seed):
    generator = np.random.default_rng(seed)
    written = []
    ids = np.arange(140)
    masks = jnp.asarray(ids >= BEGIN), jnp.asarray(ids < END)
    rules = TimestampFilter(jnp.asarray(BEGIN, jnp.int32), *masks)
    for step in range(10):
        logits = generator.normal(0, 2, 140)
        expected = forbidden_by_openai(logits, written)
        tokens = jnp.asarray([*written, *[END] * (10 - step)], jnp.int32)
        ours = rules(jnp.asarray(logits), tokens, jnp.asarray(step, jnp.int32))
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
        choices = np.flatnonzero(np.isfinite(expected) & (np.arange(140) != END))
        if not len(choices):
            break
        written.append(int(generator.choice(choices)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "expected one sequence of 1 to 20"),
        ({"prompt": [1] * 21}, "expected one sequence of 1 to 20"),
        ({"prompt": [48]}, "Token 48 is outside"),
    ],
)
def test_bad_requests_are_named_in_one_sentence(tiny, states, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.generate(tiny, states[0], **options)


def test_prompts_of_unequal_length_are_refused(tiny, states):
    with pytest.raises(ji.InputError, match="of equal length"):
        ji.generate_batch(tiny, states, prompts=[PROMPT, PROMPT[:2]])


def test_a_model_without_tokenizer_says_so(tiny, states):
    tiny.tokenizer = None
    with pytest.raises(ji.InputError, match=r"without a tokenizer\.json"):
        ji.generate(tiny, states[0])
