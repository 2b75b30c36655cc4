"""What a notebook shows of results that lack something."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxasr_interp as ji
from helpers.files import PNG
from jaxasr_interp.generation.segments import Segment

SAID = ji.Transcript("[Music] cut it", (1, 2), "en", -0.5, 0.0)
SEGMENTS = (
    Segment(0.0, 1.5, "[Music]", (1,), -0.5, 0.0),
    Segment(11.0, 12.5, "cut it", (2,), -0.5, 0.0),
)


def test_words_in_brackets_are_shown_as_they_are():
    timed = dataclasses.replace(SAID, segments=SEGMENTS)
    for one in (SAID, timed):
        assert "[Music]" in one._repr_html_()
    assert "12.50" in timed._repr_html_()


def test_a_transcript_has_a_picture_if_it_has_times():
    assert "<img" not in SAID._repr_html_()
    with pytest.raises(ji.InputError, match="times=True"):
        SAID.plot()
    figure = dataclasses.replace(SAID, segments=SEGMENTS).plot("what is said")
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "what is said"
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 10), (10, 20)]
    assert figure._repr_png_().startswith(PNG)


def test_a_sweep_over_time_has_an_axis_of_seconds(tiny, utterances):
    clean, corrupted = utterances
    plan = ji.plan_sweep(
        tiny, tokens=corrupted.tokens, stack="encoder", site="ln_final", positions=[(0, 5), (5, 10)]
    )
    result = ji.activation_patching(
        tiny, plan, clean=clean, corrupted=corrupted, metric=ji.metrics.log_prob(3)
    )
    assert result.tokens == tuple(np.asarray(corrupted.tokens).tolist())
    assert "0.00-0.10 s" in result._repr_html_()
    axes = result.plot().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.00-0.10 s", "0.10-0.20 s"]


def test_without_a_tokenizer_tokens_are_numbers(tiny, utterances):
    tiny.tokenizer = None
    clean, corrupted = utterances
    plan = ji.plan_sweep(tiny, tokens=corrupted.tokens, site="resid_pre")
    result = ji.activation_patching(
        tiny, plan, clean=clean, corrupted=corrupted, metric=ji.metrics.log_prob(3)
    )
    labels = [label.get_text() for label in result.plot().axes[0].get_xticklabels()]
    assert labels == [str(token) for token in result.tokens]
    run = ji.decode(tiny, clean.tokens, ji.encode(tiny, clean.mel).states, sites="resid_post")
    lens = ji.logit_lens(tiny, run)
    assert "LogitLens(" in lens._repr_html_()
    with pytest.raises(ji.InputError, match="no tokenizer"):
        lens.plot()
