"""Pictures: drawn whatever the axes of a sweep, with colours that fit what is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

import jaxasr_interp as ji
from helpers.files import PNG
from helpers.sweeps import plan_of
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.report.plots import (
    change,
    plot_ablation,
    plot_attention,
    plot_attribution,
    plot_attribution_heads,
    plot_encoder_lens,
    plot_lens,
    plot_lens_heads,
    plot_sweep,
    plot_text_sweep,
    plot_timeline,
    recovery,
    share,
)
from jaxasr_interp.report.plots.timeline import _levels
from jaxasr_interp.report.tables import sweep_table, window_labels

WORDS = tuple(
    Word(text, text.strip(".").lower(), (3 + i, 4 + i), (3 * i, 3 * i + 3))
    for i, text in enumerate(["Cut", "the", "grass", "now."])
)


def result_of(tiny, golden, scale=1.0, **options):
    """A sweep result with made-up numbers, on the axes of a real plan."""
    plan = plan_of(tiny, tokens=golden["tokens_a"], **options)
    rng = np.random.default_rng(0)
    patched = scale * rng.normal(size=(2, *plan.axes.values()))
    return ji.SweepResult(plan, ("kl", "rank"), patched, np.array([1.0, 2.0]), np.array([0.0, 2.0]))


def draw(figures, plot, *arguments):
    figures.clear()
    path = plot(*arguments)
    assert path.read_bytes().startswith(PNG)
    return figures[0]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, save = [], Figure.savefig

    def keep(self, *arguments, **options):
        saved.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def panels(figure):
    """The heatmaps, without the colour bar."""
    return [axes for axes in figure.axes if axes.images and axes.get_visible()]


LABELS = ["<|startoftranscript|>", "<|notimestamps|>", "$my$", "cat", "sat", "on", "it"]


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
def test_a_panel_for_every_component_and_strength(
    tiny, golden, tmp_path, figures, options, n_panels
):
    result = result_of(tiny, golden, **options)
    figure = draw(figures, plot_sweep, share(result, "kl"), LABELS, "title", tmp_path / "a.png")
    assert len(panels(figure)) == n_panels
    labels = [label.get_text() for label in panels(figure)[-1].get_xticklabels()]
    assert len(labels) == len(result.plan.windows)
    assert "<|" not in "".join(labels)


def test_the_weakest_of_many_components_are_left_out_and_it_says_so(
    tiny, golden, tmp_path, figures
):
    sites = ["attn_out", "mlp_out", "q", "k", "v", "z", "result", "cross_q", "cross_z"]
    sites += ["cross_result", "resid_pre", "resid_mid", "resid_post", "pattern", "cross_pattern"]
    result = result_of(tiny, golden, site=sites, heads="each")
    assert len(result.plan.components) == 25
    weakest = 7
    result.patched[:, weakest] = 0.0
    figure = draw(figures, plot_sweep, share(result, "kl"), LABELS, "title", tmp_path / "a.png")
    shown = [axes.get_title(loc="left") for axes in panels(figure)]
    kept = [n for i, n in enumerate(result.plan.component_names) if i != weakest]
    assert shown == kept
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
    many = share(result_of(tiny, golden, 30.0), "kl")
    assert 1.0 < many.limit < np.abs(many.values).max()
    moved = change(result, "kl")
    assert moved.limit == np.abs(moved.values).max()


def test_runs_that_agree_are_drawn_grey(tiny, golden, tmp_path, figures):
    result = result_of(tiny, golden)
    quantity = share(result, "rank")
    assert np.isnan(quantity.values).all()
    figure = draw(figures, plot_sweep, quantity, LABELS, "title", tmp_path / "a.png")
    assert panels(figure)[0].images[0].get_array().mask.all()
    assert texts(figure) == []
    assert "the runs agree" in figure.axes[-1].get_ylabel()


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
def test_time_runs_under_the_spectrogram_and_the_words(
    tiny, golden, tmp_path, figures, options, n_panels
):
    result = result_of(tiny, golden, **({"stack": "encoder"} | options))
    mel = np.asarray(golden["mel_a"])
    quantity = share(result, "kl")
    figure = draw(figures, plot_timeline, quantity, mel, WORDS, "title", tmp_path / "a.png")
    heatmaps = [axes for axes in figure.axes if axes.collections and axes.get_xlabel() is not None]
    assert len([axes for axes in heatmaps if axes.get_yticks().size]) >= n_panels
    assert set(texts(figure)) <= {word.text for word in WORDS}
    starts = [window[0] for window in result.plan.windows]
    left, right = figure.axes[0].get_xlim()
    assert left == pytest.approx(min(starts) / 50)
    assert right == pytest.approx(max(stop for _, stop in result.plan.windows) / 50)


def test_words_do_not_cover_each_other():
    long = [Word("counterrevolutionary", "x", (i, i + 1), (5 * i, 5 * i + 5)) for i in range(8)]
    levels = _levels(long, (0.0, 1.0), 7.0)
    width = 21 * 0.085
    for i, a in enumerate(levels):
        for j, b in enumerate(levels[:i]):
            assert a != b or (i - j) * 0.1 * 7.0 >= width - 1e-9
    assert _levels(WORDS, (0.0, 1.0), 70.0) == [0] * 4


@pytest.mark.parametrize("options", [{}, {"alpha": [0.5, 1]}, {"heads": "each"}, {"site": "z"}])
def test_ablations_show_sites_and_heads_apart(tiny, golden, tmp_path, figures, options):
    options = {"site": ["attn_out", "mlp_out", "z", "cross_z"], "positions": "all"} | options
    result = result_of(tiny, golden, **options)
    figure = draw(figures, plot_ablation, change(result, "kl"), "title", tmp_path / "a.png")
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


# Pictures of what is written.


def inked(path):
    """The share of a picture's pixels that are not nearly white."""
    return float((imread(path)[..., :3] < 0.9).any(-1).mean())


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
def test_text_sweeps_show_each_component(tmp_path, figures, some, n_panels, kind):
    values = {
        "shares": np.linspace(0.02, 0.9, len(some)),
        "nothing": np.full(len(some), np.nan),
        "zeros": np.zeros(len(some)),
        "above one": np.linspace(0.5, 12, len(some)),
    }[kind]
    path = tmp_path / "a.png"
    figure = draw(figures, plot_text_sweep, values, some, "rate", "cost: $3 and $4", path)
    assert len(panels(figure)) == n_panels
    assert inked(path) > 0.01
    known = [value for value, one in zip(values, some, strict=True) if one.text != "unedited"]
    shown = np.ma.concatenate([axes.images[0].get_array().ravel() for axes in panels(figure)])
    assert sorted(shown.compressed()) == pytest.approx(sorted(v for v in known if np.isfinite(v)))
    expected = [f"{100 * v:.0f}" if v < 10 else f"{v:.0f}×" for v in known if v >= 0.005]
    assert sorted(texts(figure)) == sorted(expected)
    titles = " ".join(axes.get_title("left") for axes in panels(figure))
    assert ("α = 0.5" in titles) == ("α = 1" in titles) == (n_panels == 4)


def test_the_cells_of_a_text_sweep_are_where_their_components_are(tmp_path, figures):
    some = edits(*HEADS) + edits(*HEADS, alpha=0.5)
    values = np.arange(12) / 12
    figure = draw(figures, plot_text_sweep, values, some, "rate", "title", tmp_path / "a.png")
    half, whole = (axes.images[0].get_array() for axes in panels(figure))
    np.testing.assert_allclose(whole, values[:6].reshape(3, 2))
    np.testing.assert_allclose(half, values[6:].reshape(3, 2))
    for axes in panels(figure):
        assert axes.get_ylim() == (-0.5, 2.5)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2"]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1"]


def test_where_stacks_share_names_panels_say_which(tmp_path, figures):
    some = edits(HEADS[0], ("encoder", "z", 0, 0), MLPS[2], ("encoder", "mlp_out", 1, -1))
    values = np.array([0.1, 0.2, 0.3, 0.4])
    figure = draw(figures, plot_text_sweep, values, some, "rate", "title", tmp_path / "a.png")
    whole, *heads = panels(figure)
    shown = [[0.1, None, None], [0.2, None, None]]
    assert [axes.images[0].get_array()[:, 0].tolist() for axes in heads] == shown
    titles = [axes.get_title("left") for axes in heads]
    assert titles == ["decoder.z, head", "encoder.z, head"]
    names = [tick.get_text() for tick in whole.get_xticklabels()]
    assert names == ["decoder.mlp_out", "encoder.mlp_out"]
    assert whole.images[0].get_array().tolist() == [[None, None], [None, 0.4], [0.3, None]]


def test_edits_of_all_layers_have_a_row_of_their_own(tmp_path, figures):
    some = edits(*HEADS, ("decoder", "z", -1, 1), ("decoder", "z", -1, -1))
    values = np.arange(8) / 8
    figure = draw(figures, plot_text_sweep, values, some, "rate", "title", tmp_path / "a.png")
    (axes,) = panels(figure)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2", "all"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["all", "0", "1"]
    assert axes.images[0].get_array()[3].tolist() == [values[7], None, values[6]]


@pytest.mark.parametrize(("largest", "limit"), [(0.4, 0.4), (1.99, 1.99), (12.0, 2.0)])
def test_rates_above_one_have_colours_of_their_own(tmp_path, figures, largest, limit):
    values = np.linspace(0.1, largest, 6)
    figure = draw(
        figures, plot_text_sweep, values, edits(*HEADS), "rate", "title", tmp_path / "a.png"
    )
    (axes,) = panels(figure)
    assert axes.images[0].get_clim() == (0, pytest.approx(limit))
    beyond = "; as far as 1200%" if largest > limit else ""
    assert figure.axes[-1].get_ylabel().replace("\n", " ") == f"rate{beyond}"


def test_shares_up_to_two_hundred_per_cent_have_colours_of_their_own(
    tiny, golden, tmp_path, figures
):
    result = result_of(tiny, golden, 0.3)
    span = result.clean[0] - result.corrupted[0]
    result.patched[0, 1, 2] = result.corrupted[0] + 1.99 * span
    quantity = share(result, result.metrics[0])
    assert (quantity.limit, quantity.beyond) == (2.0, "")
    result.patched[0, 1, 2] = result.corrupted[0] - 3.5 * span
    quantity = share(result, result.metrics[0])
    assert (quantity.limit, quantity.beyond) == (1.0, "-350%")
    figure = draw(figures, plot_sweep, quantity, LABELS, "title", tmp_path / "a.png")
    assert "as far as -350%" in figure.axes[-1].get_ylabel().replace("\n", " ")


def test_approximations_are_called_so(tiny, golden, tmp_path, figures):
    import dataclasses

    result = dataclasses.replace(result_of(tiny, golden), method="attribution")
    for made in (share, change):
        label = made(result, "kl").label
        assert label.endswith(", first-order approximation (attribution)")
        figure = draw(figures, plot_sweep, made(result, "kl"), LABELS, "t", tmp_path / "a.png")
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


def test_without_single_components_there_is_no_picture(tmp_path):
    both = ji.Intervention("both", decoder=ji.Several((ji.At(ji.Zero()), ji.At(ji.Zero()))))
    path = tmp_path / "a.png"
    twice = [
        *edits(MLPS[1]),
        ji.Intervention("scaled", decoder=ji.At(ji.Scale(2.0), 1, site="mlp_out")),
    ]
    for some in ([both], twice):
        assert plot_text_sweep(np.ones(len(some)), some, "rate", "title", path) is None
    assert not path.exists()


def lens_of(*written, normed=True, log_probs=None):
    generated = [
        ji.Generated((31,), (1, 2), (-1.0,) * 3, True, 0.1, text) for text in (*written, "it $1$")
    ]
    depths = len(generated)
    probabilities = -np.arange(1.0, depths + 1)[:, None] * np.ones((1, 2))
    return ji.EncoderLens(
        tuple(generated),
        (1, 2),
        probabilities if log_probs is None else log_probs,
        np.zeros((depths, 2, 1), int),
        np.zeros((depths, 2, 1)),
        normed,
    )


@pytest.mark.parametrize(
    "lens",
    [
        lens_of(),
        lens_of(" no" * 60, "", "He paid $5, or $$6$."),
        lens_of("word " * 300, normed=False),
        lens_of("a", log_probs=np.full((2, 2), np.nan)),
    ],
)
def test_the_encoder_lens_shows_what_each_depth_writes(tmp_path, figures, lens):
    path = tmp_path / "a.png"
    figure = draw(figures, plot_encoder_lens, lens, "lens of $a$", path)
    left, right = figure.axes
    assert inked(path) > 0.01
    assert [bar.get_width() for bar in left.patches] == pytest.approx(
        lens.log_probs.mean(1).tolist(), nan_ok=True
    )
    for text, written in zip(right.texts, lens.texts, strict=True):
        assert "$" not in text.get_text().replace("\\$", "")
        shown = text.get_text().replace("\\$", "$").replace("\n", " ")
        assert shown == (written or "(nothing)") or (
            shown[-1] == "…" and written[:200] == shown[:200]
        )
        loops = written.startswith(("no no", "word word"))
        assert (to_hex(text.get_color()) == "#b3541e") == loops
    heights = [text.get_position()[1] for text in right.texts]
    assert heights == sorted(heights)
    assert ("without the final LayerNorm" in figure.get_suptitle()) != lens.normed


def logit_lens_of(site, stack, pos, tokens=48):
    """A lens of made-up numbers."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (*stack, pos, tokens))
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    order = np.argsort(-log_p, axis=-1)[..., :3]
    each = rng.normal(size=(*stack, pos))
    saturation = rng.integers(0, stack[0] + 1, pos) if site == "resid_post" else None
    top, target = np.take_along_axis(log_p, order, -1), (log_p[..., 0], order[..., 0])
    arrays = (np.zeros(pos, int), order, top, *target, each, each, saturation)
    return ji.LogitLens(*jax.tree.map(jnp.asarray, arrays), site)


@pytest.mark.parametrize(
    ("site", "stack", "pos", "lines"),
    [("resid_post", (3,), 7, 1), ("mlp_out", (3,), 100, 5), ("embed", (), 7, 1)],
)
def test_the_lens_shows_every_cell_in_as_many_lines_as_it_needs(
    tiny_tokenizer, tmp_path, figures, site, stack, pos, lines
):
    lens, path = logit_lens_of(site, stack, pos), tmp_path / "a.png"
    labels = [f"${i}" for i in range(pos)]
    figure = draw(figures, plot_lens, lens, tiny_tokenizer, labels, "lens of $a$", path)
    assert inked(path) > 0.01
    shown = panels(figure)[:lines]
    assert sum(axes.images[0].get_array().shape[1] for axes in shown) == pos
    assert len({axes.get_xlim() for axes in shown}) == 1, "cells of all lines are equally wide"
    assert figure.get_figwidth() < 20
    written = [text.get_text() for axes in shown for text in axes.texts]
    assert len(written) == lens.top_tokens[..., 0].size
    ticks = [label.get_text() for axes in shown for label in axes.get_xticklabels()]
    assert ticks == [label.replace("$", "\\$") for label in labels]
    frames = [patch for axes in shown for patch in axes.patches]
    settled = np.zeros(0) if lens.saturation_layer is None else lens.saturation_layer
    assert len(frames) == (settled < len(lens.top_tokens)).sum()


def test_heads_have_a_cell_each(tmp_path, figures):
    lens, path = logit_lens_of("cross_result", (3, 2), 5), tmp_path / "a.png"
    figure = draw(figures, plot_lens_heads, lens, "heads of $a$", path, 1)
    shown = panels(figure)[0].images[0].get_array()
    np.testing.assert_allclose(shown, lens.target_log_prob[..., 1:].mean(-1))
    assert len(texts(figure)) == 6


@pytest.mark.parametrize("pos", [7, 60])
def test_contributions_stand_in_columns_under_their_sum(tmp_path, figures, pos):
    rng, path = np.random.default_rng(0), tmp_path / "a.png"
    shapes = {"embed": 0, "pos_embed": 0, "attn_heads": 2, "attn_bias": 1, "cross_attn_heads": 2}
    shapes |= {"cross_attn_bias": 1, "mlp_out": 1, "norm_bias": 0}
    parts = {name: rng.normal(size=(*(3, 2)[:n], pos)) for name, n in shapes.items()}
    fields = {"targets": np.zeros(pos, int), "others": None, "logit": np.arange(pos) / 2, **parts}
    attribution = ji.DirectLogitAttribution(**jax.tree.map(jnp.asarray, fields))
    labels = [f"${i}" for i in range(pos)]
    figure = draw(figures, plot_attribution, attribution, labels, "parts of $a$", path)
    assert inked(path) > 0.01
    shown = panels(figure)[: 1 if pos == 7 else 2]
    drawn = np.concatenate([axes.images[0].get_array() for axes in shown], axis=1)
    np.testing.assert_allclose(drawn, np.stack([*attribution.by_component().values()]), rtol=1e-6)
    assert shown[0].get_yticklabels()[-1].get_text() == "norm_bias"
    sums = [label.get_text() for axes in shown for label in axes.child_axes[0].get_xticklabels()]
    assert sums == [f"{i / 2:.1f}" for i in range(pos)]
    figure = draw(figures, plot_attribution_heads, attribution, "heads of $a$", path, 2)
    for axes, heads in zip(panels(figure), ("attn_heads", "cross_attn_heads"), strict=False):
        mean = parts[heads][..., 2:].mean(-1)
        np.testing.assert_allclose(axes.images[0].get_array(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nothing", [False, True])
def test_attention_runs_under_the_words(tmp_path, figures, nothing):
    random, path = np.random.default_rng(0), tmp_path / "a.png"
    pattern = random.random((len(LABELS), 12)) * np.arange(1, 8)[:, None] * (not nothing)
    words = (*WORDS, Word("$5", "5", (6, 7), (11, 12)))
    figure = draw(figures, plot_attention, pattern, LABELS, words, "heads of $a$", path)
    assert inked(path) > 0.01
    (axes,) = panels(figure)
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown.max(1), float(not nothing))
    np.testing.assert_allclose(shown, pattern / np.maximum(pattern.max(1, keepdims=True), 1e-9))
    assert axes.get_xlim() == (0, 12 / 50)
    top = axes.child_axes[0]
    assert top.get_xticks() == pytest.approx([word.seconds[0] for word in words])
    assert [t.get_text() for t in top.get_xticklabels()][-1] == r"\$5"
    assert [t.get_text() for t in axes.get_yticklabels()][:3] == [
        "‹start›",
        "‹no times›",
        r"\$my\$",
    ]


def test_nothing_said_has_no_words(tmp_path, figures):
    figure = draw(figures, plot_attention, np.ones((1, 3)), ["a"], (), "title", tmp_path / "a.png")
    assert len(panels(figure)) == 1
