"""Edits that take from other runs, by hand; and edited transcripts of real speech."""

from importlib import resources

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jaxasr_interp as ji
from helpers.by_hand import (
    LONGER,
    SAMPLES,
    brief_clips,
    briefly,
    by_hand,
    expect_decoder,
    expect_written,
    written_by_hand,
)
from helpers.decoding import PROMPT
from helpers.generating import CONTEXT, louder
from helpers.real import real_model
from jaxasr_interp.generation import utterances
from jaxasr_interp.generation.options import Choice
from jaxasr_interp.interventions.grammar import parse_edit
from jaxasr_interp.interventions.intervention import encode_under


@pytest.fixture
def model(tiny):
    return louder(tiny)


@pytest.fixture
def hears():
    return briefly


@pytest.fixture
def clips():
    return brief_clips()


@pytest.fixture
def states(model, golden):
    return ji.encode(model, jnp.asarray(golden["mel_a"])).states


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
    with pytest.raises(ji.InputError, match=r"long.wav is longer than 0.24 s \(31.0 s\)"):
        encode_under(model, clips, edit)


def test_a_reference_must_be_named(model, clips):
    edit = ji.Intervention("mine", decoder=ji.At(ji.Interchange(), 1, site="mlp_out"))
    with pytest.raises(ji.InputError, match="'mine' takes values from a reference"):
        encode_under(model, clips, edit)


@pytest.fixture
def heard_in_files(model, hears, clips, tmp_path, monkeypatch):
    """Two files, and the unedited runs over what is heard in them."""
    monkeypatch.setattr(
        utterances,
        "generate_batch",
        lambda model, states, prompts, choice: ji.generate_batch(
            model, states, prompts=prompts, choice=Choice(max_new_tokens=6)
        ),
    )
    runs = []
    for name, clip in zip("ab", clips, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", clip, 16_000, subtype="FLOAT")
        encoded = ji.encode(model, hears(clip, 8), sites="all")
        language = next(iter(ji.detect_language(model, encoded.states)))
        prompt = model.tokenizer.prompt(language)
        written = ji.generate(
            model, encoded.states, prompt=prompt, choice=ji.Choice(max_new_tokens=6)
        ).tokens
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
    (parsed,) = ji.resolve_means(
        model, [parse_edit(f"mean:encoder.z@1.2:alpha=0.5:ref={files}", model)]
    )
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
            model,
            states,
            prompt=prompt,
            edit=backwards(prompt),
            choice=ji.Choice(max_new_tokens=40),
        )
        mine = [one for one in found.segments if (one.start < 30) == (start == 0)]
        assert result.tokens == sum((one.tokens for one in mine), ())
        assert mine[0].mean_log_prob == pytest.approx(result.mean_log_prob, abs=1e-5)
        assert "brother went" not in "".join(one.text for one in mine)
        written += result.tokens
    assert len(written) > 25
