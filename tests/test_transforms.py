"""Every public function under `jax.jit`, `jax.vmap` and `jax.grad`: it works, or says what does.

And what computes under JAX's flags: double precision, the search for NaNs and for leaked tracers.
"""

import functools
import inspect
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.decoding import PROMPT
from helpers.files import GRASS, sound
from jaxasr_interp.runtime.transforms import host_only

TRANSFORMS = ("jit", "vmap", "grad")
FIXED, DECODE = "use generate_fixed under them", "use decode under them"
OUTSIDE = "call it outside, and give what it returns to the function that is transformed"
CHOICE = ji.Choice(max_new_tokens=2)


@pytest.fixture(scope="module")
def made(tiny_tokenizer):
    """What the calls are given, made outside of every transformation."""
    from helpers.golden import GOLDEN

    model = ji.load_model(GOLDEN / "tiny_random")
    model.tokenizer = tiny_tokenizer
    audio = sound(3, 24 * 160)
    mel = ji.log_mel_spectrogram(audio, 8, 24)
    states = ji.encode(model, mel).states
    tokens = jnp.asarray([*PROMPT, 3, 1], jnp.int32)
    run = ji.decode(model, tokens, states, sites=(*ji.DIRECT_SITES, "cross_pattern"))
    translators = ji.Translators(jnp.ones((2, 16, 16)), jnp.ones((2, 16)), model.source)
    return SimpleNamespace(
        model=model,
        audio=audio,
        mel=mel,
        states=states,
        tokens=tokens,
        run=run,
        translators=translators,
        plan=ji.plan_sweep(model, tokens=tokens, layers=[1]),
        utterance=ji.Utterance(mel, tokens, len(PROMPT), 12, "en"),
        x=np.random.default_rng(0).normal(size=(1, 20, 3)).astype(np.float32),
    )


def heard(m, x):
    """The utterance with a traced spectrogram."""
    return ji.Utterance(m.mel * x, m.tokens, len(PROMPT), 12, "en")


def clip(m, x):
    return ji.Clip("a", m.audio * x, "ab", "en")


def pair(m, x):
    return {"clean": heard(m, x), "corrupted": m.utterance, "metric": ji.metrics.kl()}


def pairs(m, x):
    return {name: [one] for name, one in pair(m, x).items()}


def scaled(x):
    return ji.At(ji.Scale(x), layer=1, site="mlp_out")


def by_closure(x):
    return lambda site, layer, value: value * x if site == "mlp_out" else value


def run_of(m, x):
    """A run whose logits and activations depend on `x`."""
    return jax.tree.map(lambda leaf: leaf * x, m.run)


WORKS = {
    "decode": lambda m, x: ji.decode(m.model, m.tokens, m.states * x, edit=scaled(x)),
    "direct_logit_attribution": lambda m, x: ji.direct_logit_attribution(
        m.model, run_of(m, x), m.tokens
    ),
    "encode": lambda m, x: ji.encode(m.model, m.mel * x, edit=scaled(x)),
    "generate_fixed": lambda m, x: ji.generate_fixed(
        m.model, m.states * x, prompt=PROMPT, edit=scaled(x), choice=CHOICE
    ),
    "identity": lambda m, x: ji.identity("mlp_out", 1, m.states * x),
    "log_mel_spectrogram": lambda m, x: ji.log_mel_spectrogram(m.audio * x, 8, 24),
    "logit_lens": lambda m, x: ji.logit_lens(m.model, run_of(m, x)),
    "tuned_lens": lambda m, x: ji.tuned_lens(m.model, run_of(m, x), m.translators),
}
"""Functions of arrays that may be traced."""

HOST = {
    "ablation_sweep": (lambda m, x: ji.ablation_sweep(m.model, [clip(m, x)]), FIXED),
    "activation_patching": (
        lambda m, x: ji.activation_patching(m.model, m.plan, **pair(m, x)),
        DECODE,
    ),
    "activation_patching_batch": (
        lambda m, x: ji.activation_patching_batch(m.model, m.plan, **pairs(m, x)),
        DECODE,
    ),
    "activation_patching of an edit": (
        lambda m, x: ji.activation_patching(m.model, m.plan, **pair(m, 1.0), edit=by_closure(x)),
        DECODE,
    ),
    "agreement": (lambda m, x: ji.agreement(x, x), OUTSIDE),
    "align_words": (lambda m, x: ji.align_words(m.model, heard(m, x)), "read decode's"),
    "attribution_patching": (
        lambda m, x: ji.attribution_patching(m.model, m.plan, **pair(m, x)),
        DECODE,
    ),
    "cka": (lambda m, x: ji.cka(x, "x"), OUTSIDE),
    "detect_language": (
        lambda m, x: ji.detect_language(m.model, m.states * x),
        "decode the prompt under them",
    ),
    "encoder_lens": (lambda m, x: ji.encoder_lens(m.model, m.mel * x), FIXED),
    "extract": (lambda m, x: ji.extract(m.model, [{"audio": x}], "x"), "use encode and decode"),
    "fit_probes": (lambda m, x: ji.fit_probes(m.x * x, [0, 1] * 10), OUTSIDE),
    "generate": (lambda m, x: ji.generate(m.model, m.states * x), FIXED),
    "generate of an edit": (lambda m, x: ji.generate(m.model, m.states, edit=scaled(x)), FIXED),
    "generate_batch": (lambda m, x: ji.generate_batch(m.model, m.states[None] * x), FIXED),
    "generate_rows": (
        lambda m, x: ji.generate_rows(m.model, m.states[None], [[scaled(x)]]),
        FIXED,
    ),
    "make_utterance": (lambda m, x: ji.make_utterance(m.model, m.audio * x), OUTSIDE),
    "mean_activations": (
        lambda m, x: ji.mean_activations(
            m.model, [heard(m, x)], stack="decoder", sites=["mlp_out"], n_tokens=9
        ),
        OUTSIDE,
    ),
    "plan_sweep": (lambda m, x: ji.plan_sweep(m.model, tokens=m.states[0] * x), OUTSIDE),
    "probe_store": (lambda m, x: ji.probe_store(x, "x", "y"), OUTSIDE),
    "random_model": (lambda m, x: ji.random_model(m.model, x), OUTSIDE),
    "replicate": (
        lambda m, x: ji.replicate(jax.tree.map(lambda leaf: leaf * x, m.model)),
        OUTSIDE,
    ),
    "resolve_means": (
        lambda m, x: ji.resolve_means(m.model, [ji.Intervention("a", decoder=scaled(x))]),
        OUTSIDE,
    ),
    "save_model": (
        lambda m, x: ji.save_model(jax.tree.map(lambda leaf: leaf * x, m.model), "x"),
        OUTSIDE,
    ),
    "save_probes": (lambda m, x: ji.save_probes(x, "x"), OUTSIDE),
    "score_probes": (lambda m, x: ji.score_probes(x), OUTSIDE),
    "spectrum": (lambda m, x: ji.spectrum(x, "x"), OUTSIDE),
    "sweep_dataset": (lambda m, x: ji.sweep_dataset(m.model, [{"audio": x}], "x"), DECODE),
    "train_tuned_lens": (
        lambda m, x: ji.train_tuned_lens(m.model, [clip(m, x)] * 2, "x"),
        "use tuned_lens under them",
    ),
    "transcribe": (lambda m, x: ji.transcribe(m.model, m.audio * x), FIXED),
    "transcribe_batch": (lambda m, x: ji.transcribe_batch(m.model, [m.audio * x]), FIXED),
    "verify_top": (lambda m, x: ji.verify_top(m.model, x, 1, **pair(m, x)), DECODE),
}
"""Functions that work on the host, and what their sentence says to do."""

LOADS = {
    "load_model": lambda: ji.load_model("nowhere"),
    "load_probes": lambda: ji.load_probes("nowhere"),
    "load_tuned_lens": lambda: ji.load_tuned_lens("nowhere"),
}
"""Functions that make arrays of files, which `jax.jit` would trace."""

WITHOUT_ARRAYS = {
    "aggregate": lambda m: ji.aggregate("nowhere"),
    "component_edits": lambda m: ji.component_edits(m.model),
    "keep_compiled_programs": lambda m: None,
    "load_audio": lambda m: ji.load_audio(GRASS),
    "open_activations": lambda m: ji.open_activations("nowhere"),
    "open_dataset": lambda m: ji.open_dataset("nowhere"),
    "parse_edit": lambda m: ji.parse_edit("zero:decoder.z@1.0", m.model),
    "progress": lambda m: None,
}
"""Functions that neither take nor give arrays of JAX: a transformation does not concern them."""


def transformed(transform, function):
    """The function of one number under a transformation, with its argument."""
    return getattr(jax, transform)(function), jnp.ones(2 if transform == "vmap" else ())


@pytest.fixture
def untyped(monkeypatch):
    """Without the tests' own check of types, which users do not have."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def floats(tree):
    """The numbers of a result that have gradients, in one row."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.concatenate([jnp.ravel(x) for x in leaves])


def test_every_public_function_is_in_the_table():
    functions = {name for name in ji.__all__ if inspect.isfunction(getattr(ji, name))}
    named = [*WORKS, *HOST, *LOADS, *WITHOUT_ARRAYS]
    assert {name.split()[0] for name in named} == functions | {"identity"}
    assert len(named) == len(set(named))


# `test_fixed_length` holds `generate_fixed` to `generate` under every transformation.
@pytest.mark.parametrize("name", sorted(WORKS.keys() - {"generate_fixed"}))
def test_functions_of_arrays_work(made, name):
    call = functools.partial(WORKS[name], made)
    alone = floats(call(jnp.ones(())))
    np.testing.assert_allclose(floats(jax.jit(call)(jnp.ones(()))), alone, rtol=2e-5, atol=2e-6)
    rows = jax.vmap(lambda x: floats(call(x)))(jnp.asarray([1.0, 0.5]))
    np.testing.assert_allclose(rows[0], alone, rtol=2e-4, atol=2e-5)
    assert not np.array_equal(rows[0], rows[1])
    # The log-probability, or state, of most weight in the sum, by central differences.
    loss = lambda x: jnp.where(jnp.isfinite(v := floats(call(x))), v, 0.0).mean()  # noqa: E731
    slope = jax.grad(loss)(jnp.ones(()))
    step = 3e-3
    differences = (loss(jnp.asarray(1 + step)) - loss(jnp.asarray(1 - step))) / (2 * step)
    assert slope == pytest.approx(float(differences), rel=0.05, abs=2e-3)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", HOST)
def test_functions_of_the_host_say_what_to_use(made, untyped, name, transform):
    call, instead = HOST[name]
    function, x = transformed(transform, lambda x: call(made, x))
    start = f"^{name.split()[0]}(_batch|_rows)? works on the host, .* under jax.jit"
    with pytest.raises(ji.InputError, match=start) as error:
        function(x)
    assert instead in str(error.value)
    assert not re.search("[Tt]racer|Traced|\n", str(error.value))


@pytest.mark.parametrize("name", LOADS)
def test_what_loads_arrays_is_refused_where_they_would_be_traced(untyped, name):
    with pytest.raises(ji.InputError, match="works on the host"):
        jax.jit(lambda x: LOADS[name]())(1.0)
    with pytest.raises(ji.InputError, match="nowhere"):
        jax.vmap(lambda x: LOADS[name]())(jnp.ones(2))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", WITHOUT_ARRAYS)
def test_what_has_no_arrays_does_what_it_does_outside(made, name, transform):
    def outcome():
        try:
            return repr(WITHOUT_ARRAYS[name](made))
        except ji.InputError as error:
            return str(error)

    inside = []
    function, x = transformed(transform, lambda x: (inside.append(outcome()), x)[1])
    function(x)
    assert inside == [outcome()]


COMPUTE = (
    *WORKS,
    "activation_patching",
    "align_words",
    "attribution_patching",
    "detect_language",
    "fit_probes",
    "generate",
    "mean_activations",
)
SLOWER = ("activation_patching_batch", "encoder_lens", "make_utterance", "transcribe")
"""Functions that compute by those above."""


@pytest.mark.parametrize(
    "name", [*COMPUTE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)]
)
def test_functions_compute_under_the_flags_of_jax(made, name):
    call = WORKS[name] if name in WORKS else HOST[name][0]
    with jax.enable_x64(True), jax.debug_nans(True), jax.checking_leaks():
        found = call(made, jnp.ones((), jnp.float32))
    for leaf in jax.tree.leaves(found):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32


def test_arguments_that_can_be_iterated_over_once_are_left_alone():
    given = {"iterator": iter([1]), "view": {0: 1}.values(), "generator": (i for i in [1])}
    assert host_only()(lambda **given: given)(**given) == given
    assert [list(one) for one in given.values()] == [[1]] * 3
