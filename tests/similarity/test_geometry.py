"""CKA and spectra of a store against all of its rows at once in numpy, and what they ignore."""

import itertools
import json

import numpy as np
import pytest
import xarray

import jaxasr_interp as ji
from jaxasr_interp.extraction import representations
from jaxasr_interp.runtime.store import write_dataset
from jaxasr_interp.similarity.cka import HsicSums

CLIPS, LAYERS, WIDTH, FRAMES = 37, 3, 8, 5
MEAN, HEADS, FRAME = "encoder.resid_post.mean", "decoder.z.end", "encoder.mlp_out.all"


@pytest.fixture(params=[2000, 1 << 28], ids=["in blocks", "at once"])
def dataset(tmp_path, request, monkeypatch):
    """A store on disk, read in small blocks or whole; far from 0, layers unlike each other."""
    monkeypatch.setattr(representations, "_BLOCK_BYTES", request.param)
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(CLIPS, 1, WIDTH))

    def like_it(shape, share):
        own = generator.normal(size=shape) * np.arange(1, shape[1] + 1)[:, None]
        return 300 + share * shared + own

    frames = np.stack([like_it((CLIPS, LAYERS, WIDTH), 1) for _ in range(FRAMES)], 2)
    lengths = generator.integers(0, FRAMES + 1, CLIPS)
    for clip, length in enumerate(lengths):
        frames[clip, :, length:] = np.nan
    variables = {
        MEAN: (("clip", "layer", "d_model"), like_it((CLIPS, LAYERS, WIDTH), 2)),
        HEADS: (
            ("clip", "decoder_layer", "head", "d_head"),
            like_it((CLIPS, 2, WIDTH), 3).reshape(CLIPS, 2, 2, WIDTH // 2),
        ),
        FRAME: (("clip", "layer", "frame", "d_model"), frames),
        "encoder.ln_final.mean": (("clip", "d_model"), like_it((CLIPS, 1, WIDTH), 1)[:, 0]),
        "gender": ("clip", np.array(["F"] * CLIPS)),
    }
    xarray.Dataset(variables).to_zarr(tmp_path / "x.zarr", zarr_format=3, consolidated=False)
    return xarray.open_dataset(tmp_path / "x.zarr", engine="zarr", consolidated=False, chunks=None)


def whole(dataset, name):
    """All rows that are known: `[layer, row, feature]`."""
    values = dataset[name].values.astype(np.float64)
    if name == FRAME:
        values = values.transpose(1, 0, 2, 3).reshape(LAYERS, -1, WIDTH)
        return values[:, ~np.isnan(values).any((0, 2))]
    return values.reshape(CLIPS, -1, WIDTH).swapaxes(0, 1)


def hsic(x, y, unbiased):
    """From kernel matrices: Gretton et al. 2005, and equation 5 of Song et al. 2012."""
    k, m = x @ x.T, y @ y.T
    n = len(k)
    if not unbiased:
        centre = np.eye(n) - 1 / n
        return np.trace(k @ centre @ m @ centre) / (n - 1) ** 2
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def alignment(x, y, unbiased=True):
    own = hsic(x, x, unbiased) * hsic(y, y, unbiased)
    return hsic(x, y, unbiased) / own**0.5


def held(**layers):
    """A store in memory of variables `[clip, layer, d_model]`, each with layers of its own."""
    names = zip(("encoder", "decoder"), layers.items(), strict=False)
    return xarray.Dataset(
        {f"{s}.{k}.mean": (("clip", f"{s}_layer", "d_model"), v) for s, (k, v) in names}
    )


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(
    ("first", "second"),
    [(MEAN, None), (FRAME, None), (MEAN, HEADS), (HEADS, "encoder.ln_final.mean")],
)
def test_cka_is_that_of_kernel_matrices(dataset, first, second, unbiased):
    seen = []
    found = ji.cka(
        dataset, first, second, unbiased=unbiased, on_progress=lambda *done: seen.append(done)
    )
    x, y = whole(dataset, first), whole(dataset, second or first)
    expected = [[alignment(a - 300, b - 300, unbiased) for b in y] for a in x]
    np.testing.assert_allclose(found.cka, expected, rtol=1e-9, atol=1e-12)
    assert found.rows == x.shape[1]
    assert seen[-1][:2] == (CLIPS, CLIPS)
    if second is None:
        np.testing.assert_allclose(np.diag(found.cka), 1, rtol=1e-12)
        np.testing.assert_array_equal(found.cka, found.cka.T)


def test_the_unbiased_estimate_is_the_mean_over_all_fours_of_rows():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 7, 3))
    k, m = x @ x.T, y @ y.T
    fours = itertools.permutations(range(7), 4)
    expected = np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in fours])
    sums = HsicSums(3, 3)
    for rows in (slice(0, 2), slice(2, 2), slice(2, 7)):
        sums.add(x[rows], y[rows])
    assert sums.hsic(True) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
def test_turning_scaling_and_moving_leave_it(unbiased):
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(2, 20, 5))
    turn, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    stretched = x * np.arange(1, 6)
    layers = np.stack([x, 7 * x @ turn + 3, stretched], 1)
    found = ji.cka(held(a=layers, b=y[:, None]), "encoder.a.mean", unbiased=unbiased).cka
    np.testing.assert_allclose(found[:2, :2], 1, rtol=1e-10)
    assert found[0, 2] < 0.95
    np.testing.assert_allclose(found[0], found[1], rtol=1e-10)
    other = ji.cka(
        held(a=layers, b=y[:, None]), "encoder.a.mean", "decoder.b.mean", unbiased=unbiased
    )
    np.testing.assert_allclose(other.cka[0], other.cka[1], rtol=1e-10)


def test_unrelated_noise_is_alike_only_to_the_biased_estimate():
    noise = np.random.default_rng(3).normal(size=(40, 6, 40))
    apart = ~np.eye(6, dtype=bool)
    biased = ji.cka(held(a=noise), "encoder.a.mean", unbiased=False).cka[apart]
    unbiased = ji.cka(held(a=noise), "encoder.a.mean").cka[apart]
    assert biased.min() > 0.3
    assert np.abs(unbiased).max() < 0.15
    assert abs(unbiased.mean()) < 0.03


def test_little_memory_takes_more_passes_and_gives_the_same():
    data = held(a=np.random.default_rng(4).normal(size=(30, 4, 6)))
    seen = []
    whole = ji.cka(data, "encoder.a.mean")
    parts = ji.cka(
        data, "encoder.a.mean", memory=3 * 6 * 6 * 8, on_progress=lambda *done: seen.append(done)
    )
    np.testing.assert_allclose(parts.cka, whole.cka, rtol=1e-10)
    assert seen == [(30 * i, 30 * 4, "encoder.a.mean") for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", [MEAN, HEADS, FRAME, "encoder.ln_final.mean"])
def test_the_spectrum_is_that_of_singular_values(dataset, name):
    found = ji.spectrum(dataset, name)
    rows = whole(dataset, name)
    sizes = np.linalg.svd(rows - rows.mean(1, keepdims=True), compute_uv=False)
    np.testing.assert_allclose(found.variances, sizes**2 / (rows.shape[1] - 1), rtol=1e-8)
    shares = sizes / sizes.sum(1, keepdims=True)
    expected = np.exp(-(shares * np.log(shares)).sum(1))
    np.testing.assert_allclose(found.effective_rank, expected, rtol=1e-9)
    assert found.rows == rows.shape[1]


def test_the_effective_rank_counts_equal_directions():
    generator = np.random.default_rng(5)
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    padded = np.concatenate([corners, np.zeros((6, 4))], 1)
    turn, _ = np.linalg.qr(generator.normal(size=(7, 7)))
    line = np.outer(np.arange(6.0), turn[0])
    still = np.ones((6, 7))
    found = ji.spectrum(held(a=np.stack([padded @ turn, line, still], 1)), "encoder.a.mean")
    np.testing.assert_allclose(found.effective_rank[:2], [3, 1], rtol=1e-5)
    assert np.isnan(found.effective_rank[2])
    dataset = found.to_dataset()
    assert dataset.variance.dims == ("layer", "component")
    assert dataset.effective_rank.dims == ("layer",)
    assert dataset.attrs == {"variable": "encoder.a.mean", "rows": 6}


def test_a_layer_without_differences_is_like_none():
    values = np.random.default_rng(6).normal(size=(9, 2, 3))
    values[:, 1] = 5
    found = ji.cka(held(a=values), "encoder.a.mean")
    assert found.cka[0, 0] == pytest.approx(1)
    assert np.isnan(found.cka[1]).all()
    dataset = found.to_dataset()
    assert dataset.cka.dims == ("first_layer", "second_layer")
    assert dataset.attrs["estimator"] == "unbiased"


@pytest.mark.parametrize("dataset", [1 << 28], indirect=True)
def test_bad_input_is_named(dataset):
    for call, message in (
        (lambda: ji.cka(dataset, "encoder.q.mean"), "no 'encoder.q.mean': choose one of"),
        (lambda: ji.spectrum(dataset, "gender"), "gender holds no activations"),
        (lambda: ji.cka(dataset, MEAN, FRAME), "rows by clip .37., encoder.mlp_out.all by clip"),
        (lambda: ji.cka(dataset.isel(clip=[0, 1, 2]), MEAN), "There are 3 rows"),
        (lambda: ji.spectrum(dataset.isel(clip=[0]), MEAN), "has 1 rows"),
        (lambda: ji.spectrum(dataset.isel(clip=[]), MEAN), "has 0 rows"),
        (lambda: ji.cka(dataset.isel(clip=[]), MEAN), "There are 0 rows"),
    ):
        with pytest.raises(ji.InputError, match=message):
            call()


@pytest.mark.parametrize("dataset", [1 << 28], indirect=True)
def test_the_command_line_compares_a_store(dataset, invoke, tmp_path):
    """Clips that were left out stay out; controls are drawn beside."""
    random = dataset[MEAN] * 2 + np.arange(CLIPS)[:, None, None]
    left_out = (np.arange(CLIPS) == 3) | (np.arange(CLIPS) >= 30)
    full = dataset.assign({f"random.{MEAN}": random, "done": ("clip", np.ones(CLIPS, bool))})
    full = full.assign(problem=("clip", np.where(left_out, "cut off", "")))
    full.attrs |= {"extraction": json.dumps({}), "model": "tiny", "dtype": "float64"}
    write_dataset(full.load().drop_encoding(), tmp_path / "acts.zarr")
    command = ["similarity", tmp_path / "acts.zarr", "--out", tmp_path / "out"]
    sites = ["--site", MEAN, "--site", FRAME, "--site", HEADS]
    code, printed, errors = invoke(*command, *sites)
    assert code == 0, errors
    usable = dataset.isel(clip=np.flatnonzero(~left_out))
    pictures = sorted(path.relative_to(tmp_path / "out") for path in tmp_path.rglob("out/*/*.png"))
    names = [MEAN, FRAME, HEADS, f"{MEAN}-{HEADS}"]
    expected = [f"cka/{n}.png" for n in names] + [f"spectrum/{n}.png" for n in names[:3]]
    assert [str(path) for path in pictures] == sorted(expected)
    for name in names[:3]:
        folder = tmp_path / "out"
        kept = xarray.open_zarr(folder / "spectrum" / f"{name}.zarr", consolidated=False)
        np.testing.assert_allclose(kept.variance, ji.spectrum(usable, name).variances)
        assert kept.attrs["model"] == "tiny"
    across = xarray.open_zarr(folder / "cka" / f"{MEAN}-{HEADS}.zarr", consolidated=False)
    np.testing.assert_allclose(across.cka, ji.cka(usable, MEAN, HEADS).cka)
    ranks = ji.spectrum(usable, MEAN).effective_rank
    assert f"{ranks[1]:.1f}" in printed
    assert "29 rows" in printed
    assert invoke(*command)[0] == 2
    options = ["--overwrite", "--json", "--site", MEAN, "--no-unbiased"]
    code, printed, errors = invoke(*command, *options)
    assert code == 0, errors
    first, second = json.loads(printed)
    np.testing.assert_allclose(first["cka"], ji.cka(usable, MEAN, unbiased=False).cka)
    np.testing.assert_allclose(second["effective_rank"], ranks)
