"""Edits as text: each kind against the same edit by hand, a factor and a shift of every cell."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.by_hand import (
    HIDDEN,
    LONGER,
    TOKENS,
    by_hand,
    expect_decoder,
    expect_written,
    written_by_hand,
)
from helpers.decoding import PROMPT
from helpers.generating import CONTEXT, louder
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.interventions.kind_text import KINDS, parse_kind


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def states(model, golden):
    return ji.encode(model, jnp.asarray(golden["mel_a"])).states


ALL = slice(None)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("zero:decoder.cross_z@2.1", [("cross_z", np.s_[2, :, 1], 0, 0)]),
        ("zero:decoder.cross_z@-1.-2", [("cross_z", np.s_[2, :, 0], 0, 0)]),
        ("zero:decoder.z@*.1", [("z", np.s_[:, :, 1], 0, 0)]),
        ("zero:decoder.z@0-1.*", [("z", np.s_[:2], 0, 0)]),
        (
            "scale:decoder.z@0,-1.0:factor=-2",
            [("z", np.s_[0, :, 0], -2, 0), ("z", np.s_[2, :, 0], -2, 0)],
        ),
        ("zero:decoder.mlp_out@*", [("mlp_out", ALL, 0, 0)]),
        ("zero:decoder.mlp_out@1:alpha=0.25", [("mlp_out", 1, 0.75, 0)]),
        ("scale:decoder.mlp_out@1:alpha=0.5:factor=3", [("mlp_out", 1, 2, 0)]),
        ("zero:decoder.mlp_out@1:pos=4:12", [("mlp_out", np.s_[1, 4:12], 0, 0)]),
        ("zero:decoder.mlp_out@1:pos=4..12:alpha=0.5", [("mlp_out", np.s_[1, 4:12], 0.5, 0)]),
        ("zero:decoder.mlp_out@1:pos=0:9:4", [("mlp_out", np.s_[1, :9:4], 0, 0)]),
        ("zero:decoder.mlp_out@1:pos=3,7..9", [("mlp_out", np.s_[1, [3, 7, 8]], 0, 0)]),
        ("scale:decoder.mlp_out@1:factor=3:pos=5..9,3..6", [("mlp_out", np.s_[1, 3:9], 3, 0)]),
        ("zero:decoder.mlp_out@1:step=0..2", [("mlp_out", np.s_[1, 3:5], 0, 0)]),
        ("zero:decoder.cross_v@1:pos=40ms..0.2s", [("cross_v", np.s_[1, 2:10], 0, 0)]),
        ("scale:decoder.ln_final:factor=0.5:pos=3", [("ln_final", 3, 0.5, 0)]),
        (
            "knockout:decoder.pattern@*.0:keys=2..4",
            [("attn_scores", np.s_[:, 0, :, 2:4], 1, HIDDEN)],
        ),
        (
            "knockout:decoder.cross_pattern@1:keys=0.04s..0.2s:pos=5..9",
            [("cross_attn_scores", np.s_[1, :, 5:9, 2:10], 1, HIDDEN)],
        ),
        (
            "scale:decoder.z@0:factor=3 + zero:decoder.mlp_out@1:pos=2 "
            "+ zero:decoder.z@0.1:alpha=0.5",
            [
                ("z", 0, 3, 0),
                ("mlp_out", np.s_[1, 2], 0, 0),
                ("z", np.s_[0, :, 1], 0.5, 0),
            ],
        ),
        (
            ["scale:decoder.mlp_out@1:factor=3", "zero:decoder.mlp_out@*:pos=4..6:alpha=0.5"],
            [("mlp_out", 1, 3, 0), ("mlp_out", np.s_[:, 4:6], 0.5, 0)],
        ),
        (
            "scale:decoder.mlp_out@1:factor=3:step=1 + scale:decoder.mlp_out@0:factor=3",
            [("mlp_out", np.s_[1, 4], 3, 0), ("mlp_out", 0, 3, 0)],
        ),
    ],
)
def test_edits_of_the_decoder(model, states, text, changes):
    expect_decoder(model, states, text, changes)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("zero:encoder.z@1.-2", [("z", np.s_[1, :, 2], 0, 0)]),
        ("zero:encoder.mlp_out@*:pos=40ms:120ms", [("mlp_out", np.s_[:, 2:6], 0, 0)]),
        (
            "zero:encoder.mlp_out@0:pos=0.04s..0.12s,-1",
            [("mlp_out", np.s_[0, [2, 3, 4, 5, -1]], 0, 0)],
        ),
        ("zero:encoder.pos_embed:alpha=0.5", [("pos_embed", ALL, 0.5, 0)]),
        (
            "knockout:encoder.pattern@0.1-3:keys=3..6 + scale:encoder.ln_final:factor=2",
            [("attn_scores", np.s_[0, 1:, :, 3:6], 1, HIDDEN), ("ln_final", ALL, 2, 0)],
        ),
    ],
)
def test_edits_of_the_encoder(model, golden, text, changes):
    mel = jnp.asarray(golden["mel_a"])
    plain = ji.encode(model, mel, sites="all")
    expected = ji.encode(model, mel, edit=by_hand(plain.acts, changes)).states
    parsed = parse_edit(text, model)
    found = ji.encode(model, mel, edit=parsed.encoder).states
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert np.abs(np.asarray(found - plain.states)).max() > 1e-4
    assert parsed.decoder_edit(4) is ji.identity


def test_vectors_are_read_from_files(model, states, tmp_path):
    vector = np.random.default_rng(1).normal(size=16)
    np.save(tmp_path / "v.npy", vector)
    text = f"add:decoder.resid_post@1:vector={tmp_path}/v.npy:alpha=-0.5:pos=3..9"
    expect_decoder(model, states, text, [("resid_post", np.s_[1, 3:9], 1, -0.5 * vector)])


@pytest.mark.parametrize(("where", "first", "start"), [("pos=5..9", 0, 5), ("step=0..6", 3, 3)])
def test_noise_depends_on_the_seed_and_the_position(model, states, where, first, start):
    stop = start + 4 if first == 0 else start + 6
    epsilon = ji.Noise(1.0, 7)("mlp_out", 1, jnp.zeros((CONTEXT, 16)))[start - first : stop - first]
    text = f"noise:decoder.mlp_out@1:std=0.5:seed=7:{where}"
    expect_decoder(
        model, states, text, [("mlp_out", np.s_[1, start:stop], 1, 0.5 * np.asarray(epsilon))]
    )


@pytest.mark.parametrize("prompt", [PROMPT, LONGER])
def test_steps_count_from_the_end_of_the_prompt_and_positions_from_its_start(model, states, prompt):
    acts, first = ji.decode(model, TOKENS, states, sites="all").acts, len(prompt) - 1
    text = "scale:decoder.mlp_out@*:factor=-3:step=1..3"
    edited = by_hand(acts, [("mlp_out", np.s_[:, first + 1 : first + 3], -3, 0)])
    expected = written_by_hand(model, states, prompt, lambda tokens: edited)
    expect_written(
        model, states, prompt, parse_edit(text, model).decoder_edit(len(prompt)), expected
    )
    text = "scale:decoder.mlp_out@*:factor=-3:pos=6..10"
    edited = by_hand(acts, [("mlp_out", np.s_[:, 6:10], -3, 0)])
    expected = written_by_hand(model, states, prompt, lambda tokens: edited)
    expect_written(
        model, states, prompt, parse_edit(text, model).decoder_edit(len(prompt)), expected
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "The kind '' is none of zero, scale"),
        ("freeze:decoder.z@1", "The kind 'freeze' is none"),
        ("zero:decoder.z@1 + ", "The kind '' is none"),
        ("zero", "After the kind comes STACK.SITE"),
        ("zero:decoder", "After the kind comes STACK.SITE"),
        ("zero:middle.z@1", "Unknown stack 'middle'"),
        ("zero:decoder.nose@1", "no site 'nose'"),
        ("zero:encoder.cross_z@0", "no site 'cross_z'"),
        ("zero:encoder.conv1_out", "'conv1_out' counts neither"),
        ("zero:decoder.z", "say in which layers: decoder.z@3"),
        ("zero:decoder.z@", "say in which layers"),
        ("zero:decoder.z@3", "no layer 3 among 3"),
        ("zero:encoder.z@2", "no layer 2 among 2"),
        ("zero:decoder.z@0,-4", "no layer -4 among 3"),
        ("zero:decoder.z@1.2", "no head 2 among 2"),
        ("zero:decoder.mlp_out@1.0", "mlp_out has no heads: leave out .0"),
        ("zero:decoder.embed@0", "embed lies outside the layers: leave out @0"),
        ("zero:decoder.z@two", "The layers 'two' cannot be read"),
        ("zero:decoder.z@2-1", "The layers '2-1' cannot be read"),
        ("zero:decoder.z@1.x", "The heads 'x' cannot be read"),
        ("zero:decoder.z@1.", "the heads are missing after the dot"),
        ("zero:decoder.z@1,-2", "layers 1,-2 name one of them twice"),
        ("zero:decoder.z@1.0-1,0", "heads 0,1,0 name one of them twice"),
        ("zero:decoder.z@1:factor=2", "zero takes no 'factor' but alpha, pos, step"),
        ("zero:decoder.z@1:0.5", "zero takes no '0.5'"),
        ("zero:decoder.z@1:alpha=", "alpha needs one value"),
        ("zero:decoder.z@1:alpha=1:alpha=0", "alpha needs one value"),
        ("zero:decoder.z@1:alpha=half", "alpha=half is not a fitting number"),
        ("scale:decoder.z@1", "scale needs factor=..."),
        ("scale:decoder.z@1:factor=nan", "factor=nan is not a fitting number"),
        ("noise:decoder.z@1:std=-1", "std=-1 is not a fitting number"),
        ("noise:decoder.z@1:std=1:seed=0.5", "seed=0.5 is not a fitting number"),
        ("noise:decoder.z@1:std=1:seed=-1", "seed=-1 is not a fitting number"),
        ("noise:decoder.z@1:std=1:seed=1e99", "seed=1e99 is not a fitting number"),
        ("zero:encoder.z@1:step=0", "step goes with the decoder"),
        ("zero:decoder.z@1:step=0:pos=3", "step goes with the decoder, and without pos"),
        ("zero:decoder.cross_v@1:step=0", "cross_v counts frames"),
        ("zero:decoder.z@1:pos=20", "no position 20: the run has 20"),
        ("zero:decoder.z@1:pos=-1", "pos=-1 counts from the end"),
        ("zero:decoder.z@1:step=-2..-1", "step=-2..-1 counts from the end"),
        ("zero:decoder.z@1:pos=1.2s", "'1.2s' is a time"),
        ("zero:decoder.z@1:pos=5..3", "no window from 5 up to 3"),
        ("zero:encoder.z@1:pos=0.4s", "no position 20: the run has 12"),
        ("knockout:decoder.z@1:keys=0..2", "knocked out at pattern or cross_pattern"),
        ("knockout:decoder.pattern@1", "knockout needs keys=..."),
        ("knockout:decoder.pattern@1:keys=0..2,4..6", "are several windows"),
        ("knockout:decoder.pattern@1:keys=0.1s", "'0.1s' is a time"),
        ("knockout:encoder.pattern@1:keys=9..20", "no window from 9 up to 20"),
        ("add:decoder.mlp_out@1:vector=absent.npy", "vector=absent.npy is no .npy file"),
        ("add:decoder.mlp_out@1:vector={pickle}", "is no .npy file"),
        ("add:decoder.mlp_out@1:vector={square}", "holds float64[4, 4], not one float vector"),
        ("add:decoder.mlp_out@1:vector={whole}", "holds int64[16], not one float vector"),
        ("mix:decoder.mlp_out@1", "mix needs ref=..."),
        ("mix:decoder.mlp_out@1:ref=hum", "The reference 'hum' is no file"),
        ("mix:decoder.z@1:ref=noise + mix:decoder.z@2:ref=silence", "two references"),
        ("mix:decoder.z@1:ref=noise + mix:encoder.z@1:ref=noise:seed=1", "two references"),
        ("mean:decoder.mlp_out@1:ref=absent.flac", "no audio file absent.flac"),
    ],
)
def test_what_cannot_be_read_is_named(model, tmp_path, text, what):
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "square.npy", np.zeros((4, 4)))
    np.save(tmp_path / "whole.npy", np.zeros(16, int))
    files = {name: f"{tmp_path}/{name}.npy" for name in ("pickle", "square", "whole")}
    with pytest.raises(ji.InputError) as error:
        parse_edit(text.format(**files), model)
    message = str(error.value)
    assert what in message
    assert "\n" not in message


def test_a_vector_of_another_size_is_refused(model, states, tmp_path):
    np.save(tmp_path / "v.npy", np.zeros(5))
    edit = parse_edit(f"add:decoder.mlp_out@1:vector={tmp_path}/v.npy", model)
    with pytest.raises(ji.InputError, match=r"shape \(5,\): mlp_out has 16"):
        ji.generate(model, states, edit=edit.decoder_edit(4))


def test_every_kind_has_an_edit(model, tmp_path):
    np.save(tmp_path / "v.npy", np.zeros(16))
    keys = {"factor": "2", "std": "1", "vector": f"{tmp_path}/v.npy", "keys": "0..2"}
    for name, own in KINDS.items():
        ref = __file__ if name == "mean" else "noise"
        wanted = [f"{key}={(keys | {'ref': ref})[key]}" for key in sorted(own - {"seed"})]
        kind = parse_kind(":".join([name, *wanted]))
        site = "pattern" if name == "knockout" else "mlp_out"
        assert isinstance(kind.edit("decoder", site, model.config), ji.Edit)
