"""Numbers out of range, and things of another kind, are named in one sentence."""

import jaxtyping
import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.files import GRASS, sound, write_table
from jaxasr_interp.evaluation.bootstrap import check_resampling
from jaxasr_interp.speech.clips import as_clips

AUDIO = sound(0, 2_000)

REFUSED = {
    "level": (
        lambda m: ji.score_probes(None, level=2),
        "The level is 2: expected a number",
    ),
    "resamples": (lambda m: ji.score_probes(None, n_resamples=0), "n_resamples is 0: expected at"),
    "seed of scores": (lambda m: ji.score_probes(None, seed=-1), "seed is -1: expected at least 0"),
    "seed of intervals": (lambda m: check_resampling(0.9, 10, -1), "seed is -1"),
    "seed of aggregate": (lambda m: ji.Resampling(seed=-1), "seed is -1"),
    "seed of draws": (lambda m: ji.Choice(seed=-1), "seed is -1"),
    "seed of a lens": (lambda m: ji.LensTraining(seed=-1), "seed is -1"),
    "seed of a sweep": (lambda m: ji.DatasetOptions(seed=-1), "seed is -1"),
    "seed of weights": (lambda m: ji.ExtractOptions(random_seed=-1), "random_seed is -1"),
    "batch size": (
        lambda m: ji.ExtractOptions(batch_size=0),
        "batch_size is 0: expected at",
    ),
    "batch size of a run": (lambda m: ji.RunOptions(batch_size=0), "batch_size is 0"),
    "limit": (lambda m: ji.ExtractOptions(limit=-1), "limit is -1: expected at least 1"),
    "limit of a sweep": (lambda m: ji.DatasetOptions(limit=0), "limit is 0"),
    "share": (lambda m: ji.Share(3, 2), "There is no part 3 among 2"),
    "mel bands": (lambda m: ji.log_mel_spectrogram(AUDIO, 0), "n_mels is 0: expected at least 1"),
    "mel frames": (lambda m: ji.log_mel_spectrogram(AUDIO, 8, 0), "frames is 0"),
    "path for samples": (lambda m: ji.log_mel_spectrogram("a.flac"), "as load_audio gives them"),
    "clips for a clip": (lambda m: ji.transcribe(m, [AUDIO]), "transcribe_batch a list of several"),
    "path for a clip": (lambda m: ji.transcribe(m, "a.flac"), "A clip is str: .* load_audio"),
    "a clip for clips": (lambda m: ji.transcribe_batch(m, AUDIO), "A clip is float32: .* a list"),
    "states": (lambda m: ji.generate_batch(m, [AUDIO]), "The encoder states are a list: stack"),
    "samples for clips": (
        lambda m: ji.ablation_sweep(m, [AUDIO]),
        "rows of clips hold ndarray",
    ),
    "vectors": (
        lambda m: ji.generate_rows(
            m,
            np.zeros((1, 12, 16), np.float32),
            [[ji.At(ji.Add(np.ones(n)), 0, site="mlp_out") for n in (16, 8)]],
        ),
        r"arrays of different shapes, \[\(8,\), \(16,\)\]",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_they_are_refused(tiny32, monkeypatch, call, message):
    # Else the tests' own check of types, which users do not have, comes first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ji.InputError, match=message) as error:
        call(tiny32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "command",
    [
        ("transcribe", GRASS),
        ("tuned-lens", "clips.tsv"),
        ("extract", "clips.tsv"),
        ("sweep", "clips.tsv"),
        ("aggregate", "runs"),
        ("verify", GRASS),
        ("study", "repetition", "a.tsv", "b.tsv"),
    ],
    ids=lambda command: command[0],
)
def test_a_negative_seed_is_refused_by_commands(invoke, command):
    code, _, said = invoke(*command, "--seed", "-1")
    assert code == 2
    assert "Traceback" not in said
    assert "greater than or equal to 0" in said


def test_a_table_is_taken_for_clips(tmp_path):
    rows = [{"path": GRASS, "text": "to cut the grass", "lang": ""}]
    (clip,) = as_clips(write_table(tmp_path / "clips.tsv", rows))
    assert (clip.name, clip.text, clip.language) == (GRASS, "to cut the grass", None)
    np.testing.assert_array_equal(clip.audio, ji.load_audio(GRASS))
    assert as_clips([clip])[0] is clip
    (same,) = as_clips([{"audio": GRASS}])
    np.testing.assert_array_equal(same.audio, clip.audio)
    assert same.text is None
