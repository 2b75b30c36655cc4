"""Which clips of a table a command takes: those that cannot be used are left out and named."""

import json

import pytest
import soundfile

import jaxasr_interp as ji
from helpers.files import sound, tiny_model_of_30_s
from jaxasr_interp.cli.clips import read_clips

LONG_TEXT = "a " * 200
TUNED = ["--steps", "1", "--batch-size", "2"]
ONE = ["--site", "decoder.mlp_out@0", "--max-new-tokens", "2"]


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """The tiny model, three short clips, one of 31 s, and a table of them all."""
    tiny_model_of_30_s(tmp_path / "model", tiny_tokenizer)
    for name, length in {"a": 500, "b": 600, "c": 700, "long": 31 * 16_000}.items():
        soundfile.write(tmp_path / f"{name}.wav", sound(length, length), 16_000)
    rows = [
        'a.wav,"ab, c",en',
        "absent.wav,ab,en",
        "b.wav,b,klingon",
        "long.wav,ab,de",
        f"b.wav,{LONG_TEXT},en",
        "c.wav,a,de",
    ]
    (tmp_path / "clips.csv").write_text("\n".join(["audio_filepath,sentence,lang", *rows]) + "\n")
    (tmp_path / "none.csv").write_text("file,text,lang\nabsent.wav,ab,en\nb.wav,b,klingon\n")
    return tmp_path


def left_out(errors):
    return [line for line in errors.splitlines() if line.startswith("left out: ")]


def test_a_tuned_lens_is_trained_on_the_clips_that_can_be_used(folder, invoke):
    code, printed, errors = invoke(
        "tuned-lens", "clips.csv", "--model", "model", "--out", "lens", "--json", *TUNED
    )
    assert code == 0, errors
    reasons = [
        "absent.wav: There is no audio file absent.wav.",
        "b.wav: Unknown language 'klingon': choose one of de, en.",
        "long.wav: The clip is longer than 30 s (31.0 s): cut it to the sentence.",
        "b.wav: The text has ",
    ]
    for line, reason in zip(left_out(errors), reasons, strict=True):
        assert line.startswith(f"left out: {reason}")
    assert "kl" in json.loads(printed)["data_vars"]


def test_a_text_that_is_only_compared_with_may_be_of_any_length(folder, capsys):
    model = ji.load_model(folder / "model")
    clips = read_clips(model, [str(folder / "clips.csv"), str(folder / "c.wav")], None)
    names = [line.split(":")[1].rpartition("/")[2] for line in left_out(capsys.readouterr().err)]
    assert names == ["absent.wav", "b.wav", "long.wav"]
    paths = [str(folder / f"{name}.wav") for name in "abcc"]
    assert [clip.name for clip in clips] == paths
    assert [clip.text for clip in clips] == ["ab, c", LONG_TEXT, "a", None]
    assert [clip.language for clip in clips] == ["en", "en", "de", None]


@pytest.mark.parametrize(
    "command",
    [
        ["tuned-lens", "none.csv", *TUNED],
        ["ablate-text", "none.csv", *ONE],
        ["ablate-text", "long.wav", *ONE],
        ["extract", "none.csv", "--site", "encoder.resid_post:mean", "--no-random"],
        ["sweep", "none.csv", "--text", "text"],
    ],
)
def test_the_exit_code_is_1_when_every_clip_was_left_out(folder, invoke, command):
    if command[0] == "extract":
        # What the encoder hears needs no language.
        (folder / "none.csv").write_text("file\nabsent.wav\nlong.wav\n")
    code, _, errors = invoke(*command, "--model", "model", "--out", "out")
    assert code == 1
    assert len(left_out(errors)) == (1 if "long.wav" in command else 2)
    assert errors.splitlines()[-1] == "no clip is left"


def test_a_language_of_all_clips_that_the_model_lacks_is_refused(folder, invoke):
    command = ["ablate-text", "clips.csv", "--language", "klingon", *ONE]
    code, _, errors = invoke(*command, "--model", "model", "--out", "out")
    assert code == 2
    assert errors == "error: Unknown language 'klingon': choose one of de, en.\n"


def test_speech_of_a_study_is_taken_from_any_table(folder, invoke, monkeypatch):
    from jaxasr_interp.cli import study

    given = {}

    def find_loops(model, windows, **options):
        given["windows"] = [window.name for window in windows]
        raise ji.InputError("Enough.")

    monkeypatch.setattr(study, "find_loops", find_loops)
    code, _, errors = invoke("study", "repetition", "clips.csv", "clips.csv", "--model", "model")
    assert code == 2
    assert errors.endswith("error: Enough.\n")
    assert {name.partition(".wav")[0] for name in given["windows"]} == {"a", "b", "c", "long"}
    assert sum("longer than 30 s (31.0 s)" in line for line in left_out(errors)) == 1
