"""Pictures of lenses, of direct attribution and of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex

import jaxasr_interp as ji
from helpers.pictures import LABELS, WORDS, inked, panels, texts
from jaxasr_interp.generation.word_times import Word
from jaxasr_interp.report.plots import (
    plot_attention,
    plot_attribution,
    plot_attribution_heads,
    plot_encoder_lens,
    plot_lens,
    plot_lens_heads,
)


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
def test_the_encoder_lens_shows_what_each_depth_writes(lens):
    figure = plot_encoder_lens(lens, "lens of $a$")
    left, right = figure.axes
    assert inked(figure) > 0.01
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
    tiny_tokenizer, site, stack, pos, lines
):
    lens = logit_lens_of(site, stack, pos)
    labels = [f"${i}" for i in range(pos)]
    figure = plot_lens(lens, tiny_tokenizer, labels, "lens of $a$")
    assert inked(figure) > 0.01
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


def test_heads_have_a_cell_each():
    lens = logit_lens_of("cross_result", (3, 2), 5)
    figure = plot_lens_heads(lens, "heads of $a$", 1)
    shown = panels(figure)[0].images[0].get_array()
    np.testing.assert_allclose(shown, lens.target_log_prob[..., 1:].mean(-1))
    assert len(texts(figure)) == 6


@pytest.mark.parametrize("pos", [7, 60])
def test_contributions_stand_in_columns_under_their_sum(pos):
    rng = np.random.default_rng(0)
    shapes = {"embed": 0, "pos_embed": 0, "attn_heads": 2, "attn_bias": 1, "cross_attn_heads": 2}
    shapes |= {"cross_attn_bias": 1, "mlp_out": 1, "norm_bias": 0}
    parts = {name: rng.normal(size=(*(3, 2)[:n], pos)) for name, n in shapes.items()}
    fields = {"targets": np.zeros(pos, int), "others": None, "logit": np.arange(pos) / 2, **parts}
    attribution = ji.DirectLogitAttribution(**jax.tree.map(jnp.asarray, fields))
    labels = [f"${i}" for i in range(pos)]
    figure = plot_attribution(attribution, labels, "parts of $a$")
    assert inked(figure) > 0.01
    shown = panels(figure)[: 1 if pos == 7 else 2]
    drawn = np.concatenate([axes.images[0].get_array() for axes in shown], axis=1)
    np.testing.assert_allclose(drawn, np.stack([*attribution.by_component().values()]), rtol=1e-6)
    assert shown[0].get_yticklabels()[-1].get_text() == "norm_bias"
    sums = [label.get_text() for axes in shown for label in axes.child_axes[0].get_xticklabels()]
    assert sums == [f"{i / 2:.1f}" for i in range(pos)]
    figure = plot_attribution_heads(attribution, "heads of $a$", 2)
    for axes, heads in zip(panels(figure), ("attn_heads", "cross_attn_heads"), strict=False):
        mean = parts[heads][..., 2:].mean(-1)
        np.testing.assert_allclose(axes.images[0].get_array(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nothing", [False, True])
def test_attention_runs_under_the_words(nothing):
    random = np.random.default_rng(0)
    pattern = random.random((len(LABELS), 12)) * np.arange(1, 8)[:, None] * (not nothing)
    words = (*WORDS, Word("$5", "5", (6, 7), (11, 12)))
    figure = plot_attention(pattern, LABELS, words, "heads of $a$")
    assert inked(figure) > 0.01
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


def test_nothing_said_has_no_words():
    figure = plot_attention(np.ones((1, 3)), ["a"], (), "title")
    assert len(panels(figure)) == 1
