"""Pictures: drawn whatever the axes of a sweep, with colours that fit what is shown."""

import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.pictures import LABELS, WORDS, panels, texts
from helpers.sweeps import plan_of
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.report.plots import (
    change,
    plot_ablation,
    plot_sweep,
    plot_timeline,
    recovery,
    share,
)
from jaxasr_interp.report.plots.timeline import _levels
from jaxasr_interp.report.tables import sweep_table, window_labels
from jaxasr_interp.speech.audio import log_mel_spectrogram


def result_of(tiny, golden, scale=1.0, **options):
    """A sweep result with made-up numbers, on the axes of a real plan."""
    plan = plan_of(tiny, tokens=golden["tokens_a"], **options)
    rng = np.random.default_rng(0)
    patched = scale * rng.normal(size=(2, *plan.axes.values()))
    return ji.SweepResult(plan, ("kl", "rank"), patched, np.array([1.0, 2.0]), np.array([0.0, 2.0]))


@pytest.mark.parametrize(
    ("options", "n_panels"),
    [
        ({}, 1),
        ({"site": "embed"}, 1),
        ({"site": ["attn_out", "mlp_out"], "alpha": [0.5, 1]}, 4),
        ({"site": ["z", "cross_z", "mlp_out"], "heads": "each"}, 5),
        ({"window": 3, "stride": 2}, 1),
        ({"positions": "all"}, 1),
    ],
)
def test_a_panel_for_every_component_and_strength(tiny, golden, options, n_panels):
    result = result_of(tiny, golden, **options)
    figure = plot_sweep(share(result, "kl"), LABELS, "title")
    assert len(panels(figure)) == n_panels
    labels = [label.get_text() for label in panels(figure)[-1].get_xticklabels()]
    assert len(labels) == len(result.plan.windows)
    assert "<|" not in "".join(labels)


def test_the_weakest_of_many_components_are_left_out_and_it_says_so(
    tiny,
    golden,
):
    sites = ["attn_out", "mlp_out", "q", "k", "v", "z", "result", "cross_q", "cross_z"]
    sites += ["cross_result", "resid_pre", "resid_mid", "resid_post", "pattern", "cross_pattern"]
    result = result_of(tiny, golden, site=sites, heads="each")
    assert len(result.plan.components) == 25
    weakest = 7
    result.patched[:, weakest] = 0.0
    figure = plot_sweep(share(result, "kl"), LABELS, "title")
    shown = [axes.get_title(loc="left") for axes in panels(figure)]
    kept = [n for i, n in enumerate(result.plan.component_names) if i != weakest]
    assert [title.partition(" (")[0] for title in shown] == kept
    assert "the 24 of 25 components" in figure.get_suptitle()


def test_colours_fit_the_numbers(tiny, golden):
    for scale, limit in ((0.02, 0.1), (0.05, 0.25), (0.3, 1.0)):
        quantity = share(result_of(tiny, golden, scale), "kl")
        assert np.abs(quantity.values).max() <= limit
        assert quantity.limit == limit
    result = result_of(tiny, golden, 0.1)
    result.patched[0, 1, 2] = -80
    outlier = share(result, "kl")
    assert outlier.limit == 1.0, "one cell must not take the colour from all others"
    assert outlier.text(-80.0) == "-80×"
    assert outlier.text(-0.004) == "0%"
    many = share(result_of(tiny, golden, 30.0), "kl")
    assert 1.0 < many.limit < np.abs(many.values).max()
    moved = change(result, "kl")
    assert moved.limit == np.abs(moved.values).max()


def test_runs_that_agree_are_drawn_grey(tiny, golden):
    result = result_of(tiny, golden)
    quantity = share(result, "rank")
    assert np.isnan(quantity.values).all()
    figure = plot_sweep(quantity, LABELS, "title")
    assert panels(figure)[0].images[0].get_array().mask.all()
    assert texts(figure) == []
    assert "the runs agree" in figure.axes[-1].get_ylabel()


def test_heads_and_whole_sites_have_scales_of_their_own(tiny, golden):
    result = result_of(tiny, golden, site=["z", "mlp_out"], heads="each")
    names, of_head = result.plan.component_names, [h is not None for _, h in result.plan.components]
    result.patched[0, of_head] = result.corrupted[0] + 0.06
    result.patched[0, ~np.array(of_head)] = result.corrupted[0] + 0.9
    figure = plot_sweep(share(result, "kl"), LABELS, "title")
    ranges = ["±10%" if head else "±100%" for head in of_head]
    titles = [axes.get_title("left") for axes in panels(figure)]
    assert titles == [f"{name} ({span})" for name, span in zip(names, ranges, strict=True)]
    limits = [axes.images[0].get_clim()[1] for axes in panels(figure)]
    assert limits == [0.1 if head else 1.0 for head in of_head]
    bars = {axes.get_ylabel().replace("\n", " ") for axes in figure.axes if axes.get_ylabel()}
    assert {"heads: share of kl recovered", "sites: share of kl recovered"} <= bars


def test_patches_into_the_clean_run_show_what_is_lost(tiny, golden):
    import dataclasses

    result = result_of(tiny, golden)
    other = dataclasses.replace(result, direction="corrupted_to_clean")
    assert share(other, "kl").label == "share of kl lost"
    np.testing.assert_allclose(share(other, "kl").values, 1 - share(result, "kl").values)


@pytest.mark.parametrize(
    ("options", "n_panels"),
    [
        ({"window": 3}, 1),
        ({"window": 4, "stride": 2, "site": ["attn_out", "z"], "alpha": [0.5, 1]}, 4),
        ({"positions": [(1, 4), (6, 9)]}, 1),
        ({"site": "ln_final", "window": 6}, 1),
        ({"stack": "decoder", "site": "cross_v", "window": 2}, 1),
    ],
)
def test_time_runs_under_the_spectrogram_and_the_words(tiny, golden, options, n_panels):
    result = result_of(tiny, golden, **({"stack": "encoder"} | options))
    mel = np.asarray(golden["mel_a"])
    quantity = share(result, "kl")
    figure = plot_timeline(quantity, mel, WORDS, "title")
    heatmaps = [axes for axes in figure.axes if axes.collections and axes.get_xlabel() is not None]
    assert len([axes for axes in heatmaps if axes.get_yticks().size]) >= n_panels
    assert set(texts(figure)) <= {word.text for word in WORDS}
    starts = [window[0] for window in result.plan.windows]
    left, right = figure.axes[0].get_xlim()
    assert left == pytest.approx(min(starts) / 50)
    assert right == pytest.approx(max(stop for _, stop in result.plan.windows) / 50)


@pytest.mark.parametrize("khz", [0.5, 1, 4])
def test_a_tone_stands_at_its_frequency(tiny, golden, khz):
    seconds = np.arange(8000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * khz * seconds).astype(np.float32)
    mel = np.asarray(log_mel_spectrogram(tone, frames=50))
    result = result_of(tiny, golden, stack="encoder")
    axes = plot_timeline(share(result, "kl"), mel, WORDS, "title").axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    ticks = dict(zip(labels, axes.get_yticks(), strict=True))
    assert ticks[f"{khz:g}"] == pytest.approx(mel[:, 20].argmax() + 0.5, abs=0.75)
    assert axes.get_ylim() == (0, 80)


def test_words_do_not_cover_each_other():
    long = [Word("counterrevolutionary", "x", (i, i + 1), (5 * i, 5 * i + 5)) for i in range(8)]
    levels = _levels(long, (0.0, 1.0), 7.0)
    width = 21 * 0.085
    for i, a in enumerate(levels):
        for j, b in enumerate(levels[:i]):
            assert a != b or (i - j) * 0.1 * 7.0 >= width - 1e-9
    assert _levels(WORDS, (0.0, 1.0), 70.0) == [0] * 4


@pytest.mark.parametrize("options", [{}, {"alpha": [0.5, 1]}, {"heads": "each"}, {"site": "z"}])
def test_ablations_show_sites_and_heads_apart(tiny, golden, options):
    options = {"site": ["attn_out", "mlp_out", "z", "cross_z"], "positions": "all"} | options
    result = result_of(tiny, golden, **options)
    figure = plot_ablation(change(result, "kl"), "title")
    by_head = 3 if "heads" in options else 1
    assert len(panels(figure)) == by_head * len(result.plan.alphas)


def test_tables_name_the_largest_cells(tiny, golden, capsys):
    from rich.console import Console

    result = result_of(tiny, golden, site=["attn_out", "z"], heads="each")
    values = share(result, "kl").values
    console = Console(width=100)
    labels = window_labels(result.plan, LABELS, ())
    console.print(sweep_table(share(result, "kl"), labels, " (clean 1)", most=1))
    out = capsys.readouterr().out
    _, component, layer, pos = np.unravel_index(values.argmax(), values.shape)
    cells = [cell.strip() for cell in out.splitlines()[-2].strip("│").split("│")]
    assert cells[:3] == [result.plan.component_names[component], str(layer), str(pos)]
    assert cells[4] == f"{values.max():.0%}"
    assert out.startswith("attn_out, z: share of kl recovered (clean 1)")


def test_tables_of_time_name_the_words(tiny, golden):
    result = result_of(tiny, golden, stack="encoder", window=4)
    assert window_labels(result.plan, LABELS, WORDS) == ["Cut the", "the grass", "grass now."]


def test_shares_up_to_two_hundred_per_cent_have_colours_of_their_own(
    tiny,
    golden,
):
    result = result_of(tiny, golden, 0.3)
    span = result.clean[0] - result.corrupted[0]
    result.patched[0, 1, 2] = result.corrupted[0] + 1.99 * span
    quantity = share(result, result.metrics[0])
    assert (quantity.limit, quantity.beyond) == (2.0, "")
    result.patched[0, 1, 2] = result.corrupted[0] - 3.5 * span
    quantity = share(result, result.metrics[0])
    assert (quantity.limit, quantity.beyond) == (1.0, "-350%")
    figure = plot_sweep(quantity, LABELS, "title")
    assert "as far as -350%" in figure.axes[-1].get_ylabel().replace("\n", " ")


def test_approximations_are_called_so(tiny, golden):
    import dataclasses

    result = dataclasses.replace(result_of(tiny, golden), method="attribution")
    for made in (share, change):
        label = made(result, "kl").label
        assert label.endswith(", first-order approximation (attribution)")
        figure = plot_sweep(made(result, "kl"), LABELS, "t")
        assert "approximation" in figure.axes[-1].get_ylabel()
    assert "approximation" not in share(result_of(tiny, golden), "kl").label


def test_where_nothing_can_be_recovered_the_change_is_shown(tiny, golden):
    result = result_of(tiny, golden)
    agree = recovery(result, "rank")
    assert (agree.label, agree.unit) == ("change of rank", "number")
    i = result.metrics.index("rank")
    expected = result.patched[i] - result.corrupted[i]
    np.testing.assert_array_equal(agree.values.reshape(expected.shape), expected)
    assert recovery(result, "kl").unit == "share"
