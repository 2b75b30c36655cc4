"""Edits as text: each kind against the same edit by hand, a factor and a shift of every cell."""

import functools
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import real_model

import jaxasr_interp as ji
from jaxasr_interp import contrast, interventions, text_sweep, transcription
from jaxasr_interp.decoding import Choice
from jaxasr_interp.edit_grammar import parse_edit
from jaxasr_interp.interventions import encode_under
from jaxasr_interp.pytree import pytree_dataclass

PROMPT = [31, 32, 35, 39]
LONGER = [37, 5, 9, 3, *PROMPT]
CONTEXT, SAMPLES = 20, 24 * 160
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


def louder(model):
    """Louder positions: otherwise the tiny model writes one token over and over."""
    model.decoder.pos_embed[...] = model.decoder.pos_embed[...] * 10
    return model


def hear_briefly(monkeypatch):
    """Let the tiny model hear the first 24 of a spectrogram's 3000 frames."""

    def log_mel(audio, n_mels):
        return ji.log_mel_spectrogram(audio, n_mels, 24)

    for module in (contrast, interventions, text_sweep, transcription):
        monkeypatch.setattr(module, "log_mel_spectrogram", log_mel)
    return log_mel


def brief_clips():
    """Two clips that the tiny model hears to the end."""
    random, time = np.random.default_rng(5), np.arange(SAMPLES) / 16_000
    tone = np.sin(2 * np.pi * (300 + 4000 * time) * time)
    noise = random.normal(size=SAMPLES) * np.linspace(0, 1, SAMPLES)
    return [(0.3 * clip).astype(np.float32) for clip in (tone, noise)]


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def hears(monkeypatch):
    return hear_briefly(monkeypatch)


@pytest.fixture
def clips():
    return brief_clips()


@pytest.fixture
def states(model, golden):
    return ji.encode(model, jnp.asarray(golden["mel_a"])).states


TOKENS = [*PROMPT, *np.random.default_rng(0).integers(0, 30, CONTEXT - len(PROMPT)).tolist()]


def expect_decoder(model, states, text, changes, prompt=4):
    """The run under the text is the run under the changes, and not the plain one."""
    plain = ji.decode(model, TOKENS, states, sites="all")
    expected = ji.decode(model, TOKENS, states, edit=by_hand(plain.acts, changes)).logits
    parsed = parse_edit(text, model)
    found = ji.decode(model, TOKENS, states, edit=parsed.decoder_edit(prompt)).logits
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert np.abs(np.asarray(found - plain.logits)).max() > 1e-4
    assert parsed.encoder is ji.identity


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
        suppress=False,
        max_new_tokens=len(expected[0]),
    )
    tokens, log_probs = expected
    n = len(result.log_probs)
    assert [*result.tokens, *([30] if result.finished else [])] == tokens[:n]
    np.testing.assert_allclose(result.log_probs, log_probs[:n], rtol=1e-9, atol=1e-10)
    assert n > 3


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


def rms(samples):
    return np.sqrt(np.mean(np.square(samples, dtype=np.float64)))


def reference_of(name, clip, other, tmp_path):
    """What `ref=` says, and the samples that it stands for."""
    if name == "file":
        soundfile.write(tmp_path / "other.wav", other, 16_000, subtype="FLOAT")
        return f"{tmp_path}/other.wav", other
    if name == "silence":
        return "silence", np.zeros_like(clip)
    noise = np.random.default_rng(3).standard_normal(len(clip))
    return "noise:seed=3", (noise * (rms(clip) / rms(noise))).astype(np.float32)


@pytest.mark.parametrize("name", ["noise", "silence", "file"])
def test_a_mix_of_the_encoder(model, hears, clips, tmp_path, name):
    clip, other = clips
    ref, heard = reference_of(name, clip, other, tmp_path)
    edit = parse_edit(f"mix:encoder.resid_post@0:alpha=0.5:pos=2..9:ref={ref}", model)
    (found,), references = encode_under(model, [clip], edit)
    assert references is None
    acts = ji.encode(model, hears(heard, 8), sites="all").acts
    source = np.asarray(acts.resid_post[0, 2:9])
    edited = by_hand(acts, [("resid_post", np.s_[0, 2:9], 0.5, 0.5 * source)])
    expected = ji.encode(model, hears(clip, 8), edit=edited).states
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert np.abs(np.asarray(found - ji.encode(model, hears(clip, 8)).states)).max() > 1e-4


@pytest.mark.parametrize("name", ["noise", "silence", "file"])
def test_a_mix_of_the_decoder_and_the_encoder(model, hears, clips, tmp_path, name):
    """Both take from the unedited run that hears the reference and writes the same tokens."""
    clip, other = clips
    ref, heard = reference_of(name, clip, other, tmp_path)
    edit = parse_edit(
        f"mix:decoder.cross_attn_out@*:alpha=0.7:step=0..5:ref={ref} "
        f"+ mix:encoder.resid_post@0:ref={ref}",
        model,
    )
    (states,), (reference,) = encode_under(model, [clip], edit)
    beside = ji.encode(model, hears(heard, 8), sites="all")
    np.testing.assert_allclose(reference, beside.states, rtol=1e-9, atol=1e-10)
    edited = by_hand(beside.acts, [("resid_post", 0, 0, np.asarray(beside.acts.resid_post[0]))])
    expected_states = ji.encode(model, hears(clip, 8), edit=edited).states
    np.testing.assert_allclose(states, expected_states, rtol=1e-9, atol=1e-10)

    def edit_of(tokens):
        acts = ji.decode(model, tokens, beside.states, sites="all").acts
        source = np.asarray(acts.cross_attn_out[:, 3:8])
        return by_hand(acts, [("cross_attn_out", np.s_[:, 3:8], 0.3, 0.7 * source)])

    expected = written_by_hand(model, states, PROMPT, edit_of)
    expect_written(model, states, PROMPT, edit.decoder_edit(4), expected, reference)


def test_a_silent_clip_is_its_own_reference(model, hears):
    silence = np.zeros(SAMPLES, np.float32)
    for name in ("noise", "silence"):
        edit = parse_edit(f"mix:encoder.resid_post@0:ref={name}", model)
        (states,), _ = encode_under(model, [silence], edit)
        np.testing.assert_allclose(states, ji.encode(model, hears(silence, 8)).states, rtol=1e-9)


def test_a_long_reference_is_refused(model, hears, clips, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.full(31 * 16_000, 0.1), 16_000)
    edit = parse_edit(f"mix:encoder.resid_post@0:ref={tmp_path}/long.wav", model)
    with pytest.raises(ji.InputError, match=r"long.wav is longer than 30 s"):
        encode_under(model, clips, edit)


def test_a_reference_must_be_named(model, clips):
    edit = ji.Intervention("mine", decoder=ji.At(ji.Interchange(), 1, site="mlp_out"))
    with pytest.raises(ji.InputError, match="'mine' takes values from a reference"):
        encode_under(model, clips, edit)


@pytest.fixture
def heard_in_files(model, hears, clips, tmp_path, monkeypatch):
    """Two files, and the unedited runs over what is heard in them."""
    short = functools.partial(ji.transcribe_batch, choice=Choice(max_new_tokens=6))
    monkeypatch.setattr(contrast, "transcribe_batch", short)
    runs = []
    for name, clip in zip("ab", clips, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", clip, 16_000, subtype="FLOAT")
        encoded = ji.encode(model, hears(clip, 8), sites="all")
        language = next(iter(ji.detect_language(model, encoded.states)))
        prompt = model.tokenizer.prompt(language)
        written = ji.generate(model, encoded.states, prompt=prompt, max_new_tokens=6).tokens
        decoded = ji.decode(model, [*prompt, *written], encoded.states, sites="all")
        runs.append((encoded.acts, decoded.acts))
    return f"{tmp_path}/a.wav,{tmp_path}/b.wav", runs


@pytest.mark.parametrize("prompt", [PROMPT, LONGER])
def test_the_mean_of_files_is_put_where_it_was_taken(model, states, heard_in_files, prompt):
    """Position by position in the prompt, one mean behind it; step 0 is the prompt's last token."""
    files, runs = heard_in_files
    values = [np.asarray(decoder.mlp_out[1]) for _, decoder in runs]
    text = np.concatenate([value[4:] for value in values]).mean(0)
    by_pos = np.stack([*np.mean([value[:4] for value in values], 0), *[text] * (CONTEXT - 4)])
    changes = [("mlp_out", np.s_[1, 2:9], 0, by_pos[2:9])]
    expect_decoder(model, states, f"mean:decoder.mlp_out@1:ref={files}:pos=2..9", changes)
    last = len(prompt) - 1
    steps = np.stack([by_pos[3], *[text] * 4])
    changes = [("mlp_out", np.s_[1, last : last + 5], 0, steps)]
    text = f"mean:decoder.mlp_out@1:step=0..5:ref={files}"
    expect_decoder(model, states, text, changes, len(prompt))


def test_the_mean_of_frames_is_over_all_frames(model, golden, heard_in_files):
    files, runs = heard_in_files
    mel = jnp.asarray(golden["mel_a"])
    mean = np.concatenate([np.asarray(encoder.z[1]) for encoder, _ in runs]).mean(0)
    changes = [("z", np.s_[1, :, 2], 0.5, 0.5 * mean[2])]
    expected = ji.encode(model, mel, edit=by_hand(runs[0][0], changes)).states
    parsed = parse_edit(f"mean:encoder.z@1.2:alpha=0.5:ref={files}", model)
    found = ji.encode(model, mel, edit=parsed.encoder).states
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    mean = np.concatenate([np.asarray(decoder.cross_v[1]) for _, decoder in runs]).mean(0)
    states = ji.encode(model, mel).states
    expect_decoder(
        model,
        states,
        f"mean:decoder.cross_v@1.0:ref={files}",
        [("cross_v", np.s_[1, :, 0], 0, mean[0])],
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the kind '' is none of zero, scale"),
        ("freeze:decoder.z@1", "the kind 'freeze' is none"),
        ("zero:decoder.z@1 + ", "the kind '' is none"),
        ("zero", "after the kind comes STACK.SITE"),
        ("zero:decoder", "after the kind comes STACK.SITE"),
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
        ("zero:decoder.z@1.0-1,0", "heads 0-1,0 name one of them twice"),
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


# Real speech.

DATA = resources.files("jaxasr_interp") / "data"
BACKWARDS = "scale:decoder.mlp_out@3:factor=-1:step=2..5"


def backwards(prompt):
    start = len(prompt) + 1
    return ji.At(ji.Scale(-1.0), 3, start, start + 3, site="mlp_out")


@pytest.mark.real
def test_transcripts_of_short_clips_are_those_under_the_edit():
    model = real_model("tiny.en")
    audio = ji.load_audio(DATA / "grass.flac")
    states = ji.encode(model, ji.log_mel_spectrogram(audio)).states
    expected = ji.generate(model, states, edit=backwards(model.tokenizer.prompt()))
    edited = ji.transcribe(model, audio, edit=BACKWARDS)
    assert edited.tokens == expected.tokens
    # Without the edit: My brother went outside to cut the grass.
    assert "brother went" not in edited.text
    assert edited.mean_log_prob == pytest.approx(expected.mean_log_prob, abs=1e-5)


@pytest.mark.real
def test_long_audio_is_edited_in_every_window():
    """Two windows by hand; the second has the text of the first before its prompt."""
    model, random = real_model("tiny.en"), np.random.default_rng(0)
    grass, glass = (ji.load_audio(DATA / f"{word}.flac") for word in ("grass", "glass"))
    pause, noise = np.zeros(32_000), 0.003 * random.standard_normal(26 * 16_000)
    audio = np.concatenate([grass, pause, glass, noise, grass]).astype(np.float32)
    choice = Choice(max_new_tokens=40)
    found = ji.transcribe(model, audio, choice=choice, edit=BACKWARDS)
    mel = ji.log_mel_spectrogram(audio, 80, len(audio) // 160 + 3000)
    written = []
    for start, end in ((0, 3000), (3000, len(audio) // 160)):
        heard = jnp.pad(mel[:, start:end], ((0, 0), (0, 3000 - (end - start))))
        prompt = model.tokenizer.prompt(timestamps=True, previous=written)
        states = ji.encode(model, heard).states
        result = ji.generate(
            model, states, prompt=prompt, edit=backwards(prompt), max_new_tokens=40
        )
        mine = [one for one in found.segments if (one.start < 30) == (start == 0)]
        assert result.tokens == sum((one.tokens for one in mine), ())
        assert mine[0].mean_log_prob == pytest.approx(result.mean_log_prob, abs=1e-5)
        assert "brother went" not in "".join(one.text for one in mine)
        written += result.tokens
    assert len(written) > 25
