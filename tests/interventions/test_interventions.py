"""What each edit does to an activation, in numpy; and from a later position on."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr_interp as ji
from jaxasr_interp.interventions.where import EVERY, CountedFrom, blend
from jaxasr_interp.model.edits import EditContext

POSITIONS, HEADS, WIDTH = 9, 3, 5
SHAPES = {
    "resid_pre": (POSITIONS, WIDTH),
    "z": (POSITIONS, HEADS, WIDTH),
    "pattern": (HEADS, POSITIONS, WIDTH),
    "cross_k": (WIDTH, HEADS, WIDTH),
    "logits": (POSITIONS, WIDTH),
}
POSITION_AXIS = {"pattern": 1}


def activation(site, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1, SHAPES[site]).astype(np.float32)


def layer_of(site, layer=1):
    return None if site == "logits" else layer


def apply(edit, site, value, layer=1, start=None):
    """The edit of a value that holds the positions from `start` on, or those of a whole run."""
    context = EditContext()
    if start is not None:
        size = value.shape[POSITION_AXIS.get(site, 0)]
        context = EditContext(jnp.asarray(start, jnp.int32) + jnp.arange(size, dtype=jnp.int32))
    return np.asarray(edit(site, layer_of(site, layer), jnp.asarray(value), context))


def positions(site, value, start, stop=None):
    return np.moveaxis(
        np.moveaxis(value, POSITION_AXIS.get(site, 0), 0)[start:stop], 0, POSITION_AXIS.get(site, 0)
    )


@pytest.mark.parametrize("site", SHAPES)
def test_zero_scale_and_add(site):
    value, vector = activation(site), np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(apply(ji.Zero(), site, value), 0 * value)
    np.testing.assert_array_equal(apply(ji.Scale(-2.0), site, value), -2 * value)
    np.testing.assert_array_equal(apply(ji.Add(jnp.asarray(vector)), site, value), value + vector)


@pytest.mark.parametrize("site", ["pattern", "cross_pattern"])
def test_knocked_out_keys_leave_what_a_softmax_without_them_gives(site):
    scores = np.random.default_rng(0).normal(size=SHAPES["pattern"]).astype(np.float32)
    pattern = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    rest = np.exp(scores)
    rest[..., 1:3] = 0
    rest /= rest.sum(-1, keepdims=True)
    ours = apply(ji.Knockout(1, 3), site, pattern)
    np.testing.assert_allclose(ours, rest, rtol=1e-5)
    np.testing.assert_array_equal(apply(ji.Knockout(0, 99), site, pattern), 0 * pattern)
    np.testing.assert_allclose(apply(ji.Knockout(3, 3), site, pattern), pattern, rtol=1e-6)


def test_noise_is_gaussian_and_differs_everywhere():
    zeros = jnp.zeros((40, 6, 25))
    draws = [
        ji.Noise(2.0)("z", 0, zeros),
        ji.Noise(2.0)("q", 0, zeros),
        ji.Noise(2.0)("z", 1, zeros),
        ji.Noise(2.0, 1)("z", 0, zeros),
    ]
    cells = np.stack(draws).reshape(-1, 25)
    n = cells.size
    assert abs(cells.mean()) < 4 * 2 / n**0.5
    assert abs(cells.std() - 2) < 4 * 2 / (2 * n) ** 0.5
    assert len(np.unique(cells)) > 0.99 * n
    # Neither do sites, layers, seeds, positions or heads repeat each other up to scale.
    overlap = np.corrcoef(cells) - np.eye(len(cells))
    assert np.abs(overlap).max() < 1 - 1e-3
    np.testing.assert_array_equal(draws[0], ji.Noise(2.0)("z", 0, zeros))


def test_noise_keeps_the_dtype():
    value = ji.Noise(1.0)("resid_pre", 0, jnp.zeros((3, 4), jnp.bfloat16))
    assert value.dtype == jnp.bfloat16
    assert jnp.abs(value).sum() > 0


@pytest.mark.parametrize(
    ("site", "head"), [*((site, EVERY) for site in SHAPES), ("z", 2), ("pattern", 2)]
)
@pytest.mark.parametrize("layer", [EVERY, 1, 2])
def test_at_confines_an_edit(site, head, layer):
    value = activation(site)
    expected = value.copy()
    if layer in (EVERY, 1) or site == "logits":
        window = [slice(None)] * value.ndim
        window[POSITION_AXIS.get(site, 0)] = slice(2, 6)
        if head != EVERY:
            window[1 - POSITION_AXIS.get(site, 0)] = head
        expected[tuple(window)] *= np.float32(0.25 * -2 + 0.75)
    edit = ji.At(ji.Scale(-2.0), layer, 2, 6, head, 0.25, site)
    np.testing.assert_allclose(apply(edit, site, value), expected, rtol=1e-6)


def test_a_head_of_a_site_without_heads_is_refused():
    with pytest.raises(ji.InputError, match="'mlp_out' has no heads"):
        ji.At(ji.Zero(), head=1, site="mlp_out")


def test_at_leaves_other_sites_alone():
    value = jnp.ones((4, 5))
    assert ji.At(ji.Zero(), site="mlp_out")("attn_out", 0, value) is value


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_strengths_of_zero_and_one_are_exact(poison):
    value = np.asarray([[0.1, poison], [-0.0, 3e-39]], np.float32)
    edited = np.asarray([[poison, 0.7], [1e30, poison]], np.float32)
    for alpha, expected in [(0.0, value), (1.0, edited)]:
        mixed = np.asarray(blend(alpha, jnp.asarray(value), jnp.asarray(edited)))
        np.testing.assert_array_equal(mixed.view(np.int32), expected.view(np.int32))
    half = blend(0.5, jnp.ones((2, 2)), jnp.full((2, 2), 3.0))
    np.testing.assert_array_equal(half, 2)


def source_of(*sites, layers=3, length=POSITIONS):
    acts = {}
    for i, site in enumerate(sites):
        stack = np.stack([activation(site, 10 * i + layer) for layer in range(layers)])
        stack = np.moveaxis(stack, 1 + POSITION_AXIS.get(site, 0), 0)[:length]
        stack = np.moveaxis(stack, 0, 1 + POSITION_AXIS.get(site, 0))
        acts[site] = jnp.asarray(stack[0] if site == "logits" else stack)
    return ji.DecoderActivations(**acts)


@pytest.mark.parametrize("site", SHAPES)
def test_interchange_takes_the_layer_of_its_source(site):
    source, value = source_of(site), activation(site, 99)
    expected = getattr(source, site) if site == "logits" else getattr(source, site)[2]
    np.testing.assert_array_equal(apply(ji.Interchange(source), site, value, 2), expected)


@pytest.mark.parametrize("site", [site for site in SHAPES if site != "cross_k"])
def test_interchange_keeps_positions_behind_its_source(site):
    value = activation(site, 99)
    for length in (1, 4):
        source = source_of(site, length=length)
        expected = value.copy()
        taken = getattr(source, site) if site == "logits" else getattr(source, site)[1]
        positions(site, expected, 0, length)[...] = taken
        for start, stop in [(0, POSITIONS), (0, 1), (3, 4), (4, 5), (2, 6), (5, 9)]:
            part = positions(site, value, start, stop)
            ours = apply(ji.Interchange(source), site, part, start=start)
            np.testing.assert_array_equal(ours, positions(site, expected, start, stop))
        with pytest.raises(ji.InputError, match="align runs of different length"):
            apply(ji.Interchange(source), site, value)


def test_interchange_of_other_sizes_is_refused():
    edit = CountedFrom(ji.Interchange(source_of("resid_pre")), -1)
    with pytest.raises(ji.InputError, match="align runs"):
        edit("resid_pre", 0, jnp.zeros((3, WIDTH + 1)))
    with pytest.raises(ji.InputError, match="lacks 'z'"):
        edit("z", 0, jnp.zeros((3, HEADS, WIDTH)))
    with pytest.raises(ji.InputError, match="from a reference run: give one"):
        ji.Interchange()("z", 0, jnp.zeros((3, HEADS, WIDTH)))


KINDS = {
    "zero": ji.Zero(),
    "scale": ji.Scale(0.5),
    "add": ji.Add(jnp.arange(5.0)),
    "noise": ji.Noise(1.0, 3),
    "whole source": ji.Interchange(source_of(*SHAPES)),
}


@pytest.mark.parametrize("site", SHAPES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("confined", [False, True])
def test_the_edit_of_later_positions_is_that_of_the_whole_run(site, kind, confined):
    edit = kind
    if confined:
        head = 1 if activation(site).ndim == 3 else EVERY
        parts = (ji.At(kind, 1, 2, 5, head, 0.5, site), ji.At(kind, 1, 4, 8, site=site))
        edit = ji.Several(parts)
    value = activation(site, 99)
    whole = apply(edit, site, value)
    for start in (0, 3, 5):
        # Encoder frames are all there at every step.
        few = (0, None) if site == "cross_k" else (start, start + 4)
        part = positions(site, value, *few)
        for origin in (0, -2):
            moved = CountedFrom(edit, jnp.asarray(origin, jnp.int32))
            ours = apply(moved, site, part, start=start + origin)
            np.testing.assert_allclose(ours, positions(site, whole, *few), atol=1e-6)
        ours = apply(edit, site, part, start=start)
        np.testing.assert_allclose(ours, positions(site, whole, *few), atol=1e-6)


def test_knocked_out_keys_do_not_move_with_the_queries():
    edit = ji.At(ji.Knockout(1, 3), start=2, stop=6, site="pattern")
    value = activation("pattern")
    ours = apply(edit, "pattern", positions("pattern", value, 4), start=4)
    np.testing.assert_array_equal(ours, positions("pattern", apply(edit, "pattern", value), 4))


def test_parts_apply_in_order():
    edit = ji.Several((ji.Scale(2.0), ji.Add(jnp.ones(5)), ji.At(ji.Scale(3.0), start=2)))
    value = activation("resid_pre")
    expected = 2 * value + 1
    expected[2:] *= 3
    np.testing.assert_allclose(apply(edit, "resid_pre", value), expected, rtol=1e-6)


def test_only_what_lacks_a_source_takes_one():
    own, other = source_of("resid_pre", "z"), source_of("z", "resid_pre")
    edit = ji.Several(
        (ji.At(ji.Interchange(), site="z"), ji.At(ji.Interchange(own)), ji.At(ji.Zero()))
    )
    assert edit.needs_reference
    z = jnp.zeros(SHAPES["z"])
    np.testing.assert_array_equal(edit("z", 1, z, EditContext(reference=other)), other.z[1])
    resid = jnp.zeros(SHAPES["resid_pre"])
    own_part = edit.parts[1]("resid_pre", 1, resid, EditContext(reference=other))
    np.testing.assert_array_equal(own_part, own.resid_pre[1])
    assert not ji.Several((ji.At(ji.Scale(1.0)),)).needs_reference


def test_edits_say_which_sites_they_change():
    at = ji.At(ji.Zero(), site="z")
    assert at.touches == {"z"}
    assert ji.Several((at, ji.At(ji.Zero(), site="pattern"))).touches == {"z", "pattern"}
    assert ji.Several((at, ji.Zero())).touches is None
    assert ji.identity.touches == frozenset()
