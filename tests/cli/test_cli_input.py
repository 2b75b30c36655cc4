"""What the command line is given: texts that it reads, and wrong ones in one sentence."""

import numpy as np
import pytest
import soundfile
import typer

from helpers.files import GLASS, GRASS
from helpers.golden import GOLDEN
from jaxasr_interp.cli import options
from jaxasr_interp.cli.app import app
from jaxasr_interp.cli.selection import Selection
from jaxasr_interp.interventions.places import parse_indices


def noise(tmp_path, seconds=1.0):
    path = tmp_path / f"noise{seconds}.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)), 16_000)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "absent.wav"], "There is no audio file absent.wav"),
        (["transcribe", "x.wav", "--model", "giant"], "No model 'giant'"),
        (["lens", "absent.wav"], "There is no audio file absent.wav"),
        (["lens", GRASS, "--model", str(GOLDEN / "tiny_random")], "without a tokenizer.json"),
        (["lens", GRASS, "--language", "klingon"], "Unknown language 'klingon'"),
        (["lens", GRASS, "--site", "pattern"], "No lens can read 'pattern'"),
        (["lens", GRASS, "--text", "word " * 460], "tokens with its prompt: at most 448"),
        (["transcribe", GRASS, "--task", "translate"], "English-only model cannot translate"),
        (["lens", GRASS, "--out", f"{GRASS}/lens"], "Nothing can be written to"),
        (["transcribe", GRASS, "--out", f"{GRASS}/t.json"], "Nothing can be written to"),
        (["transcribe", GRASS, "--out", "t.doc"], "No format is known for t.doc"),
        (["transcribe", GRASS, GRASS, "--out", "t.srt"], "the segments of one clip, not of 2"),
        (["patch", GRASS, GRASS], "Both clips are transcribed as"),
        (["patch", GRASS, GLASS, "--metric", "vibes"], "Unknown metric 'vibes'"),
        (["patch", GRASS, GLASS, "--site", "decoder.nose"], "has no site 'nose'"),
        (["patch", GRASS, GLASS, "--site", "z"], "lacks a stack: write decoder.z or encoder.z"),
        (["patch", GRASS, "hum"], "The reference 'hum' is no file"),
        (["patch", GRASS, "noise:std=1"], "write noise, noise:seed=3, silence or an audio file"),
        (["patch", GRASS, "noise", "--word", "cat"], "no word 'cat' in the tran"),
        (["patch", GRASS, "noise", "--text", "a b a", "--word", "a"], "2 times"),
        (["patch", GRASS, "noise", "--text", "..."], "no words"),
        (["patch", GRASS, GLASS, "--site", "middle.z"], "Unknown stack 'middle'"),
        (["patch", GRASS, GLASS, "--site", "decoder.z@3-1"], "The layers '3-1' cannot be read"),
        (["patch", GRASS, GLASS, "--site", "decoder.z@4"], "There is no layer 4"),
        (["patch", GRASS, GLASS, "--site", "decoder.z@0.most"], "The heads 'most' cannot be read"),
        (["patch", GRASS, GLASS, "--site", "decoder.resid_pre@0.each"], "has no heads"),
        (
            ["patch", GRASS, GLASS, "--site", "decoder.z", "--site", "encoder.z"],
            "differ in their stack",
        ),
        (
            ["patch", GRASS, GLASS, "--site", "decoder.z@1", "--site", "decoder.mlp_out@*"],
            "The sites decoder.z@1, decoder.mlp_out@* differ in their layers",
        ),
        (
            ["patch", GRASS, GLASS, "--site", "decoder.z", "--site", "decoder.cross_z@*.each"],
            "differ in their heads",
        ),
        (["patch", GRASS, GLASS, "--alpha", "half"], "The strengths 'half' cannot be read"),
        (["patch", GRASS, GLASS, "--memory", "lots"], "The memory 'lots' cannot be read"),
        (["patch", GRASS, GLASS, "--memory", "1MB"], "is too small"),
        (["patch", GRASS, GLASS, "--window", "200ms"], "is a time"),
        (["patch", GRASS, GLASS, "--window", "1:wide"], "The stride 'wide' cannot be read"),
        (["patch", GRASS, GLASS, "--window", "0"], "The window is 0"),
        (["patch", GRASS, GLASS, "--positions", "1.2s"], "is a time"),
        (
            ["patch", GRASS, GLASS, "--site", "encoder.resid_pre", "--positions", "word:cat"],
            "no word 'cat'",
        ),
        (["patch", GRASS, GLASS, "--direction", "up"], "Unknown direction 'up'"),
        (["attribution", GRASS, GRASS], "Both clips are transcribed as"),
        (["attribution", GRASS, GLASS, "--steps", "0"], "number of steps is 0"),
        (["attribution", GRASS, GLASS, "--metric", "rank"], "has no gradient"),
        (["ablate", GRASS, "--kind", "freeze"], "The kind 'freeze' cannot be read"),
        (["ablate", GRASS, "--kind", "noise:std=-1"], "The kind 'noise:std=-1' cannot be read"),
        (["ablate", GRASS, "--kind", "noise:0.5"], "noise takes no '0.5' but seed, std"),
        (["ablate", GRASS, "--kind", "zero:std=1"], "The kind 'zero:std=1' cannot be read"),
        (["ablate", GRASS, "--kind", "knockout:keys=0,2"], "are several windows"),
        (["ablate", GRASS, "--site", "middle.z"], "Unknown stack 'middle'"),
        (["ablate", GRASS, "--kind", "zero:ref=noise"], "zero takes no 'ref'"),
        (["ablate", GRASS, "--kind", "mean:ref=noise"], "no audio file noise"),
        (
            ["ablate", GRASS, "--kind", "knockout:keys=0..2", "--site", "decoder.z"],
            "choose one --site, pattern",
        ),
        (["ablate", GRASS, "--kind", "knockout:keys=2..2"], "no window from 2 up to 2"),
        (["ablate", GRASS, "--kind", "mean", "--site", "decoder.pattern"], "'pattern' is none"),
        (["ablate", "{noise}"], "longer than 30 s"),
        (["lens", "{noise}"], "longer than 30 s"),
        (["verify", GRASS, "--cells", "0"], "number of cells is 0"),
        (["verify", GRASS, "--memory", "1.5.2GB"], "The memory '1.5.2GB' cannot be read"),
    ],
)
@pytest.mark.real
def test_bad_input_gets_one_sentence_and_exit_code_2(tmp_path, invoke, arguments, message):
    arguments = [str(noise(tmp_path, 31.0)) if a == "{noise}" else a for a in arguments]
    code, _, errors = invoke(*arguments)
    assert code == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        (["transcribe", GRASS, "--out", "t.srt"], "t.srt/"),
        (["transcribe", GRASS, "--out", "t.json"], "t.json/"),
        (["verify", GRASS, "--out", "checks"], "checks/"),
        (["lens", GRASS, "--out", "lens"], "lens"),
        (["lens", GRASS, "--attribution", "--out", "lens"], "lens/attribution.zarr"),
        (["encoder-lens", GRASS, "--out", "lens"], "lens/encoder_lens.zarr"),
        (["tuned-lens", GRASS, "--out", "lens"], "lens/tuned_lens.zarr"),
        (["patch", GRASS, GLASS, "--out", "out"], "out/sweep.zarr"),
        (["attribution", GRASS, GLASS, "--out", "out"], "out"),
        (["ablate", GRASS, "--out", "out"], "out/ablation.zarr"),
        (["ablate-text", GRASS, "--out", "out"], "out/texts.zarr"),
        (["study", "repetition", GRASS, GRASS, "--out", "out"], "out/speech.zarr"),
        (["probe", "absent", "--target", "lang", "--out", "out"], "out/probes.json/"),
        (["similarity", "absent", "--out", "out"], "out/similarity.json/"),
        (["aggregate", "absent", "--out", "out"], "out/aggregate.zarr"),
        (["demo", "--out", "out"], "out/lens.zarr"),
    ],
)
def test_a_file_that_is_a_folder_or_the_reverse_is_refused_before_the_work(
    tmp_path, invoke, arguments, there
):
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if there.endswith("/") else path.touch()
    reads_no_model = ("demo", "probe", "similarity", "aggregate")
    model = [] if arguments[0] in reads_no_model else ["--model", "absent"]
    overwrite = [] if arguments[0] == "demo" else ["--overwrite"]
    code, _, errors = invoke(*arguments, *model, *overwrite)
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert there.rstrip("/") in errors
    assert "absent" not in errors, "nothing has been read"
    assert [*tmp_path.rglob("*")][-1] == path


@pytest.mark.parametrize(
    ("text", "indices"), [("0", [0]), ("0,3-5,-1", [0, 3, 4, 5, -1]), (" 2 , 4-4", [2, 4])]
)
def test_indices_are_read(text, indices):
    assert list(parse_indices("layers", text)) == indices


@pytest.mark.parametrize(
    ("text", "size"),
    [("500", 500), ("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("64k", 64_000), ("8MiB", 8 << 20)],
)
def test_memory_is_read(text, size):
    assert options.parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "read"), [("10", ("10", None)), ("0.2s", ("0.2s", None)), ("4:1", ("4", "1"))]
)
def test_windows_are_read(text, read):
    chosen = Selection.read(
        ["encoder.resid_pre"], positions=None, window=text, alpha="1", memory=None
    )
    assert (chosen.options.window, chosen.options.stride) == read


@pytest.mark.parametrize("command", ["patch", "ablate", "ablate-text", "transcribe", "lens"])
def test_commands_take_few_parameters(command):
    parameters = typer.main.get_command(app).commands[command].params
    assert len([one for one in parameters if one.name != "help"]) <= 20
