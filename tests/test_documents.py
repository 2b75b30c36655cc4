"""What documents tell users to write: every block of Python runs, or calls what there is."""

import ast
import inspect
import json
import re
import runpy
from pathlib import Path

import jax.numpy as jnp
import nbclient
import nbformat
import pytest
import soundfile
from flax import nnx

import jaxasr_interp as ji
from helpers.files import GLASS, GRASS, sound, write_table
from helpers.real import real_model

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path):
    """The blocks of Python of a document, or of a docstring's example."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def run_in_order(codes):
    namespace = {}
    for number, code in enumerate(codes):
        exec(compile(code, f"<block {number}>", "exec"), namespace)
    return namespace


def small_model(folder, tokenizer):
    """A random model of 30 s and the README's layers and heads that ends after a few letters."""
    config = ji.WhisperConfig(
        n_mels=8, d_vocab=48, d_model=32, encoder_layers=4, decoder_layers=4, encoder_heads=4,
        decoder_heads=4, encoder_d_mlp=32, decoder_d_mlp=32, max_tokens=300,
    )  # fmt: skip
    model = ji.Whisper(config, rngs=nnx.Rngs(0))
    model.tokenizer = tokenizer
    embed, pos_embed = model.decoder.embed, model.decoder.pos_embed
    end, letter = embed[...][tokenizer.end_of_text], embed[...][3]
    late = (jnp.arange(300) >= 7)[:, None]
    pos_embed[...] = pos_embed[...] + 400 * jnp.where(late, end[None], letter[None])
    ji.save_model(model, folder)


def write_clips(folder, count, seconds):
    """A table of clips of noise, each by another speaker."""
    rows = []
    for i in range(count):
        soundfile.write(folder / f"{i}.flac", sound(i, int(16_000 * seconds)), 16_000)
        gender, speaker = "FM"[i % 2], f"speaker {i}"
        rows.append({"path": f"{i}.flac", "lang": "en", "gender": gender, "speaker": speaker})
    write_table(folder / "clips.tsv", [row | {"word_class": "letters"} for row in rows])


def write_files(folder, tokenizer):
    """What the README reads: a model, two clips and a table of clips."""
    small_model(folder / "model", tokenizer)
    write_clips(folder, 12, 0.3)
    for name in ("clip", "other"):
        soundfile.write(folder / f"{name}.flac", sound(len(name), 5_000), 16_000)


def run_notebook(folder):
    """Run the tour with the small model; return its code cells."""
    tour = nbformat.reads(TOUR.read_text("utf-8").replace('\\"tiny.en\\"', '\\"model\\"'), 4)
    nbclient.NotebookClient(tour, timeout=300, resources={"metadata": {"path": folder}}).execute()
    return [cell for cell in tour.cells if cell.cell_type == "code"]


def test_the_notebook_has_the_readmes_blocks():
    made = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))["text"]()
    assert made == TOUR.read_text("utf-8"), "run docs/make_notebook.py"
    cells = [cell["source"] for cell in json.loads(made)["cells"]]
    assert set(cells) > {block.rstrip() for block in blocks(ROOT / "README.md")}


def test_a_notebook_shows_every_result_of_the_readme(tmp_path, tiny_tokenizer):
    write_files(tmp_path, tiny_tokenizer)
    cells = run_notebook(tmp_path)
    outputs = [(cell.source, output) for cell in cells for output in cell.outputs]
    assert any(
        "patches" in output.get("data", {}).get("text/markdown", "") for _, output in outputs
    )
    shown = {code: one.data for code, one in outputs if one.output_type == "execute_result"}
    for result in ("lens", "result", "swept", "depths", 'fit["gender"]'):
        assert "<img" in shown[result]["text/html"], result
        assert "<pre" in shown[result]["text/html"], result
    pictures = [data for code, data in shown.items() if code.endswith(".plot()")]
    assert len(pictures) == 2
    assert all(picture["image/png"] for picture in pictures)
    for code, data in shown.items():
        assert "xarray" in data["text/plain"] or len(data["text/plain"].splitlines()) <= 20, code


@pytest.mark.real
@pytest.mark.slow
def test_the_readme_begins_on_the_real_model(tmp_path, monkeypatch):
    real_model("tiny.en")
    monkeypatch.chdir(tmp_path)
    for name, clip in (("clip", GRASS), ("other", GLASS)):
        (tmp_path / f"{name}.flac").write_bytes(Path(clip).read_bytes())
    found = run_in_order(blocks(ROOT / "README.md")[:3])
    assert "grass" in found["out"].text


def calls(tree):
    """The calls of names of the library, as `ji.encode(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.fullmatch(r"ji(\.\w+)+", name):
                yield name, node


def examples():
    """Every block of the documents, and the example of the package's docstring."""
    codes = {path.name: blocks(path) for path in DOCUMENTS}
    codes["__init__"] = [(ji.__doc__ or "").partition("\n\n")[2]]
    return [(name, code) for name, some in codes.items() for code in some]


@pytest.mark.parametrize(("name", "code"), examples())
def test_examples_call_what_there_is(name, code):
    found = list(calls(ast.parse(code)))
    for called, node in found:
        function = ji
        for part in called.split(".")[1:]:
            function = getattr(function, part)
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        inspect.signature(function).bind(*node.args, **keywords)
    if name == "__init__":
        assert len(found) > 3


def test_no_docstring_has_an_example_that_is_not_tried():
    files = [*(ROOT / "jaxasr_interp").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert not [file for file in files if ">>>" in file.read_text("utf-8")]
