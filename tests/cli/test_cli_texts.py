"""Commands that write texts under edits: their output, their files, their exit codes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import xarray

import jaxasr_interp as ji
from helpers.files import GLASS, GRASS, PNG
from helpers.real import real_model
from jaxasr_interp.cli import ablate_text

SHORT = ("--max-new-tokens", "15")


@pytest.fixture
def model():
    return real_model("tiny.en")


def read(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def mlp(layer, alpha=1.0):
    return ji.At(ji.Scale(-2.0), layer, alpha=alpha, site="mlp_out")


UNTOUCHED = mlp(0, 0.0)
"""Does nothing, in the program of the others."""


def texts_under(model, path, *edits):
    """What is written about a clip under each edit."""
    states = ji.encode(model, ji.log_mel_spectrogram(ji.load_audio(path)), sites=()).states
    written = [
        ji.generate(model, states, edit=one, choice=ji.Choice(max_new_tokens=15)) for one in edits
    ]
    return [one.text.strip() for one in written]


def is_png(path):
    return path.read_bytes().startswith(PNG)


@pytest.mark.real
@pytest.mark.slow
def test_transcripts_under_edits(model, invoke, tmp_path):
    options = ["--edit", "scale:decoder.mlp_out@2:factor=-2:alpha=0.3", "--edit"]
    options += ["scale:decoder.mlp_out@3:factor=-1:step=2..5", "--json", "--out", "texts.json"]
    code, printed, errors = invoke("transcribe", GRASS, GLASS, *options)
    assert code == 0, errors
    rows = read(printed)
    assert rows == json.loads((tmp_path / "texts.json").read_text())
    start = len(model.tokenizer.prompt()) + 1
    late = ji.At(ji.Scale(-1.0), 3, start, start + 3, site="mlp_out")
    edit = ji.Several((mlp(2, 0.3), late))
    mels = [ji.log_mel_spectrogram(ji.load_audio(path)) for path in (GRASS, GLASS)]
    states = jnp.stack([ji.encode(model, mel, sites=()).states for mel in mels])
    expected = ji.generate_batch(model, states, edit=edit)
    for row, path, one in zip(rows, (GRASS, GLASS), expected, strict=True):
        assert row["file"] == path
        assert row["text"] == one.text.strip()
        assert row["tokens"] == list(one.tokens)
        assert "My brother went outside" not in row["text"]


@pytest.mark.real
def test_a_table_of_clips_is_written_without_each_component(model, invoke, tmp_path):
    (tmp_path / "clips").mkdir()
    glass = tmp_path / "clips" / "glass.wav"
    soundfile.write(glass, ji.load_audio(GLASS), 16_000, subtype="FLOAT")
    said = "My brother went outside to cut the grass."
    table = f"path\ttext\tlang\n{GRASS}\t{said}\ten\nglass.wav\t\t\n"
    (tmp_path / "clips" / "all.tsv").write_text(table)
    options = ["--site", "decoder.mlp_out@1", "--kind", "scale:factor=-2", "--alpha", "0.5,1"]
    options += ["--out", "out", *SHORT]
    code, printed, errors = invoke("ablate-text", "clips/all.tsv", "--json", *options)
    assert code == 0, errors
    result = read(printed)
    edit = "scale:decoder.mlp_out@1:factor=-2"
    names = ["unedited", f"{edit}:alpha=0.5", edit]
    assert result["coords"]["intervention"]["data"] == names
    assert result["coords"]["transcript"]["data"] == [said, ""]
    expected = [texts_under(model, path, UNTOUCHED, mlp(1, 0.5), mlp(1)) for path in (GRASS, GLASS)]
    assert result["data_vars"]["text"]["data"] == np.transpose(expected).tolist()
    assert expected[0][0] == said
    assert len({*expected[0]}) > 1
    stored = xarray.open_zarr(tmp_path / "out" / "texts.zarr", consolidated=False)
    assert stored.attrs["model"] == model.source
    errors = stored.errors.sel(unit="word").values
    # What is said in the second clip is not known.
    assert (errors[:, 1, 0] == -1).all()
    assert errors[0, 0].tolist() == [[8, 0, 0, 0]] * 2
    assert errors[2, 0, 0, 1:].sum() > 0
    assert stored.alpha.values[1:].tolist() == [0.5, 1]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"texts.zarr", "changed.png", "loops.png", "wer.png"}
    assert all(is_png(tmp_path / "out" / f"{name}.png") for name in ("changed", "loops", "wer"))


@pytest.mark.real
def test_edits_are_compared_and_an_interrupted_sweep_goes_on(model, invoke, tmp_path, monkeypatch):
    swept, done = ablate_text.ablation_sweep, []

    def watched(*arguments, on_progress, **options):
        return swept(*arguments, on_progress=lambda *now: done.append(now), **options)

    def interrupted(*arguments, on_progress, **options):
        def stop(done, *_):
            if done:
                raise KeyboardInterrupt

        return swept(*arguments, on_progress=stop, **options)

    command = ["ablate-text", GRASS, GLASS, "--devices", "1", "--out", "out", *SHORT]
    command += ["--edit", "scale:decoder.mlp_out@1:factor=-2"]
    command += ["--edit", "scale:decoder.mlp_out@2:factor=-2:alpha=0.5"]
    monkeypatch.setattr(ablate_text, "ablation_sweep", interrupted)
    assert invoke(*command)[0] == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["texts.partial.zarr"]
    monkeypatch.setattr(ablate_text, "ablation_sweep", watched)
    other = [*command[:-1], "zero:decoder.mlp_out@3"]
    code, _, errors = invoke(*other)
    assert code == 2
    assert "is of another sweep" in errors
    code, printed, errors = invoke(*command)
    assert code == 0, errors
    assert done == [(3, 6, "transcripts"), (6, 6, "transcripts")]
    assert "2 clips × 2 edits (and none): 6 transcripts" in printed
    assert "scale:decoder.mlp_out@2" in printed
    assert "0 of 2" in printed
    assert "WER" not in printed
    stored = xarray.open_zarr(tmp_path / "out" / "texts.zarr", consolidated=False)
    for clip, path in enumerate((GRASS, GLASS)):
        expected = texts_under(model, path, UNTOUCHED, mlp(1), mlp(2, 0.5))
        assert stored.text.values[:, clip].tolist() == expected
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"texts.zarr", "changed.png", "loops.png"}
    code, _, errors = invoke(*command)
    assert code == 2
    assert "texts.zarr exists" in errors


@pytest.mark.real
def test_the_encoder_lens_is_printed_and_drawn(model, invoke, tmp_path):
    code, printed, errors = invoke("encoder-lens", GRASS, "--out", "lens", *SHORT)
    assert code == 0, errors
    assert "My brother went outside to cut the grass." in printed
    assert is_png(tmp_path / "lens" / "encoder_lens.png")
    stored = xarray.open_zarr(tmp_path / "lens" / "encoder_lens.zarr", consolidated=False)
    assert stored.sizes["depth"] == 5
    assert stored.attrs["normed"] == 1
    assert stored.attrs["clip"] == GRASS
    mel = ji.log_mel_spectrogram(ji.load_audio(GRASS))
    run = ji.encode(model, mel, sites=("resid_pre", "resid_post"))
    plain = ji.generate(model, run.states, edit=UNTOUCHED, choice=ji.Choice(max_new_tokens=15))
    assert stored.reference.values.tolist() == list(plain.tokens)
    options = ["--no-norm", "--json", "--text", "My brother went outside to cut the glass."]
    code, printed, errors = invoke("encoder-lens", GRASS, "--out", "raw", *options, *SHORT)
    assert code == 0, errors
    raw = read(printed)
    assert raw["attrs"]["normed"] == 0
    tokens = model.tokenizer.encode(" My brother went outside to cut the glass.")
    assert raw["coords"]["reference"]["data"] == tokens
    given = [*model.tokenizer.prompt(), *tokens[:-1]]
    logits = ji.decode(model, given, run.acts.resid_post[-1], sites=()).logits[1:]
    log_probs = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens)), tokens]
    found = raw["data_vars"]["reference_log_prob"]["data"][-1]
    np.testing.assert_allclose(found, log_probs, rtol=1e-4, atol=1e-4)
    code, _, errors = invoke("encoder-lens", GRASS, "--out", "lens")
    assert code == 2
    assert "encoder_lens.zarr exists" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ablate-text", GRASS, "--edit", "zero:decoder.z@1", "--site", "decoder.z"],
            "--site does nothing beside --edit",
        ),
        (["ablate-text", "{empty}"], "has no rows"),
        (["ablate-text", "absent.tsv"], "absent.tsv cannot be read as a table"),
        (["ablate-text", "{table}"], "has no column 'path'"),
        (["ablate-text", GRASS, "--kind", "mean"], "The kind mean needs ref=..."),
        (["ablate-text", GRASS, "--alpha", "half"], "The strengths 'half'"),
        (["ablate-text", GRASS, "--site", "decoder.z@x"], "The layers 'x' cannot be read"),
        (["ablate-text", GRASS, "--site", "middle.z"], "Unknown stack 'middle'"),
        (["ablate-text", GRASS, "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["ablate-text", GRASS, GRASS, "--site", "decoder.z@0"], "Two clips have the same name"),
        (["ablate-text", GRASS, "--edit", "zero:decoder.z@9"], "no layer 9 among 4"),
        (["ablate-text", GRASS, "--site", "decoder.nose"], "no site 'nose'"),
        (["transcribe", GRASS, "--edit", "zero:decoder.z"], "say in which layers"),
        (["transcribe", GRASS, "--edit", "mix:decoder.z@1:ref=hum"], "'hum' is no file"),
        (["transcribe", GRASS, "--seed", "1"], "--seed goes with a --temperature above 0"),
        (["transcribe", GRASS, "--temperature", "-1"], "temperature is -1.0"),
        (["transcribe", GRASS, "--beam-size", "2", "--temperature", "1"], "does not draw"),
        (["encoder-lens", "absent.wav"], "There is no audio file absent.wav"),
        (["encoder-lens", "{long}"], "longer than 30 s"),
        (["encoder-lens", GRASS, "--memory", "lots"], "The memory 'lots' cannot be read"),
        (["encoder-lens", GRASS, "--language", "klingon"], "Unknown language 'klingon'"),
    ],
)
@pytest.mark.real
def test_bad_input_gets_one_sentence_and_exit_code_2(model, invoke, tmp_path, arguments, message):
    soundfile.write(tmp_path / "long.wav", np.full(31 * 16_000, 0.1), 16_000)
    (tmp_path / "table.tsv").write_text("name\ttext\na.wav\thello\n")
    (tmp_path / "empty.tsv").write_text("path\ttext\n")
    names = {"{long}": "long.wav", "{table}": "table.tsv", "{empty}": "empty.tsv"}
    code, _, errors = invoke(*(names.get(one, one) for one in arguments))
    assert code == 2
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("runs/*/*"))
