"""Data-set sweeps: as many single sweeps, whatever their lengths; interrupted, shared, refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.datasets import TEXTS, make_folder
from helpers.files import GLASS, GRASS, contents, write_table
from helpers.real import real_model
from jaxasr_interp.patching import dataset_work
from jaxasr_interp.patching.contrast import ask_word
from jaxasr_interp.patching.dataset_work import DatasetWork
from jaxasr_interp.patching.engine.decoder import propagate_rows
from jaxasr_interp.runtime.buckets import bucket
from jaxasr_interp.speech.noise import noise_like

SITES = ["decoder.resid_pre", "decoder.cross_attn_out", "decoder.z@*.each"]
ONE = ji.RunOptions(devices=1)
SOME = (0, 2)
"""Clips whose questions have two lengths, one of them no bucket's."""
TEXT = ji.DatasetOptions(text="text", metrics=("log_prob", "logit_diff", "kl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    return make_folder(tmp_path_factory.mktemp("dataset"), tiny_tokenizer)


@pytest.fixture
def mels(tiny, folder):
    """The spectrogram of a file."""

    def mel(name):
        audio = ji.load_audio(folder / name)
        return ji.log_mel_spectrogram(audio, tiny.config.n_mels, tiny.config.mel_frames)

    return mel


def until_last_word(tokenizer, text):
    """The prompt and the text before its last word, and that word's first token."""
    tokens = tokenizer.encode(f" {text}")
    start = max(p for p, token in enumerate(tokens) if tokenizer.label(token).startswith(" "))
    return [*tokenizer.prompt("en"), *tokens[:start]], tokens[start]


def single(model, mel, other, tokens, target, **plan):
    """The sweep of one question."""
    clean, corrupted = (ji.Utterance(jnp.asarray(m), jnp.asarray(tokens)) for m in (mel, other))
    logits = np.asarray(ji.decode(model, tokens, ji.encode(model, other).states).logits)[-1]
    best = next(int(i) for i in np.argsort(-logits)[:2] if i != target)
    metrics = [
        ji.metrics.log_prob(target),
        ji.metrics.logit_diff(target, best),
        ji.metrics.kl(),
    ]
    plan = ji.plan_sweep(model, tokens=tokens, **plan)
    return ji.activation_patching(model, plan, clean=clean, corrupted=corrupted, metric=metrics)


@pytest.mark.parametrize(
    "checked", [SOME, pytest.param(range(len(TEXTS)), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_data_set_equals_single_sweeps(tiny, folder, mels, tmp_path, checked):
    """Padding to a bucket's length changes nothing: the decoder is causal."""
    options = ji.DatasetOptions(text="text", reference="column:corrupted", metrics=TEXT.metrics)
    found = ji.sweep_dataset(
        tiny, folder / "clips.tsv", tmp_path / "out", sites=SITES, options=options, run=ONE
    )
    assert found.problems == ()
    dataset = ji.open_dataset(found.path)
    assert dataset.asked_word.values.tolist() == [text.split()[-1] for text in TEXTS]
    lengths = set()
    for i in checked:
        text = TEXTS[i]
        tokens, target = until_last_word(tiny.tokenizer, text)
        lengths.add(len(tokens))
        result = single(
            tiny,
            mels(f"{i}.wav"),
            mels(f"{i}_other.wav"),
            tokens,
            target,
            site=["resid_pre", "cross_attn_out", "z"],
            heads="each",
        )
        one = dataset.isel(clip=i)
        n = int(one.length)
        assert n == len(tokens)
        effect = np.abs(result.clean - result.corrupted)[:, None, None, None]
        worst = np.abs(one.patched.values[..., :n] - result.patched) / effect
        assert worst.max() < 1e-12
        assert np.isnan(one.patched.values[..., n:]).all()
        np.testing.assert_allclose(one.clean_metric, result.clean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(one.corrupted_metric, result.corrupted, rtol=1e-12, atol=1e-13)
        labels = [tiny.tokenizer.label(token) for token in tokens]
        assert one.token.values[:n].tolist() == labels
    assert any(bucket(n) > n for n in lengths)


def test_questions_of_similar_length_share_programs(tiny32, folder, tmp_path):
    options = dataclasses.replace(TEXT, word="each", metrics=("log_prob",))
    compiled = propagate_rows._cache_size()
    found = ji.sweep_dataset(
        tiny32, folder / "clips.tsv", tmp_path / "out", options=options, run=ONE
    )
    lengths = set(ji.open_dataset(found.path).length.values.tolist())
    buckets = {bucket(n) for n in lengths}
    assert len(buckets) < len(lengths)
    assert propagate_rows._cache_size() - compiled <= len(buckets)


def test_time_windows_are_swept_up_to_the_end_of_the_sound(tiny, folder, mels, tmp_path):
    options = ji.DatasetOptions(text="text", reference="column:corrupted", metrics=("log_prob",))
    plan = ji.PlanOptions(window=2)
    found = ji.sweep_dataset(
        tiny,
        folder / "clips.tsv",
        tmp_path / "out",
        sites=["encoder.resid_post"],
        options=options,
        plan=plan,
        run=ONE,
    )
    dataset = ji.open_dataset(found.path)
    for i in (0, 5):
        frames = -(-len(ji.load_audio(folder / f"{i}.wav")) // 320)
        one = dataset.isel(clip=i)
        assert int(one.length) == -(-frames // 2)
        result = single(
            tiny,
            mels(f"{i}.wav"),
            mels(f"{i}_other.wav"),
            *until_last_word(tiny.tokenizer, TEXTS[i]),
            stack="encoder",
            site="resid_post",
            positions=f"0:{frames - frames % 2}",
            options=plan,
        )
        n = frames // 2
        np.testing.assert_allclose(
            one.patched.values[0, 0, :, :n], result.patched[0], rtol=1e-10, atol=1e-12
        )
        assert np.isfinite([one.word_start, one.word_stop]).all()


def test_each_clip_has_noise_of_its_own(tiny32, folder, tmp_path):
    options = ji.DatasetOptions(text="text", metrics=("log_prob",))
    found = ji.sweep_dataset(
        tiny32, folder / "clips.tsv", tmp_path / "out", options=options, run=ONE
    )
    seeds = ji.open_dataset(found.path).noise_seed.values.tolist()
    assert len(set(seeds)) == len(seeds)


@pytest.mark.real
def test_a_real_clip_in_a_data_set_is_the_clip_against_noise(tmp_path):
    """The model's own transcript, its last word, and noise that is named by its seed."""
    model = real_model("tiny.en")
    table = write_table(tmp_path / "clips.tsv", [{"path": GRASS}, {"path": GLASS}])
    options = ji.DatasetOptions(metrics=("log_prob", "kl"), times=True)
    found = ji.sweep_dataset(model, table, tmp_path / "out", options=options, run=ONE)
    dataset = ji.open_dataset(found.path)
    for i, path in enumerate((GRASS, GLASS)):
        audio, one = ji.load_audio(path), dataset.isel(clip=i)
        contrast = ask_word(model, audio, noise_like(audio, int(one.noise_seed)))
        assert int(one.target_token) == contrast.target
        plan = ji.plan_sweep(model, tokens=contrast.tokens)
        result = ji.activation_patching(
            model,
            plan,
            clean=contrast.clean,
            corrupted=contrast.corrupted,
            metric=[contrast.metric(name) for name in options.metrics],
        )
        effect = np.abs(result.clean - result.corrupted)[:, None, None]
        patched = one.patched.values[:, 0, :, : len(contrast.tokens)]
        assert (np.abs(patched - result.patched) / effect).max() < 1e-5
        words = ji.align_words(model, ji.make_utterance(model, audio))
        said = np.full((dataset.sizes["pos"], 2), np.nan)
        for word in words[:-1]:
            said[slice(*word.tokens)] = word.seconds
        np.testing.assert_allclose(np.stack([one.token_start, one.token_stop], -1), said)
        assert (float(one.word_start), float(one.word_stop)) == words[-1].seconds


def test_shares_and_interruptions_give_the_same_bytes(tiny32, folder, tmp_path, monkeypatch):
    table = folder / "clips.tsv"
    whole = ji.sweep_dataset(tiny32, table, tmp_path / "whole", options=TEXT, run=ONE)
    halves = [
        ji.sweep_dataset(
            tiny32,
            table,
            tmp_path / "shared",
            options=TEXT,
            run=ji.RunOptions(ji.Share(n, 2), devices=1),
        )
        for n in (1, 2)
    ]
    assert halves[0].done < halves[0].questions == halves[1].done
    assert contents(whole.path.parent) == contents(halves[1].path.parent)

    run, calls = DatasetWork.run, []

    def interrupted(self, unit, loaded):
        calls.append(unit)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(self, unit, loaded)

    monkeypatch.setattr(DatasetWork, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ji.sweep_dataset(tiny32, table, tmp_path / "cut", options=TEXT, run=ONE)
    again = ji.sweep_dataset(tiny32, table, tmp_path / "cut", options=TEXT, run=ONE)
    assert len(calls) == len(TEXTS) + 1
    assert contents(whole.path.parent) == contents(again.path.parent)


def test_all_words_of_a_clip_are_of_one_share(tiny32, folder, tmp_path, monkeypatch):
    """So that each clip and its reference are encoded once, however many processes there are."""
    encode, encoded = dataset_work.encode_utterances, []

    def counted(model, utterances, sites):
        encoded.extend(utterances)
        return encode(model, utterances, sites)

    monkeypatch.setattr(dataset_work, "encode_utterances", counted)
    options = dataclasses.replace(TEXT, word="each")
    for share in (ji.Share(1, 3), ji.Share(2, 3), ji.Share(3, 3)):
        run = ji.RunOptions(share, devices=1)
        found = ji.sweep_dataset(
            tiny32, folder / "clips.tsv", tmp_path / "out", options=options, run=run
        )
    assert found.done == found.questions > len(TEXTS)
    assert len(encoded) == 2 * len(TEXTS)


def test_another_sweep_is_refused(tiny32, folder, tmp_path):
    table = folder / "clips.tsv"
    ji.sweep_dataset(tiny32, table, tmp_path / "out", options=TEXT, run=ONE)
    other = ji.DatasetOptions(text="text", metrics=("log_prob",))
    with pytest.raises(ji.InputError, match="options differs"):
        ji.sweep_dataset(tiny32, table, tmp_path / "out", options=other, run=ONE)
    with pytest.raises(ji.InputError, match="sites differs"):
        ji.sweep_dataset(
            tiny32, table, tmp_path / "out", sites=["decoder.mlp_out"], options=TEXT, run=ONE
        )
    run = ji.RunOptions(devices=1, overwrite=True)
    found = ji.sweep_dataset(tiny32, table, tmp_path / "out", options=other, run=run)
    assert ji.open_dataset(found.path).metric.values.tolist() == ["log_prob"]


def test_rows_that_cannot_be_swept_are_left_out(tiny32, folder, tmp_path, invoke):
    rows = [
        {"path": str(folder / "0.wav"), "text": "ab", "asked": "ab"},
        {"path": str(folder / "1.wav"), "text": "a bc", "asked": "d"},
        {"path": str(tmp_path / "absent.wav"), "text": "ab", "asked": "ab"},
        {"path": str(folder / "2.wav"), "text": "ab ab", "asked": "ab:2"},
        {"path": str(folder / "3.wav"), "text": "ab", "asked": ""},
    ]
    table = write_table(tmp_path / "table.tsv", [row | {"lang": "en"} for row in rows])
    arguments = ("sweep", table, "--model", folder / "model", "--text", "text")
    arguments += ("--word", "column:asked", "--devices", 1, "--out", tmp_path / "out")
    code, out, errors = invoke(*arguments)
    assert code == 0
    assert "2 questions" in out
    for name, why in (("1.wav", "no word 'd'"), ("absent", "absent"), ("3.wav", "no word")):
        assert any(name in line and why in line for line in errors.splitlines()), (name, errors)
    bad = write_table(tmp_path / "bad.tsv", [row | {"lang": "en"} for row in rows[1:3]])
    code, out, errors = invoke(*arguments[:1], bad, *arguments[2:-1], tmp_path / "none")
    assert code == 1
    assert "no clip is left" in errors
    code, out, errors = invoke(*arguments, "--metric", "rank")
    assert code == 2
    assert "is of another data-set sweep (options differs)" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "loud"}, "write noise, silence"),
        ({"word": "first"}, "write last, each"),
        ({"metrics": ()}, "no metric"),
        ({"metrics": ("loss",)}, "Unknown metric"),
        ({"metrics": ("kl", "kl")}, "named twice"),
        ({"direction": "up"}, "Unknown direction"),
        ({"reference": "column:none"}, "no column 'none'"),
        ({"word": "column:none"}, "no column 'none'"),
        ({"text": "none"}, "no column 'none'"),
    ],
)
def test_wrong_options_are_refused(tiny32, folder, tmp_path, options, message):
    with pytest.raises(ji.InputError, match=message):
        ji.sweep_dataset(
            tiny32,
            folder / "clips.tsv",
            tmp_path / "out",
            options=ji.DatasetOptions(**options),
            run=ONE,
        )


@pytest.mark.parametrize("length", [*range(1, 70), 127, 128, 200, 448])
def test_a_bucket_is_hardly_longer(length):
    assert length <= bucket(length) <= length + max(1, length // 16 + 1)
    assert bucket(bucket(length)) == bucket(length)
