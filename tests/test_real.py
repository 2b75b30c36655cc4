"""Real weights against torch: hidden states, logits, languages, suppressed decoding, long audio."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

import jaxasr_interp as ji
from helpers.golden import GOLDEN, worst
from helpers.real import TINY_FIRST, real_model
from jaxasr_interp.generation.language import detect_language_batch
from jaxasr_interp.generation.long_form import transcribe_windows
from jaxasr_interp.generation.transcribe import encode_batch
from jaxasr_interp.lens.direct import DIRECT_SITES

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("optimised")]

TIE = 1e-4
"""Rounding of a logit in float32, ours and torch's together."""


def states_of(model, data, clips):
    mels = [
        ji.log_mel_spectrogram(ji.load_audio(data / clip), model.config.n_mels) for clip in clips
    ]
    return encode_batch(model.encoder, jnp.stack(mels))


def test_hidden_states_and_logits_equal_torch(real, data):
    name, model = real
    with np.load(GOLDEN / f"{name}_activations.npz") as golden:
        audio = ji.load_audio(data / "read_en" / "speeches_jfk.flac")
        mel = WhisperFeatureExtractor()(audio, sampling_rate=16_000)["input_features"][0]
        enc = ji.encode(model, jnp.asarray(mel))
        dec = ji.decode(model, golden["tokens"], enc.states)
        frames = golden["frame_index"]
        for stack, acts, rows in (
            ("encoder", enc.acts, frames),
            ("decoder", dec.acts, slice(None)),
        ):
            hidden = np.concatenate([acts.resid_pre[:1], acts.resid_post])[:, rows]
            for layer, (ours, theirs) in enumerate(
                zip(hidden, golden[f"{stack}/hidden"], strict=True)
            ):
                assert worst(ours, theirs) < 1e-4, (stack, layer)
            assert worst(acts.ln_final[rows], golden[f"{stack}/ln_final"]) < 1e-4
        logits = np.asarray(dec.logits)
        largest = golden["logits_absmax"]
        columns = np.abs(logits[:, golden["column_index"]] - golden["logits_columns"]).max()
        last = np.abs(logits[-1] - golden["logits_last"]).max()
        print(f"{name}: logits differ by {max(columns, last) / largest:.1e} of {largest:.1f}")
        assert max(columns, last) < 2e-4 * largest


def some(clips, every):
    """Every so many of a golden file's clips."""
    return dict(list(clips.items())[::every])


THIRD_OR_ALL = pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.corpus)])


@THIRD_OR_ALL
def test_suppressed_greedy_decoding_equals_torch(real, data, every):
    name, model = real
    golden = json.loads((GOLDEN / f"suppressed_{name}.json").read_text())
    assert sorted(model.generation.suppress) == sorted(golden["suppress"])
    assert sorted(model.generation.suppress_first) == sorted(golden["suppress_first"])
    clips = some(golden["clips"], every)
    prompts = [golden["prompt"]] * len(clips)
    results = ji.generate_batch(model, states_of(model, data, clips), prompts=prompts)
    for (clip, expected), result in zip(clips.items(), results, strict=True):
        written = [*result.tokens, golden["end_of_text"]] if result.finished else result.tokens
        assert list(written) == expected["tokens"], clip
        assert abs(result.no_speech_prob - expected["no_speech_prob"]) < 1e-4, clip
        # torch sums 51865 probabilities in float32: its log-softmax is off by 3e-5.
        assert abs(result.mean_log_prob - expected["avg_logprob"]) < 1e-4, clip


@THIRD_OR_ALL
def test_languages_equal_torch(data, every):
    model = real_model("base")
    golden = json.loads((GOLDEN / "language_base.json").read_text())
    clips = some(golden["clips"], every)
    ids = model.tokenizer.languages
    ranked = detect_language_batch(model, states_of(model, data, clips))
    for (clip, expected), probabilities in zip(clips.items(), ranked, strict=True):
        first = next(iter(probabilities))
        assert ids[first] == expected["language"], clip
        assert first == ("en" if clip.startswith("read_en") else clip.split("-")[1])
        assert abs(sum(probabilities.values()) - 1) < 1e-5
        by_id = {ids[code]: p for code, p in probabilities.items()}
        for token, probability in expected["top"]:
            assert abs(by_id[token] - probability) < 1e-4


def test_long_audio_equals_openai_whisper(data):
    model = real_model("tiny.en")
    golden = json.loads((GOLDEN / "long_tiny.en.json").read_text())["clips"]
    clip = "hallucination/apollo11.flac"
    expect_segments(model, data, clip, golden[clip]["independent"]["segments"], conditioned=False)


@pytest.mark.corpus
@pytest.mark.parametrize("conditioned", [True, False], ids=["conditioned", "independent"])
def test_all_long_audio_equals_openai_whisper(real, data, conditioned):
    name, model = real
    golden = json.loads((GOLDEN / f"long_{name}.json").read_text())["clips"]
    for clip, runs in golden.items():
        expected = runs["conditioned" if conditioned else "independent"]["segments"]
        expect_segments(model, data, clip, expected, conditioned)


def expect_segments(model, data, clip, expected, conditioned):
    audio = ji.load_audio(data / clip)
    segments = transcribe_windows(model, audio, condition_on_previous_text=conditioned)
    kept = [segment for segment in expected if segment["tokens"]]
    for ours, theirs in zip(segments, kept, strict=True):
        assert list(ours.tokens) == theirs["tokens"], clip
        assert abs(ours.start - theirs["start"]) < 1e-6
        assert abs(ours.end - theirs["end"]) < 1e-6
        assert ours.text == theirs["text"]


@pytest.mark.parametrize("name", TINY_FIRST)
def test_patching_real_speech_equals_the_loop(name):
    model = real_model(name)
    from importlib import resources

    from jaxasr_interp.patching.contrast import find_contrast

    folder = resources.files("jaxasr_interp") / "data"
    clean, corrupted = (ji.load_audio(folder / f"{word}.flac") for word in ("grass", "glass"))
    contrast = find_contrast(model, clean, corrupted)
    assert contrast.clean_text.endswith("grass.")
    assert contrast.corrupted_text.endswith("glass.")
    plan = ji.plan_sweep(model, tokens=contrast.tokens, positions=[0, 3, -2, -1])
    wanted = [
        ji.metrics.logit_diff(contrast.target, contrast.other),
        ji.metrics.log_prob(contrast.target),
        ji.metrics.kl(),
    ]
    results = [
        ji.activation_patching(
            model,
            plan,
            clean=contrast.clean,
            corrupted=contrast.corrupted,
            metric=wanted,
            options=ji.SweepOptions(method=method),
        )
        for method in ("minimal", "reference")
    ]
    scale = np.abs(results[1].clean - results[1].corrupted)[:, None, None]
    difference = np.abs(results[0].patched - results[1].patched) / scale
    print(f"{name}: minimal and reference differ by {difference.max():.1e} of the effect")
    assert difference.max() < 1e-5
    assert results[0].clean[0] > 0 > results[0].corrupted[0]


def test_the_lens_ends_in_the_model_and_contributions_add_up_to_its_logits(real, data):
    name, model = real
    with np.load(GOLDEN / f"{name}_activations.npz") as golden:
        tokens = golden["tokens"]
    states = states_of(model, data, ["read_en/speeches_jfk.flac"])[0]
    run = ji.decode(model, tokens, states, sites=DIRECT_SITES)
    targets = np.append(tokens[1:], model.tokenizer.end_of_text)
    lens = ji.logit_lens(model, run, targets=targets)
    log_probs = np.asarray(run.logits, np.float64)
    log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
    order = np.argsort(-log_probs, axis=1)
    np.testing.assert_array_equal(lens.top_tokens[-1, :, 0], order[:, 0])
    own = np.take_along_axis(log_probs, np.asarray(lens.targets)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(lens.target_log_prob[-1], own, atol=2e-5)
    np.testing.assert_allclose(lens.kl[-1], 0, atol=1e-5)
    entropy = -(np.exp(log_probs) * log_probs).sum(1)
    np.testing.assert_allclose(lens.entropy[-1], entropy, atol=1e-4)
    parts = ji.direct_logit_attribution(model, run, targets).by_component()
    logits = np.asarray(run.logits)[np.arange(len(tokens)), targets]
    np.testing.assert_allclose(sum(parts.values()), logits, rtol=0, atol=1e-4)


def test_the_top_tokens_of_every_layer_are_torchs(real, data):
    name, model = real
    with np.load(GOLDEN / f"logit_lens_{name}.npz") as arrays:
        golden = dict(arrays)
    clips = golden["clips"].tolist()
    longest = max(len(golden[f"{clip}/tokens"]) for clip in clips)
    ties, worst_log_prob = 0, 0.0
    for clip, states in zip(clips, states_of(model, data, clips), strict=True):
        tokens, top_tokens, top_logits, log_total = (
            golden[f"{clip}/{key}"] for key in ("tokens", "top_tokens", "top_logits", "log_total")
        )
        # One program for all clips: what comes later changes nothing.
        padded = np.pad(tokens, (0, longest - len(tokens)))
        lens = ji.logit_lens(model, ji.decode(model, padded, states), top_k=3)
        ours, log_probs = (x[:, : len(tokens)] for x in (lens.top_tokens, lens.top_log_probs))
        difference = np.abs(log_probs - (top_logits - log_total[..., None])[..., :3])
        worst_log_prob = max(worst_log_prob, difference.max())
        # A token may change places with one whose logit torch puts within rounding of its own.
        tied = top_logits[..., :-1] - top_logits[..., 1:] < TIE
        tied[..., 1:] |= tied[..., :-1]
        assert (ours == top_tokens[..., :3])[~tied].all(), clip
        ties += int(tied.sum())
    print(f"{name}: log-probabilities differ by {worst_log_prob:.1e}, {ties} of {ours.size} tied")
    assert worst_log_prob < TIE
