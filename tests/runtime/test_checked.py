"""No damage to what was written is read as other numbers: bits are flipped and chunks removed."""

import gc
import shutil

import jax
import numpy as np
import pytest
import soundfile
import xarray

import jaxasr_interp as ji
from helpers.files import sound
from helpers.golden import GOLDEN
from jaxasr_interp.cli import main
from jaxasr_interp.runtime.store import write_dataset

FLIPS, REMOVED = 300, 100
ORBAX_LEAVES_TASKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Where one of its reads fails, it leaves the others to themselves."""


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, tiny_tokenizer):
    """A folder with an activation store of nine clips, one of which cannot be read."""
    folder, rows = tmp_path_factory.mktemp("extracted"), []
    for i in range(9):
        path = folder / f"{i}.wav"
        if i != 1:
            soundfile.write(path, sound(i, 1000), 16000)
        rows.append({"path": str(path), "text": "ab", "lang": "en", "speaker": "ab"[i % 2]})
    sites = ["encoder.resid_post:mean", "decoder.z:all", "decoder.resid_post:end"]
    model = ji.load_model(GOLDEN / "tiny_random")
    model.tokenizer = tiny_tokenizer
    options = ji.ExtractOptions(batch_size=4)
    ji.extract(model, rows, folder / "x.zarr", sites=sites, options=options)
    return folder


@pytest.fixture
def store(extracted, tmp_path):
    """The test's own copy of the store."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    return tmp_path / "x.zarr"


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flips(folder, count, seed=0):
    """Flip one bit of one file at a time: first of each file, then of any, by length."""
    rng, files = np.random.default_rng(seed), files_of(folder)
    sizes = np.array([file.stat().st_size for file in files])
    chosen = [*range(len(files)), *rng.choice(len(files), count, p=sizes / sizes.sum())][:count]
    for file in (files[i] for i in chosen):
        content = file.read_bytes()
        damaged = bytearray(content)
        bit = int(rng.integers(8 * len(content)))
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        yield f"bit {bit} of {file.relative_to(folder)}"
        file.write_bytes(content)


def refusal(read, path):
    """What reading says, `None` if it finds nothing wrong."""
    try:
        read(path)
    except ji.InputError as error:
        return str(error)
    return None


def expect_refused(path, read, what):
    said = refusal(read, path)
    assert said is not None, f"{what} went unseen"
    assert str(path) in said, what
    assert "\n" not in said, what


def test_every_flipped_bit_of_an_activation_store_is_reported(store):
    whole = ji.open_activations(store).load()
    assert whole.sizes["clip"] == 8
    seen = 0
    for what in flips(store, FLIPS):
        expect_refused(store, lambda path: ji.open_activations(path).load(), what)
        seen += 1
    assert seen == FLIPS
    assert ji.open_activations(store).load().identical(whole)


def test_every_removed_chunk_is_reported(store):
    chunks = [file for file in files_of(store) if "c" in file.relative_to(store).parts[1:]]
    done = 0
    while done < REMOVED:
        for file in chunks:
            content = file.read_bytes()
            file.unlink()
            expect_refused(
                store, lambda path: ji.open_activations(path).load(), file.relative_to(store)
            )
            file.write_bytes(content)
            done += 1
    for file in files_of(store):
        if file.name == "zarr.json":
            content = file.read_bytes()
            file.unlink()
            expect_refused(store, ji.open_activations, file)
            file.write_bytes(content)
    ji.open_activations(store).load()


@pytest.mark.parametrize("left", [0, 1, 3, 4, 5])
def test_chunks_that_were_cut_off_are_reported(store, left):
    for file in files_of(store):
        content = file.read_bytes()
        file.write_bytes(content[:left])
        expect_refused(store, lambda path: ji.open_activations(path).load(), file)
        if "c" in file.relative_to(store).parts[1:]:
            file.write_bytes(bytes(left))
            expect_refused(store, lambda path: ji.open_activations(path).load(), file)
        file.write_bytes(content)


@pytest.mark.parametrize("kind", ["bit", "chunk"])
def test_the_command_line_says_so_in_a_sentence(store, tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    chunk = store / "encoder.resid_post.mean" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 8
    chunk.unlink()
    if kind == "bit":
        chunk.write_bytes(content)
    probe = ["probe", store, "--target", "speaker", "--folds", "3"]
    for command in (["similarity", store], probe):
        with pytest.raises(SystemExit) as end:
            main([*map(str, command), "--out", "out"])
        assert end.value.code == 2
        errors = capsys.readouterr().err
        assert "x.zarr is " + ("damaged" if kind == "bit" else "incomplete") in errors
        assert len(errors.splitlines()) == 1


def test_a_damaged_extraction_is_not_gone_on_with(store, tiny32, tmp_path):
    rows = [{"path": str(tmp_path / "0.wav"), "text": "ab", "lang": "en", "speaker": "a"}]
    content = (store / "zarr.json").read_bytes()
    (store / "zarr.json").write_bytes(content.replace(b"tiny_random", b"tiny_randon", 1))
    with pytest.raises(ji.InputError, match=r"x\.zarr is damaged"):
        ji.extract(tiny32, rows, store)
    ji.extract(tiny32, rows, store, sites=["encoder.resid_post:mean"], overwrite=True)
    assert ji.open_activations(store).sizes["clip"] == 1


def test_results_are_checked_too(tmp_path):
    dataset = xarray.Dataset(
        {
            "patched": (("layer", "pos"), np.arange(12.0).reshape(3, 4)),
            "unknown": (("layer", "pos"), np.full((3, 4), np.nan)),
            "text": ("pos", np.array(["a", "", "cd", "é"])),
            "total": ((), 1.5),
        },
        coords={"layer": [0, 1, 2]},
        attrs={"model": "tiny"},
    )
    path = write_dataset(dataset, tmp_path / "sweep.zarr")
    kept = ji.open_dataset(path).load()
    xarray.testing.assert_equal(kept, dataset)
    assert xarray.open_zarr(path, consolidated=False).load().identical(kept)
    for what in flips(path, 300):
        expect_refused(path, lambda path: ji.open_dataset(path).load(), what)
    for file in files_of(path):
        content = file.read_bytes()
        file.unlink()
        expect_refused(path, lambda path: ji.open_dataset(path).load(), file)
        file.write_bytes(content)
    with pytest.raises(ji.InputError, match="There is no Zarr store"):
        ji.open_dataset(tmp_path)
    dataset.drop_vars("text").to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(ji.InputError, match="holds no checksums"):
        ji.open_dataset(tmp_path / "other.zarr")


@ORBAX_LEAVES_TASKS
def test_a_saved_model_is_whole_or_refused(tiny32, tmp_path):
    path = ji.save_model(tiny32, tmp_path / "model")

    def content(model):
        return [*map(np.asarray, jax.tree.leaves(model)), model.config, model.generation]

    kept = content(tiny32)
    for what in flips(path, 60):
        try:
            found = content(ji.load_model(path))
        except ji.InputError:
            continue
        for one, other in zip(found, kept, strict=True):
            assert np.array_equal(one, other), what
    gc.collect()


@ORBAX_LEAVES_TASKS
def test_saved_probes_are_whole_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 24, 3)).astype(np.float32), np.arange(24) % 2
    probes = ji.fit_probes(x, {"side": y})["side"]
    path = ji.save_probes(probes, tmp_path / "probes")
    kept = list(map(np.asarray, jax.tree.leaves(probes.probe)))
    for what in flips(path, 60):
        try:
            found = ji.load_probes(path)
        except ji.InputError:
            continue
        assert found.options == probes.options, what
        for one, other in zip(jax.tree.leaves(found.probe), kept, strict=True):
            assert np.array_equal(one, other), what
    gc.collect()
