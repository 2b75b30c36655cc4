"""Generation in a loop of fixed length equals `generate`, under every transformation."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import END, PROMPT
from helpers.generating import ALWAYS, CONTEXT, GERMAN, encoded, ending, louder
from jaxasr_interp.generation.batching import generate_rows

TIMED = PROMPT[:3]
CHOICE = ji.Choice(max_new_tokens=6)


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return encoded(model, golden)


def expect_equal(fixed, generated, rtol=1e-9):
    """The arrays hold what was generated, and padding behind it."""
    n, n_chosen = len(generated.tokens), len(generated.log_probs)
    assert (fixed.length, fixed.finished) == (n, generated.finished)
    assert fixed.tokens.tolist() == [*generated.tokens] + [END] * (len(fixed.tokens) - n)
    np.testing.assert_allclose(fixed.log_probs[:n_chosen], generated.log_probs, rtol=rtol)
    assert not fixed.log_probs[n_chosen:].any()
    assert fixed.no_speech_prob == pytest.approx(generated.no_speech_prob, rel=rtol)


def row(batch, *at):
    return jax.tree.map(lambda x: x[at], batch)


def scaled(factor):
    return ji.At(ji.Scale(factor), layer=1, start=2, site="mlp_out")


def varied(model, seed):
    """Another random model of the same sizes."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x * jnp.asarray(random.normal(1, 0.5, x.shape), x.dtype), model)


@pytest.mark.parametrize("prompt", [PROMPT, TIMED, [5, 7, 2, *GERMAN]], ids=str)
@pytest.mark.parametrize("suppress", [True, False])
def test_it_equals_generate(model, states, prompt, suppress):
    choice = ji.Choice(max_new_tokens=9, suppress=suppress)
    written = set()
    for seed in range(3):
        other = varied(model, seed)
        for clip, end, shift in [(0, 3, 1.0), (1, 9, -3.0), (1, ALWAYS, 2.0), (0, 13, 0.2)]:
            options = {"prompt": prompt, "edit": ending(end, shift), "choice": choice}
            fixed = ji.generate_fixed(other, states[clip], **options)
            expect_equal(fixed, ji.generate(other, states[clip], **options))
            written.add((int(fixed.length), *fixed.tokens.tolist()))
    assert len({tokens[0] for tokens in written}) > 2
    assert len(written) > 6


EDITS = {
    "none": {},
    "function": {"edit": lambda site, layer, value: -value if site == "cross_z" else value},
    "reference": {"edit": ji.At(ji.Interchange(), 1, start=3, site="resid_mid"), "reference": True},
    "noise": {"edit": ji.At(ji.Noise(0.5, 3), head=1, site="z")},
    "knockout": {"edit": ji.At(ji.Knockout(0, 5), alpha=0.5, site="cross_pattern")},
}


@pytest.mark.parametrize("options", EDITS.values(), ids=EDITS)
def test_every_kind_of_edit_acts_as_in_generate(model, states, options):
    if "reference" in options:
        options = options | {"reference": states[1]}
    options = options | {"prompt": PROMPT, "choice": CHOICE}
    expect_equal(
        ji.generate_fixed(model, states[0], **options), ji.generate(model, states[0], **options)
    )


def test_it_stops_where_the_context_ends(model, states):
    options = {"prompt": PROMPT, "choice": ji.Choice(max_new_tokens=30)}
    fixed = ji.generate_fixed(model, states[0], **options)
    expect_equal(fixed, ji.generate(model, states[0], **options))
    assert (fixed.length, len(fixed.tokens)) == (CONTEXT + 1 - len(PROMPT), 30)
    options = {"prompt": [5] * CONTEXT, "choice": ji.Choice(max_new_tokens=2, suppress=False)}
    expect_equal(
        ji.generate_fixed(model, states[0], **options), ji.generate(model, states[0], **options)
    )


def test_drawn_tokens_are_those_of_generate(model, states):
    options = {"prompt": PROMPT, "choice": ji.Choice(max_new_tokens=6, temperature=1.0, seed=3)}
    expect_equal(
        ji.generate_fixed(model, states[1], **options), ji.generate(model, states[1], **options)
    )


def test_in_float32_tokens_are_the_same_and_log_probs_differ_by_rounding(tiny32, golden):
    model = louder(tiny32)
    options = {"prompt": TIMED, "edit": scaled(-2.0), "choice": CHOICE}
    run = jax.jit(lambda model, clip: ji.generate_fixed(model, clip, **options))
    for clip in encoded(model, golden):
        fixed = run(model, clip)
        assert fixed.log_probs.dtype == jnp.float32
        expect_equal(fixed, ji.generate(model, clip, **options), rtol=1e-5)


def test_under_jit_model_states_and_edit_are_arguments(model, states):
    run = jax.jit(ji.generate_fixed, static_argnames=("prompt", "choice"))
    for seed, factor in enumerate([0.3, -2.0]):
        other, edit = varied(model, seed), scaled(jnp.asarray(factor))
        fixed = run(other, states[seed], prompt=tuple(TIMED), edit=edit, choice=CHOICE)
        alone = ji.generate(other, states[seed], prompt=TIMED, edit=edit, choice=CHOICE)
        expect_equal(fixed, alone)
    assert run._cache_size() == 1


@pytest.mark.parametrize("prompt", [PROMPT, TIMED], ids=["plain", "timestamps"])
def test_vmap_over_clips_and_edits_equals_one_call_each(model, states, prompt):
    factors = jnp.asarray([1.0, 0.0, -3.0, 6.0])

    def one(clip, factor):
        edit = scaled(factor)
        return ji.generate_fixed(model, clip, prompt=prompt, edit=edit, choice=CHOICE)

    of_rows = jax.vmap(one, (None, 0))
    batch = jax.jit(jax.vmap(of_rows, (0, None)))(states, factors)
    rows = [[scaled(factor) for factor in factors]] * len(states)
    results = generate_rows(model, states, rows, prompts=[prompt] * 2, choice=CHOICE)
    for i, of_clip in enumerate(results):
        for j, generated in enumerate(of_clip):
            expect_equal(row(batch, i, j), generated)
    assert len({tuple(tokens) for tokens in batch.tokens.reshape(8, -1).tolist()}) > 2


def test_a_plain_function_may_hold_the_mapped_value(model, states):
    options = {"prompt": TIMED, "choice": CHOICE}

    def one(factor):
        def edit(site, layer, value):
            return value * factor if site == "z" else value

        return ji.generate_fixed(model, states[0], edit=edit, **options)

    factors = jnp.asarray([1.0, -2.0])
    batch = jax.vmap(one)(factors)
    for j, factor in enumerate(factors):
        edit = ji.At(ji.Scale(factor), site="z")
        expect_equal(row(batch, j), ji.generate(model, states[0], edit=edit, **options))


def test_rows_under_vmap_end_where_each_ends(model, states):
    edits = [ending(end, 1.0) for end in (3, 6, 8, ALWAYS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *edits)
    options = {"prompt": PROMPT, "choice": ji.Choice(max_new_tokens=6, suppress=False)}
    batch = jax.vmap(lambda edit: ji.generate_fixed(model, states[0], edit=edit, **options))(
        stacked
    )
    assert batch.length.tolist() == [0, 3, 5, 6]
    assert batch.finished.tolist() == [True, True, True, False]
    for j, edit in enumerate(edits):
        expect_equal(row(batch, j), ji.generate(model, states[0], edit=edit, **options))


def test_gradients_are_those_of_the_teacher_forced_run(model, states):
    choice = ji.Choice(max_new_tokens=6, suppress=False)

    def generated(factor):
        edit = scaled(factor)
        fixed = ji.generate_fixed(model, states[0], prompt=PROMPT, edit=edit, choice=choice)
        return fixed.log_probs.sum(), fixed.tokens

    (total, tokens), slope = jax.value_and_grad(generated, has_aux=True)(0.7)
    assert END not in tokens

    def forced(factor):
        whole = jnp.concatenate([jnp.asarray(PROMPT, jnp.int32), tokens])
        logits = ji.decode(model, whole, states[0], edit=scaled(factor)).logits
        log_probs = jax.nn.log_softmax(logits[len(PROMPT) - 1 : -1])
        return jnp.take_along_axis(log_probs, tokens[:, None], 1).sum()

    expected, expected_slope = jax.value_and_grad(forced)(0.7)
    np.testing.assert_allclose([total, slope], [expected, expected_slope], rtol=1e-9)


def test_an_edit_without_effect_and_fewer_steps_change_nothing(model, states):
    def run(n, edit):
        choice = ji.Choice(max_new_tokens=n)
        return ji.generate_fixed(model, states[1], prompt=TIMED, edit=edit, choice=choice)

    plain = run(9, ji.identity)
    for other in (run(9, scaled(1.0)), run(5, ji.identity)):
        n = len(other.tokens)
        assert other.tokens.tolist() == plain.tokens[:n].tolist()
        np.testing.assert_allclose(other.log_probs, plain.log_probs[:n], rtol=1e-12)
    assert np.isnan(run(9, scaled(np.nan)).log_probs).all()


def by_closure(model, states, x):
    def edit(site, layer, value):
        return value * x.astype(value.dtype) if site == "z" else value

    return ji.generate(model, states, prompt=PROMPT, edit=edit, choice=CHOICE).log_probs[0]


TRACED = {
    "states": lambda m, s, x: ji.generate(m, s * x, prompt=PROMPT),
    "edit": lambda m, s, x: ji.generate(m, s, prompt=PROMPT, edit=scaled(x)),
    "reference": lambda m, s, x: ji.generate(m, s, prompt=PROMPT, reference=s * x),
    "model": lambda m, s, x: ji.generate(jax.tree.map(lambda w: w * x, m), s, prompt=PROMPT),
    "closure": by_closure,
    "beam": lambda m, s, x: ji.generate(m, s * x, choice=ji.Choice(beam_size=2)),
}


@pytest.mark.parametrize("transform", ["jit", "vmap", "grad"])
@pytest.mark.parametrize("generate", TRACED.values(), ids=TRACED)
def test_generate_under_a_transformation_names_generate_fixed(model, states, transform, generate):
    x = jnp.ones(2) if transform == "vmap" else jnp.ones(())
    with pytest.raises(ji.InputError, match="use generate_fixed under"):
        getattr(jax, transform)(lambda x: generate(model, states[0], x))(x)


BAD = {
    "beam": ({"choice": ji.Choice(beam_size=2)}, "beam_size is 2: a loop of fixed length"),
    "reference": ({"edit": ji.At(ji.Interchange())}, "from a reference run: give its clip"),
    "site": ({"edit": ji.At(ji.Zero(), site="conv2_out")}, "has no site 'conv2_out'"),
    "token": ({"prompt": [99]}, "Token 99 is outside"),
    "long": ({"prompt": [5] * (CONTEXT + 1)}, "expected one sequence of 1 to 20 tokens"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_in_one_sentence(model, states, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.generate_fixed(model, states[0], **({"prompt": PROMPT, "choice": CHOICE} | options))


def test_states_of_another_shape_are_refused(model, states):
    with pytest.raises(ji.InputError, match="Encoder states are"):
        ji.generate_fixed(model, states[0, :5], prompt=PROMPT)


def test_a_traced_prompt_is_refused(model, states, monkeypatch):
    # Else the tests' own check of types, which users do not have, comes first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ji.InputError, match="The prompt is traced"):
        jax.jit(lambda prompt: ji.generate_fixed(model, states[0], prompt=prompt))(PROMPT)
