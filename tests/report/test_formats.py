"""Pictures as files: their formats, and the fonts of their letters."""

import inspect
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

import jaxasr_interp as ji
from helpers.files import PNG
from jaxasr_interp.cli.options import parse_formats
from jaxasr_interp.report import plots
from jaxasr_interp.report.plots import plot_attention, save

SVG = "{http://www.w3.org/2000/svg}"
HANGUL, CJK, STIX_ALONE = "안", "草", "ᶁ"


def attention_of(*labels):
    return plot_attention(np.eye(len(labels)), labels, (), "attention")


def test_every_plot_gives_a_figure_and_takes_no_path():
    names = [name for name in plots.__all__ if name.startswith("plot_")]
    assert len(names) == 16
    for name in names:
        signature = inspect.signature(getattr(plots, name))
        assert "matplotlib.figure.Figure" in signature.return_annotation
        assert "path" not in signature.parameters


def test_figures_are_saved_as_their_paths_say(tmp_path):
    figure = attention_of("cut", "the", "$grass$")
    assert isinstance(figure, Figure)
    written = {ending: save(figure, tmp_path / f"a.b.{ending}") for ending in plots.FORMATS}
    assert written["png"].read_bytes().startswith(PNG)
    assert written["pdf"].read_bytes().startswith(b"%PDF")
    root = ET.fromstring(written["svg"].read_text("utf-8"))
    assert root.tag == f"{SVG}svg"
    texts = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
    assert {"attention", "cut", "the", "$grass$"} <= texts


@pytest.fixture
def shipped_fonts(monkeypatch):
    """As on a system that has the fonts of matplotlib alone."""
    shipped = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", shipped)


def test_letters_without_a_font_are_one_warning(tmp_path, shipped_fonts):
    with pytest.warns(UserWarning, match="the CJK, Hangul letters .* install Noto Sans CJK.$"):
        figure = attention_of("grass", HANGUL, CJK)
    with warnings.catch_warnings(record=True) as spilled:
        warnings.simplefilter("always")
        save(figure, tmp_path / "a.png")
    assert spilled == []


def test_letters_are_taken_from_the_font_that_has_them(tmp_path, shipped_fonts):
    figure = attention_of("grass", STIX_ALONE)
    label = figure.axes[0].get_yticklabels()[1]
    assert "STIXGeneral" in label.get_fontfamily()
    figure.savefig(tmp_path / "a.png")


def test_a_format_that_is_unknown_is_refused_before_any_work(invoke, tmp_path):
    code, _, errors = invoke("patch", "no.wav", "none.wav", "--format", "png,bmp")
    assert code == 2
    assert errors == "error: Pictures cannot be written as 'bmp': choose from png, svg, pdf.\n"
    with pytest.raises(ji.InputError, match="written as ''"):
        parse_formats("")
