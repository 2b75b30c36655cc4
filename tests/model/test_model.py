"""The model against torch, and the invariants of reading and writing activations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

import jaxasr_interp as ji
from helpers.golden import worst
from jaxasr_interp.model.layers import LayerNorm
from jaxasr_interp.model.run import _decode, _encode
from jaxasr_interp.model.sites import PATTERN_SITES, SITES
from jaxasr_interp.pytree import pytree_dataclass

SHORT = ji.Interchange(ji.DecoderActivations(resid_pre=jnp.zeros((3, 6, 16))))
CELLS = [(stack, site) for stack, sites in SITES.items() for site in sites]


@pytest.fixture
def runs(tiny, golden):
    enc = ji.encode(tiny, jnp.asarray(golden["mel_a"]), sites="all")
    return enc, ji.decode(tiny, golden["tokens_a"], enc.states, sites="all")


def run(model, golden, stack, edit, sites=None):
    """Final states of the encoder or logits of the decoder, and activations, under an edit."""
    if stack == "encoder":
        enc = ji.encode(model, jnp.asarray(golden["mel_a"]), edit=edit, sites=sites)
        return enc.states, enc.acts
    states = ji.encode(model, jnp.asarray(golden["mel_a"])).states
    dec = ji.decode(model, golden["tokens_a"], states, edit=edit, sites=sites)
    return dec.logits, dec.acts


def test_every_site_equals_torch_at_float64(runs, golden):
    for stack, acts in zip(("encoder", "decoder"), (runs[0].acts, runs[1].acts), strict=True):
        for site in SITES[stack]:
            assert worst(getattr(acts, site), golden[f"{stack}/{site}"]) < 1e-10, (stack, site)


def test_activations_have_the_shapes_their_names_promise(tiny, runs):
    config = tiny.config
    sizes = {
        "encoder": {"layer": 2, "frame": 12, "mel_frame": 24, "head": 4, "d_head": 4, "d_mlp": 24},
        "decoder": {"layer": 3, "pos": 7, "frame": 12, "head": 2, "d_head": 8, "d_mlp": 40},
    }
    for stack, acts in zip(SITES, (runs[0].acts, runs[1].acts), strict=True):
        length = {"encoder": config.max_frames, "decoder": 7}[stack]
        known = sizes[stack] | {"query": length, "key": length, "d_model": 16, "d_vocab": 48}
        for site, axes in SITES[stack].items():
            assert getattr(acts, site).shape == tuple(known[axis] for axis in axes), site


@pytree_dataclass
class Mix:
    """At every site `value <- where(chosen, own · factor, value)`: one program for all sites."""

    own: dict[str, Array]
    chosen: dict[str, Array]
    factor: Array

    def __call__(self, site, layer, value):
        own = self.own[site] if layer is None else self.own[site][layer]
        return jnp.where(self.chosen[site], own * self.factor, value)


def mix(acts, chosen_site, factor):
    own = dict(vars(acts))
    chosen = {site: jnp.asarray(site == chosen_site) for site in own}
    return Mix(own, chosen, jnp.asarray(factor))


@pytest.mark.parametrize(("stack", "site"), CELLS)
def test_writing_a_sites_own_value_is_bitwise_a_no_op(tiny, golden, runs, stack, site):
    acts = runs[0].acts if stack == "encoder" else runs[1].acts
    untouched, own = run(tiny, golden, stack, mix(acts, None, 1.0), sites="all")
    rewritten, _ = run(tiny, golden, stack, mix(own, site, 1.0), sites="all")
    np.testing.assert_array_equal(rewritten, untouched)


@pytest.mark.parametrize(("stack", "site"), CELLS)
def test_writing_a_site_changes_what_comes_after_and_is_returned(tiny, golden, runs, stack, site):
    acts = runs[0].acts if stack == "encoder" else runs[1].acts
    plain, _ = run(tiny, golden, stack, mix(acts, None, 0.5), sites="all")
    halved, returned = run(tiny, golden, stack, mix(acts, site, 0.5), sites="all")
    np.testing.assert_array_equal(getattr(returned, site), getattr(acts, site) * 0.5)
    assert np.abs(np.asarray(halved) - np.asarray(plain)).max() > 1e-6


def test_zeroing_every_heads_result_leaves_the_bias(tiny, golden):
    def edit(site, layer, value):
        return jnp.zeros_like(value) if site == "cross_result" else value

    _, acts = run(tiny, golden, "decoder", edit, sites="cross_attn_out")
    bias = np.asarray(tiny.decoder.blocks.cross_attn.out.bias[...])
    expected = np.broadcast_to(bias[:, None, :], acts.cross_attn_out.shape)
    np.testing.assert_allclose(acts.cross_attn_out, expected, atol=1e-12)


def test_replacing_all_positions_of_layer_0_gives_the_other_run(tiny, golden):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states
    clean = ji.decode(tiny, golden["tokens_a"], states)
    edit = ji.At(ji.Interchange(clean.acts), layer=0, start=0, stop=7)
    patched = ji.decode(tiny, golden["tokens_b"], states, edit=edit)
    np.testing.assert_allclose(patched.logits, clean.logits, rtol=1e-12)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("pos", [0, 3, 6])
def test_an_edit_leaves_earlier_positions_untouched(tiny, golden, layer, pos):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states

    def logits(factor):  # one compiled program for both: two may round differently
        edit = ji.At(ji.Scale(factor), layer, pos, pos + 1)
        return np.asarray(ji.decode(tiny, golden["tokens_a"], states, edit=edit).logits)

    plain, edited = logits(1.0), logits(0.5)
    np.testing.assert_array_equal(edited[:pos], plain[:pos])
    assert np.abs(edited[pos] - plain[pos]).max() > 1e-6


def test_jitted_equals_unjitted(tiny, golden, runs):
    states, acts = tiny.encoder(jnp.asarray(golden["mel_a"]), patterns=True)
    np.testing.assert_allclose(states, runs[0].states, rtol=1e-12)
    resid, _ = tiny.decoder(jnp.asarray(golden["tokens_a"]), tiny.decoder.cross_keys_values(states))
    logits, _ = tiny.decoder.unembed(resid)
    np.testing.assert_allclose(logits, runs[1].logits, rtol=1e-12)
    np.testing.assert_allclose(acts.pattern, runs[0].acts.pattern, rtol=1e-12)


def test_a_batch_equals_its_examples_one_by_one(tiny, golden):
    mels = jnp.stack([golden["mel_a"], golden["mel_b"]])
    tokens = jnp.stack([golden["tokens_a"], golden["tokens_b"]])

    def logits(mel, tokens):
        return ji.decode(tiny, tokens, ji.encode(tiny, mel).states).logits

    batched = jax.vmap(logits)(mels, tokens)
    for i in range(2):
        np.testing.assert_allclose(batched[i], logits(mels[i], tokens[i]), rtol=1e-10, atol=1e-12)


def test_patterns_are_returned_only_when_asked(tiny, golden):
    enc = ji.encode(tiny, jnp.asarray(golden["mel_a"]))
    assert all(getattr(enc.acts, site) is None for site in PATTERN_SITES & SITES["encoder"].keys())
    asked = ji.encode(tiny, jnp.asarray(golden["mel_a"]), sites=["pattern"]).acts
    np.testing.assert_allclose(asked.pattern.sum(-1), 1.0, rtol=1e-12)
    assert asked.attn_scores is None
    assert asked.resid_post is None


def buffers(compiled) -> set[tuple[int, ...]]:
    """Every array shape in the optimised program."""
    return {
        tuple(int(n) for n in shape.split(","))
        for shape in re.findall(r"f32\[([\d,]+)\]", compiled)
    }


def test_activations_nobody_asked_for_leave_no_buffer():
    # Sizes that occur nowhere else: 5 layers, 11 positions, 3 heads of 10, an MLP of 70.
    config = ji.WhisperConfig(
        n_mels=4, d_vocab=50, d_model=30, encoder_layers=5, decoder_layers=5, encoder_heads=3,
        decoder_heads=3, encoder_d_mlp=70, decoder_d_mlp=70, max_frames=17, max_tokens=20,
    )  # fmt: skip
    model = ji.Whisper(config, rngs=nnx.Rngs(0))
    mel, tokens = jnp.zeros((4, 34)), jnp.zeros(11, jnp.int32)
    states = jnp.zeros((17, 30))

    def program(sites):
        given = ji.identity, ji.EditContext()
        enc = _encode.lower(model, mel, *given, sites.intersection(SITES["encoder"]))
        dec = _decode.lower(model, tokens, states, *given, sites.intersection(SITES["decoder"]))
        return buffers(enc.compile().as_text() + dec.compile().as_text())

    stacked = {
        "resid_post": {(5, 17, 30), (5, 11, 30)},
        "q": {(5, 17, 3, 10), (5, 11, 3, 10)},
        "result": {(5, 17, 3, 30), (5, 11, 3, 30)},
        "mlp_post": {(5, 17, 70), (5, 11, 70)},
        "pattern": {(5, 3, 17, 17), (5, 3, 11, 11)},
        "cross_pattern": {(5, 3, 11, 17)},
    }
    none = program(frozenset())
    for site, shapes in stacked.items():
        assert not shapes & none, f"{site} has a buffer though nobody asked for it"
        assert shapes <= program(frozenset({site})), f"{site} was asked for and has no buffer"


def test_gradients_flow_through_an_edit(tiny, golden):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states
    resid = ji.decode(tiny, golden["tokens_a"], states).acts.resid_pre

    def loss(source):
        edit = ji.At(ji.Interchange(ji.DecoderActivations(resid_pre=source)), 2, 0, 7)
        return ji.decode(tiny, golden["tokens_a"], states, edit=edit).logits[-1, 3]

    gradient = jax.grad(loss)(resid)
    step = jnp.zeros_like(resid).at[2, 6, 4].set(1e-6)
    slope = (loss(resid + step) - loss(resid - step)) / 2e-6
    np.testing.assert_allclose(gradient[2, 6, 4], slope, rtol=1e-6)


def test_layer_norm_in_float32_has_no_cancellation():
    x = np.random.default_rng(0).normal(300.0, 1.0, (4, 512))
    centred = x - x.mean(-1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    ours = jax.jit(LayerNorm(512))(jnp.asarray(x, jnp.float32))
    assert np.abs(ours - exact).max() < 2e-4  # float32 spacing at 300 is 3e-5


def test_bfloat16_keeps_its_dtype_and_accumulates_in_float32(golden):
    from helpers.golden import GOLDEN

    model = ji.load_model(GOLDEN / "tiny_random", dtype="bfloat16")
    enc = ji.encode(model, jnp.asarray(golden["mel_a"], jnp.float32), sites="all")
    dec = ji.decode(model, golden["tokens_a"], enc.states, sites="all")
    assert model.dtype == enc.states.dtype == dec.acts.resid_post.dtype == jnp.bfloat16
    assert dec.logits.dtype == jnp.float32
    assert worst(dec.logits, golden["decoder/logits"]) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g: ji.encode(m, jnp.zeros((8, 25))), "spectrogram is"),
        (lambda m, g: ji.encode(m, jnp.asarray(g["mel_a"]), sites="resid"), "has no site 'resid'"),
        (lambda m, g: ji.encode(m, jnp.asarray(g["mel_a"]), sites="cross_q"), "no site 'cross_q'"),
        (lambda m, g: ji.decode(m, [48], jnp.zeros((12, 16))), "Token 48 is outside"),
        (lambda m, g: ji.decode(m, [-1], jnp.zeros((12, 16))), "Token -1 is outside"),
        (lambda m, g: ji.decode(m, [], jnp.zeros((12, 16))), "expected one sequence of 1 to 20"),
        (
            lambda m, g: ji.decode(m, [1] * 21, jnp.zeros((12, 16))),
            "expected one sequence of 1 to 20",
        ),
        (lambda m, g: ji.decode(m, np.array([1.5]), jnp.zeros((12, 16))), "expected integers"),
        (lambda m, g: ji.decode(m, [1], jnp.zeros((11, 16))), "Encoder states are"),
        (
            lambda m, g: ji.encode(m, jnp.asarray(g["mel_a"]), edit=ji.At(ji.Zero(), 2)),
            "acts at layer 2 of 'resid_pre': the encoder has 2",
        ),
        (
            lambda m, g: ji.encode(
                m,
                jnp.asarray(g["mel_a"]),
                edit=ji.At(ji.Zero(), 0, 0, 7, site="cross_q"),
            ),
            "no site 'cross_q'",
        ),
        (
            lambda m, g: ji.decode(
                m,
                g["tokens_a"],
                jnp.zeros((12, 16)),
                edit=ji.At(
                    ji.Interchange(ji.DecoderActivations(resid_pre=jnp.zeros((3, 6, 16)))), 0, 0, 6
                ),
            ),
            "align runs of different length",
        ),
        (
            lambda m, g: ji.decode(
                m, g["tokens_a"], jnp.zeros((12, 16)), edit=lambda site, layer, x: x[..., :1]
            ),
            "an edit keeps shape and dtype",
        ),
        (lambda m, g: ji.At(ji.Zero(), 0, 0, 7, site="nose"), "no site"),
        (
            lambda m, g: ji.decode(
                m,
                g["tokens_a"],
                jnp.zeros((12, 16)),
                edit=ji.At(ji.Interchange(ji.DecoderActivations()), 0, 0, 7),
            ),
            "lacks 'resid_pre'",
        ),
        (
            lambda m, g: ji.decode(
                m, g["tokens_a"], jnp.zeros((12, 16)), edit=ji.At(ji.Add(jnp.ones(7)), 0, 0, 7)
            ),
            "resid_pre has 16 values",
        ),
        (
            lambda m, g: ji.decode(
                m,
                g["tokens_a"],
                jnp.zeros((12, 16)),
                edit=ji.At(ji.Knockout(0, 2), 0, 0, 7, site="z"),
            ),
            "knocked out at 'pattern'",
        ),
    ],
)
def test_bad_input_is_named_in_one_sentence(tiny, golden, call, message):
    with pytest.raises(ji.InputError, match=message) as error:
        call(tiny, golden)
    assert "\n" not in str(error.value)
