"""The tuned lens: its loss against whole logits in numpy, what it learns, and being cut off."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import xarray

import jaxasr_interp as ji
from helpers.files import GLASS, GRASS, PNG, write_table
from helpers.generating import louder
from helpers.real import real_model
from helpers.sweeps import counted
from helpers.tuned import TRAINING, clips
from jaxasr_interp.lens.tuned_data import LensRows, lens_rows
from jaxasr_interp.lens.tuned_training import divergence, fit_translators, mean_divergence

LAYERS, WIDTH, VOCAB = 2, 16, 48


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def layer_norm(model, x):
    """By hand, in the library of `x`."""
    norm, xp = model.decoder.final_norm, jnp if isinstance(x, jax.Array) else np
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / xp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normed * xp.asarray(norm.scale[...]) + xp.asarray(norm.bias[...])


def random_translators(model, scale=0.1):
    generator = np.random.default_rng(1)
    weight = generator.normal(0, scale, (LAYERS, WIDTH, WIDTH))
    return ji.Translators(
        jnp.asarray(weight), jnp.asarray(generator.normal(0, scale, (LAYERS, WIDTH))), model.source
    )


@pytest.fixture
def run(tiny, golden):
    states = ji.encode(tiny, jnp.asarray(golden["mel_a"])).states
    return ji.decode(tiny, golden["tokens_a"], states)


def rows_of(model, run):
    """The rows of a run, the final layer's part by hand."""
    logits = np.asarray(run.logits)
    log_p = log_softmax(logits)
    return LensRows(
        np.asarray(run.acts.resid_post[:-1]).swapaxes(0, 1),
        np.exp(log_p) @ np.asarray(model.decoder.embed[...]),
        -(np.exp(log_p) * log_p).sum(-1),
    )


def test_without_maps_it_is_the_logit_lens(tiny, run):
    tuned = ji.tuned_lens(tiny, run, ji.Translators.zero(tiny), top_k=3)
    plain = ji.logit_lens(tiny, run, top_k=3)
    for ours, theirs in zip(jax.tree.leaves(tuned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_reads_the_translated_residual_stream(tiny, run):
    translators = random_translators(tiny)
    lens = ji.tuned_lens(tiny, run, translators, top_k=2)
    resid = np.asarray(run.acts.resid_post)
    for layer in range(LAYERS + 1):
        moved = resid[layer]
        if layer < LAYERS:
            weight, bias = np.asarray(translators.weight), np.asarray(translators.bias)
            moved = moved + moved @ weight[layer].T + bias[layer]
        log_p = log_softmax(layer_norm(tiny, moved) @ np.asarray(tiny.decoder.embed[...]).T)
        np.testing.assert_allclose(
            lens.top_log_probs[layer], -np.sort(-log_p, -1)[:, :2], rtol=1e-9
        )
        log_f = log_softmax(np.asarray(run.logits))
        kl = (np.exp(log_f) * (log_f - log_p)).sum(-1)
        np.testing.assert_allclose(lens.kl[layer], kl, rtol=1e-8, atol=1e-12)


def test_loss_and_gradient_are_those_of_whole_logits(tiny, run):
    rows, translators = rows_of(tiny, run), random_translators(tiny)
    log_f = jax.nn.log_softmax(run.logits)

    @jax.jit
    def whole(pair):
        weight, bias = pair
        resid = run.acts.resid_post[:-1]
        moved = resid + jnp.stack([r @ w.T for r, w in zip(resid, weight, strict=True)])
        hidden = layer_norm(tiny, moved + bias[:, None])
        log_p = jax.nn.log_softmax(hidden @ tiny.decoder.embed[...].T)
        return (jnp.exp(log_f)[None] * (log_f[None] - log_p)).sum(-1)

    with jax.numpy_rank_promotion("allow"):
        pair = (translators.weight, translators.bias)
        expected = whole(pair)
        slopes = jax.grad(lambda pair: whole(pair).mean(1).sum())(pair)
    found = divergence(tiny.decoder, translators, rows)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    ours = jax.grad(lambda t: divergence(tiny.decoder, t, rows).mean(1).sum())(translators)
    np.testing.assert_allclose(ours.weight, slopes[0], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(ours.bias, slopes[1], rtol=1e-7, atol=1e-12)
    mean = mean_divergence(tiny, translators, rows, batch_size=3)
    np.testing.assert_allclose(mean, np.asarray(expected).mean(1), rtol=1e-9)


def test_rows_are_those_of_each_clip_alone(tiny):
    model, (first, second) = louder(tiny), clips(2)
    own = ji.Clip("own", second.audio, None, "en")
    silent = ji.Clip("silent", first.audio, "", "en")
    seen = []
    rows = lens_rows(model, [first, own, silent], on_progress=counted(seen))
    assert seen == [1, 2, 3]
    prompt = model.tokenizer.prompt("en")
    parts = []
    for clip in (first, own):
        states = ji.encode(model, ji.log_mel_spectrogram(clip.audio, 8, 24)).states
        heard = ji.generate(model, states, prompt=prompt) if clip.text is None else None
        written = heard.tokens if heard else model.tokenizer.encode(" " + clip.text)
        tokens = [*prompt, *written][: model.config.max_tokens]
        parts.append(rows_of(model, ji.decode(model, tokens, states)))
    parts.append(parts[0].take(np.arange(len(prompt))))
    for name, value in vars(rows).items():
        expected = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-10)


def test_a_known_distortion_is_undone(tiny):
    """Layers that are an affine map of the final residual stream have a map that leaves no KL."""
    generator = np.random.default_rng(0)
    final = generator.normal(0, 1, (600, WIDTH))
    turn = np.eye(WIDTH) + generator.normal(0, 0.15, (LAYERS, WIDTH, WIDTH))
    shift = generator.normal(0, 0.5, (LAYERS, WIDTH))
    layers = np.einsum("ne,lde->nld", final, turn) + shift
    logits = layer_norm(tiny, final) @ np.asarray(tiny.decoder.embed[...]).T * 1.0
    log_p = log_softmax(logits)
    mean = np.exp(log_p) @ np.asarray(tiny.decoder.embed[...])
    rows = LensRows(layers, mean, -(np.exp(log_p) * log_p).sum(-1))
    kept, unseen = rows.take(np.arange(500)), rows.take(np.arange(500, 600))
    training = ji.LensTraining(steps=600, batch_size=100, learning_rate=1e-2, weight_decay=0.0)
    translators, loss = fit_translators(tiny, kept, training)
    before = mean_divergence(tiny, ji.Translators.zero(tiny), unseen, 100)
    after = mean_divergence(tiny, translators, unseen, 100)
    assert (after < before / 100).all(), (before, after)
    assert loss.shape == (600, LAYERS)
    np.testing.assert_allclose(loss[0], before, rtol=0.5)


DYING = """
import os, signal, sys
from helpers.golden import GOLDEN
from helpers.tuned import TRAINING, clips
import jaxasr_interp as ji
from jaxasr_interp.speech.tokenizer import Tokenizer

def die(done, of, what):
    if (what, done) == ("steps", 17):
        os.kill(os.getpid(), signal.SIGKILL)

tokenizer, folder = sys.argv[1:]
model = ji.load_model(GOLDEN / "tiny_random")
model.tokenizer = Tokenizer(tokenizer)
ji.train_tuned_lens(model, clips(8), folder, ji.LensTraining(**TRAINING), on_progress=die)
"""


def test_training_that_is_killed_goes_on_as_if_it_had_not_been(tiny32, tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    command = [sys.executable, "-c", DYING, tiny32.tokenizer.path, str(cut)]
    dead = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    with pytest.raises(ji.InputError, match="has done 10 of 30 steps"):
        ji.load_tuned_lens(cut)
    found = []
    for folder, first in ((cut, 11), (whole, 1)):
        steps = []
        found.append(
            ji.train_tuned_lens(
                tiny32,
                clips(8),
                folder,
                ji.LensTraining(**TRAINING),
                on_progress=lambda done, of, what, steps=steps: steps.append((what, done)),
            )
        )
        assert steps[8] == ("steps", first)
    again, uninterrupted = found
    assert np.abs(again.translators.weight).max() > 0
    np.testing.assert_array_equal(again.translators.weight, uninterrupted.translators.weight)
    np.testing.assert_array_equal(again.translators.bias, uninterrupted.translators.bias)
    np.testing.assert_array_equal(again.loss, uninterrupted.loss)
    loaded = ji.load_tuned_lens(cut)
    np.testing.assert_array_equal(loaded.weight, again.translators.weight)
    np.testing.assert_array_equal(loaded.bias, again.translators.bias)


@pytest.fixture
def trained(tiny, tmp_path):
    training = ji.LensTraining(**TRAINING | {"learning_rate": 1e-2})
    return ji.train_tuned_lens(louder(tiny), clips(8), tmp_path / "lens", training)


def test_training_brings_held_out_clips_nearer_to_the_final_layer(tiny, trained, tmp_path):
    assert (trained.tuned_kl < trained.logit_kl).all()
    lengths = [len(tiny.tokenizer.prompt("en")) + 1 + len(clip.text) for clip in clips(8)]
    assert sum(trained.rows) == sum(lengths)
    assert trained.rows[1] in {a + b for i, a in enumerate(lengths) for b in lengths[:i]}
    dataset = trained.to_dataset()
    assert dict(dataset.sizes) == {"step": 30, "layer": LAYERS, "lens": 2}
    np.testing.assert_array_equal(dataset.kl.sel(lens="tuned"), trained.tuned_kl)
    again, said = clips(8), []
    training = ji.LensTraining(**TRAINING | {"learning_rate": 1e-2, "save_every": 3})
    same = ji.train_tuned_lens(
        tiny, again, tmp_path / "lens", training, on_progress=lambda *done: said.append(done)
    )
    assert said == [(i + 1, 8, "clips") for i in range(8)]
    np.testing.assert_array_equal(same.translators.weight, trained.translators.weight)
    np.testing.assert_array_equal(same.tuned_kl, trained.tuned_kl)
    for other in ({"steps": 31}, {"seed": 1}, {"weight_decay": 0.5}):
        with pytest.raises(ji.InputError, match=r"another training \(training differs\)"):
            ji.train_tuned_lens(tiny, again, tmp_path / "lens", ji.LensTraining(**TRAINING | other))
    with pytest.raises(ji.InputError, match=r"another training \(clips differs\)"):
        ji.train_tuned_lens(tiny, again[1:], tmp_path / "lens", training)


def test_a_table_trains_what_its_clips_train(tiny32, tmp_path):
    rows = []
    for clip in clips(3):
        soundfile.write(tmp_path / f"{clip.name}.wav", clip.audio, 16000, subtype="FLOAT")
        rows.append({"path": f"{clip.name}.wav", "text": clip.text, "lang": "en"})
    table = write_table(tmp_path / "clips.tsv", rows)
    training = ji.LensTraining(steps=1, batch_size=16)
    of_table = ji.train_tuned_lens(tiny32, table, training=training)
    of_clips = ji.train_tuned_lens(tiny32, clips(3), training=training)
    np.testing.assert_array_equal(of_table.tuned_kl, of_clips.tuned_kl)


def test_a_lens_of_another_model_is_refused(tiny, run, trained, tmp_path):
    translators = ji.load_tuned_lens(tmp_path / "lens")
    np.testing.assert_array_equal(translators.weight, trained.translators.weight)
    ji.tuned_lens(tiny, run, translators)
    hashed = tiny.source.rpartition("sha256:")[2]
    assert len(hashed) == 64
    tiny.source = f"moved sha256:{hashed}"
    ji.tuned_lens(tiny, run, translators)
    tiny.source = f"moved sha256:{hashed[::-1]}"
    with pytest.raises(ji.InputError, match="The tuned lens is of the model"):
        ji.tuned_lens(tiny, run, translators)


def test_bad_input_is_named(tiny, tmp_path, trained):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ji.InputError, match="holds no tuned lens"):
            ji.load_tuned_lens(folder)
    (about,) = (tmp_path / "lens" / "checkpoints" / "30").glob("about/metadata")
    content = json.loads(about.read_text())
    for damage in ("{", json.dumps(content | {"d_model": 8}), json.dumps({"steps": 30})):
        about.write_text(damage)
        with pytest.raises(ji.InputError, match="cannot be read"):
            ji.load_tuned_lens(tmp_path / "lens")
    with pytest.raises(ji.InputError, match="There are 1 clips"):
        ji.train_tuned_lens(tiny, clips(1), tmp_path / "one")
    for name, value in (("steps", 0), ("held_out", 1.0), ("learning_rate", -1.0)):
        with pytest.raises(ji.InputError, match=f"{name} is {value}"):
            ji.LensTraining(**{name: value})


@pytest.mark.real
def test_the_command_line_trains_one_and_reads_with_it(tmp_path, invoke):
    model, text = real_model("tiny.en"), "My brother went outside to cut the grass."
    table = tmp_path / "clips.tsv"
    table.write_text(f"path\ttext\tlang\n{GRASS}\t{text}\ten\n{GLASS}\t{text}\ten\n")
    out = tmp_path / "tuned"
    command = ["tuned-lens", table, "--out", out, "--steps", "3", "--batch-size", "8"]
    code, printed, errors = invoke(*command)
    assert code == 0, errors
    assert "held-out positions" in printed
    stored = xarray.open_zarr(out / "tuned_lens.zarr", consolidated=False)
    assert dict(stored.sizes) == {"step": 3, "layer": 3, "lens": 2}
    assert "sha256:" in stored.attrs["model"]
    assert stored.attrs["steps"] == 3
    assert (out / "tuned_lens.png").read_bytes().startswith(PNG)
    assert invoke(*command)[0] == 2
    options = ["--tuned", out, "--text", text, "--language", "en"]
    code, _, errors = invoke("lens", GRASS, "--out", tmp_path / "lens", *options)
    assert code == 0, errors
    read = xarray.open_zarr(tmp_path / "lens" / "lens.zarr", consolidated=False)
    states = ji.encode(model, ji.log_mel_spectrogram(ji.load_audio(GRASS)), sites=()).states
    tokens = [*model.tokenizer.prompt("en"), *model.tokenizer.encode(f" {text}")]
    run = ji.decode(model, tokens, states, sites=("resid_post", "cross_pattern"))
    tuned = ji.tuned_lens(model, run, ji.load_tuned_lens(out))
    np.testing.assert_allclose(read.kl, tuned.kl, atol=1e-5)
    assert np.abs(np.asarray(tuned.kl - ji.logit_lens(model, run).kl))[:-1].max() > 1e-3
    for options, message in (
        (["--tuned", tmp_path], "holds no tuned lens"),
        (["--tuned", out, "--site", "mlp_out"], "reads resid_post, not mlp_out"),
    ):
        code, _, errors = invoke("lens", GRASS, "--out", tmp_path / "other", *options)
        assert code == 2
        assert message in errors
