"""Pictures of sweeps on text: a panel for each component, and rates as colours."""

import numpy as np
import pytest

import jaxasr_interp as ji
from helpers.pictures import inked, panels, texts
from jaxasr_interp.report.plots import (
    plot_text_sweep,
)


def edits(*places, alpha=1.0):
    """One intervention for each `(stack, site, layer, head)`."""
    return [
        ji.Intervention(
            f"{place} {alpha}",
            **{stack: ji.At(ji.Zero(), layer, head=head, alpha=alpha, site=site)},
        )
        for place in places
        for stack, site, layer, head in [place]
    ]


MLPS = [("decoder", "mlp_out", layer, -1) for layer in range(3)]


HEADS = [("decoder", "z", layer, head) for layer in range(3) for head in range(2)]


SUBLAYERS = [("decoder", "attn_out", 1, -1)]


@pytest.mark.parametrize(
    ("some", "n_panels"),
    [
        (edits(*MLPS), 1),
        (edits(*HEADS), 1),
        (edits(*MLPS, *SUBLAYERS, *HEADS), 2),
        (edits(*MLPS, *HEADS) + edits(*MLPS, *HEADS, alpha=0.5), 4),
        (edits(MLPS[1]), 1),
        (edits(*HEADS, *MLPS, *((("encoder"), *place[1:]) for place in (*HEADS, *MLPS))), 3),
        ([*edits(("encoder", "z", 0, 1)), ji.Intervention("unedited")], 1),
    ],
)
@pytest.mark.parametrize("kind", ["shares", "nothing", "zeros", "above one"])
def test_text_sweeps_show_each_component(some, n_panels, kind):
    values = {
        "shares": np.linspace(0.02, 0.9, len(some)),
        "nothing": np.full(len(some), np.nan),
        "zeros": np.zeros(len(some)),
        "above one": np.linspace(0.5, 12, len(some)),
    }[kind]

    figure = plot_text_sweep(values, some, "rate", "cost: $3 and $4")
    assert len(panels(figure)) == n_panels
    assert inked(figure) > 0.01
    known = [value for value, one in zip(values, some, strict=True) if one.text != "unedited"]
    shown = np.ma.concatenate([axes.images[0].get_array().ravel() for axes in panels(figure)])
    assert sorted(shown.compressed()) == pytest.approx(sorted(v for v in known if np.isfinite(v)))
    expected = [f"{100 * v:.0f}" if v < 10 else f"{v:.0f}×" for v in known if v >= 0.005]
    assert sorted(texts(figure)) == sorted(expected)
    titles = " ".join(axes.get_title("left") for axes in panels(figure))
    assert ("α = 0.5" in titles) == ("α = 1" in titles) == (n_panels == 4)


def test_the_cells_of_a_text_sweep_are_where_their_components_are():
    some = edits(*HEADS) + edits(*HEADS, alpha=0.5)
    values = np.arange(12) / 12
    figure = plot_text_sweep(values, some, "rate", "title")
    half, whole = (axes.images[0].get_array() for axes in panels(figure))
    np.testing.assert_allclose(whole, values[:6].reshape(3, 2))
    np.testing.assert_allclose(half, values[6:].reshape(3, 2))
    for axes in panels(figure):
        assert axes.get_ylim() == (-0.5, 2.5)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2"]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1"]


def test_where_stacks_share_names_panels_say_which():
    some = edits(HEADS[0], ("encoder", "z", 0, 0), MLPS[2], ("encoder", "mlp_out", 1, -1))
    values = np.array([0.1, 0.2, 0.3, 0.4])
    figure = plot_text_sweep(values, some, "rate", "title")
    whole, *heads = panels(figure)
    shown = [[0.1, None, None], [0.2, None, None]]
    assert [axes.images[0].get_array()[:, 0].tolist() for axes in heads] == shown
    titles = [axes.get_title("left") for axes in heads]
    assert titles == ["decoder.z, head\nto 20%", "encoder.z, head\nto 20%"]
    assert {axes.images[0].get_clim() for axes in heads} == {(0, 0.2)}
    assert whole.get_title("left") == "site\nto 40%"
    assert whole.images[0].get_clim() == (0, 0.4)
    names = [tick.get_text() for tick in whole.get_xticklabels()]
    assert names == ["decoder.mlp_out", "encoder.mlp_out"]
    assert whole.images[0].get_array().tolist() == [[None, None], [None, 0.4], [0.3, None]]


def test_edits_of_all_layers_have_a_row_of_their_own():
    some = edits(*HEADS, ("decoder", "z", -1, 1), ("decoder", "z", -1, -1))
    values = np.arange(8) / 8
    figure = plot_text_sweep(values, some, "rate", "title")
    (axes,) = panels(figure)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2", "all"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["all", "0", "1"]
    assert axes.images[0].get_array()[3].tolist() == [values[7], None, values[6]]


@pytest.mark.parametrize(("largest", "limit"), [(0.4, 0.4), (1.99, 1.99), (12.0, 2.0)])
def test_rates_above_one_have_colours_of_their_own(largest, limit):
    values = np.linspace(0.1, largest, 6)
    figure = plot_text_sweep(values, edits(*HEADS), "rate", "title")
    (axes,) = panels(figure)
    assert axes.images[0].get_clim() == (0, pytest.approx(limit))
    beyond = "; as far as 1200%" if largest > limit else ""
    assert figure.axes[-1].get_ylabel().replace("\n", " ") == f"rate{beyond}"


def test_without_single_components_there_is_no_picture():
    both = ji.Intervention("both", decoder=ji.Several((ji.At(ji.Zero()), ji.At(ji.Zero()))))
    twice = [
        *edits(MLPS[1]),
        ji.Intervention("scaled", decoder=ji.At(ji.Scale(2.0), 1, site="mlp_out")),
    ]
    for some in ([both], twice):
        assert plot_text_sweep(np.ones(len(some)), some, "rate", "title") is None
