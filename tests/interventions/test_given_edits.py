"""Functions that take an edit take a function, an edit, an intervention and the text of an edit."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import PROMPT
from helpers.files import sound
from helpers.generating import encoded, louder

TEXT = "zero:decoder.mlp_out@1"
CHOICE = ji.Choice(max_new_tokens=3)
AUDIO = sound(0, 24 * 160)


def silence(site, layer, value):
    return jnp.where(layer == 1, 0, 1).astype(value.dtype) * value if site == "mlp_out" else value


def silence_by_numpy(site, layer, value):
    return np.zeros(value.shape, value.dtype) if site == "mlp_out" else value


@pytest.fixture(autouse=True)
def untyped(monkeypatch):
    """Without the tests' own check of types, which users do not have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return encoded(model, golden)


def swept(sweep, model, golden, edit):
    mels = (jnp.asarray(golden[name]) for name in ("mel_a", "mel_b"))
    tokens = jnp.asarray(golden["tokens_a"])
    clean, corrupted = (ji.Utterance(mel, tokens) for mel in mels)
    plan = ji.plan_sweep(model, tokens=tokens, site="mlp_out", layers=[1, 2])
    metric = ji.metrics.log_prob(3)
    return sweep(model, plan, clean=clean, corrupted=corrupted, metric=metric, edit=edit).patched


TAKE_EDITS = {
    "decode": lambda m, s, g, e: ji.decode(m, g["tokens_a"], s[0], edit=e).logits,
    "generate": lambda m, s, g, e: ji.generate(m, s[0], edit=e, choice=CHOICE).log_probs,
    "generate_fixed": lambda m, s, g, e: (
        ji.generate_fixed(m, s[0], edit=e, choice=CHOICE).log_probs
    ),
    "generate_batch": lambda m, s, g, e: (
        ji.generate_batch(m, s[:1], edit=e, sites="mlp_out", choice=CHOICE)[0].acts.mlp_out
    ),
    "transcribe": lambda m, s, g, e: (
        ji.transcribe(m, AUDIO, edit=e, language="en", choice=CHOICE).mean_log_prob
    ),
    "ablation_sweep": lambda m, s, g, e: (
        ji.ablation_sweep(m, [ji.Clip("a", AUDIO, "ab", "en")], [e], choice=CHOICE)
        .generated[1][0]
        .log_probs
    ),
    "activation_patching": lambda m, s, g, e: swept(ji.activation_patching, m, g, e),
    "attribution_patching": lambda m, s, g, e: swept(ji.attribution_patching, m, g, e),
}


ALIKE = ("generate", "ablation_sweep", "attribution_patching")
"""Functions that read the edit where another one does."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in TAKE_EDITS],
)
def test_text_and_function_do_the_same(model, states, golden, name):
    call = TAKE_EDITS[name]
    by_text, by_function = (np.asarray(call(model, states, golden, e)) for e in (TEXT, silence))
    np.testing.assert_allclose(by_text, by_function, rtol=1e-9)


def test_edits_and_interventions_do_what_their_text_does(model, states, golden):
    def logits(edit):
        return ji.decode(model, golden["tokens_a"], states[0], edit=edit).logits

    edit = ji.At(ji.Zero(), layer=1, site="mlp_out")
    by_text = logits(TEXT)
    for same in (edit, ji.parse_edit(TEXT, model), ji.Intervention("mine", decoder=silence)):
        np.testing.assert_allclose(logits(same), by_text, rtol=1e-9)
    assert not np.allclose(logits(ji.identity), by_text, rtol=1e-3)


def test_text_of_the_encoder_and_of_steps(model, states, golden):
    mel = jnp.asarray(golden["mel_a"])
    edit = ji.At(ji.Zero(), layer=1, site="mlp_out")
    by_text = ji.encode(model, mel, edit="zero:encoder.mlp_out@1").states
    by_edit = ji.encode(model, mel, edit=edit).states
    np.testing.assert_allclose(by_text, by_edit, rtol=1e-9)
    steps = {"prompt": PROMPT, "choice": CHOICE}
    first = ji.At(ji.Zero(), 1, len(PROMPT) - 1, len(PROMPT), site="mlp_out")
    np.testing.assert_allclose(
        ji.generate(model, states[0], edit=f"{TEXT}:step=0", **steps).log_probs,
        ji.generate(model, states[0], edit=first, **steps).log_probs,
        rtol=1e-12,
    )


def test_arrays_of_numpy_are_taken(model, states, golden):
    logits = ji.decode(model, golden["tokens_a"], states[0], edit=silence_by_numpy).logits
    zero = ji.At(ji.Zero(), site="mlp_out")
    whole = ji.decode(model, golden["tokens_a"], states[0], edit=zero).logits
    np.testing.assert_allclose(logits, whole, rtol=1e-12)


def returns(made):
    return lambda site, layer, value: made(value) if site == "mlp_out" else value


REFUSED = {
    "shape": (
        returns(lambda x: np.zeros(16)),
        r"into float64\[16\], of another shape:",
    ),
    "dtype": (returns(lambda x: x.astype(jnp.float32)), r"into float32\[7, 16\], of another dtype"),
    "both": (returns(lambda x: np.float32(0)), r"float32\[\], of another shape and dtype"),
    "number": (returns(lambda x: 0.0), r"returned float at 'mlp_out': expected float64"),
    "nothing": (lambda site, layer, value: None, "returned NoneType at 'embed'"),
    "if": (
        lambda site, layer, value: value * 0 if layer == 1 else value,
        r"at 'resid_pre' asks for .* write jnp.where\(",
    ),
    "index": (returns(lambda x: [x, x][int(x[0, 0])]), "at 'mlp_out' asks for the value"),
    "numpy": (returns(lambda x: np.tanh(np.asarray(x))), "jnp instead of np"),
    "parameters": (lambda value: value, r"takes \(value\): .* of \(site, layer, value\)"),
    "class": (ji.Zero, r"the class Zero: .* such as ji.Zero\(\)"),
    "array": (jnp.zeros(3), "The edit is ArrayImpl: expected a function"),
    "none": (None, "The edit is NoneType"),
    "encoder": ("zero:encoder.mlp_out@0", "acts outside of the decoder"),
    "both stacks": (f"{TEXT} + zero:encoder.mlp_out@0", "acts outside of the decoder"),
    "steps": (f"{TEXT}:step=0", "counts the steps of a generation: give it to generate"),
    "reference": ("mix:decoder.mlp_out@0:ref=noise", "hears 'noise': give it to transcribe"),
    "text": ("zero:decoder.mlp_out@9", "There is no layer 9 among 3"),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_named_in_one_sentence(model, states, golden, edit, message):
    with pytest.raises(ji.InputError, match=message) as error:
        ji.decode(model, golden["tokens_a"], states[0], edit=edit)
    assert "\n" not in str(error.value)
    assert "Array(" not in str(error.value)


def test_a_vector_is_an_array():
    with pytest.raises(ji.InputError, match="give an array"):
        ji.Add([1.0, 2.0])
