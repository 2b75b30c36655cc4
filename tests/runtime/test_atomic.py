"""Results that appear together: all of them, or none, and what they replace stays until then."""

import pytest
import xarray

import jaxasr_interp as ji
from helpers.files import contents
from jaxasr_interp.runtime.store import (
    new_file,
    new_folder,
    reserve,
    together,
    write_dataset,
    write_json,
)

OLD, NEW = (xarray.Dataset({name: ("x", [1.0, 2.0])}) for name in ("old", "new"))


def write(out, dataset, number):
    """A store in a folder of its own, a folder of a file, and a file."""
    write_dataset(dataset, out / "of" / "one.zarr", overwrite=True)
    with new_folder(out / "saved", overwrite=True) as partial:
        write_json(partial / "part.json", number)
        assert (partial / "part.json").exists(), "what is read again is there"
    write_json(out / "rows.json", number)


def test_all_appear_at_the_end(tmp_path):
    with together(tmp_path / "out"):
        write(tmp_path / "out", OLD, 1)
        shown = [path for path in contents(tmp_path / "out") if not path.startswith(".")]
        assert not shown
    assert set(ji.open_dataset(tmp_path / "out" / "of" / "one.zarr")) == {"old"}
    assert (tmp_path / "out" / "saved" / "part.json").read_text() == "1\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"of", "saved", "rows.json"}
    with together(tmp_path / "out"):
        write(tmp_path / "out", NEW, 2)
    assert set(ji.open_dataset(tmp_path / "out" / "of" / "one.zarr")) == {"new"}
    assert (tmp_path / "out" / "saved" / "part.json").read_text() == "2\n"
    assert (tmp_path / "out" / "rows.json").read_text() == "2\n"


def raises(error):
    raise error


def overwrite(out, then):
    with together(out):
        write(out, NEW, 2)
        then()


def test_where_the_block_fails_nothing_has_changed(tmp_path):
    out = tmp_path / "out"
    write(out, OLD, 1)
    before = contents(tmp_path)
    with pytest.raises(ji.InputError, match="out cannot be read or written: Full"):
        overwrite(out, lambda: raises(OSError(28, "Full")))
    with pytest.raises(KeyboardInterrupt):
        overwrite(out, lambda: raises(KeyboardInterrupt))
    assert contents(tmp_path) == before
    write_json(out / "rows.json", 3)
    assert (out / "rows.json").read_text() == "3\n", "no block is left open"


def test_where_the_last_cannot_be_placed_the_others_are_taken_back(tmp_path):
    out = tmp_path / "out"
    write(out, OLD, 1)
    before = contents(tmp_path)

    def vanish():
        write_json(out / "gone" / "last.json", 2)
        (out / "gone").rmdir()

    with pytest.raises(ji.InputError, match="out cannot be read or written"):
        overwrite(out, vanish)
    assert contents(tmp_path) == before


def test_a_file_takes_no_folders_place_nor_a_folder_a_files(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ji.InputError, match="Is a directory"), new_file(tmp_path / "folder") as new:
        new.touch()
    over = new_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(ji.InputError, match="Not a directory"), over:
        pass
    with pytest.raises(ji.InputError, match="folder is a folder, and the result a file"):
        reserve(tmp_path / "folder", overwrite=True, is_file=True)
    with pytest.raises(ji.InputError, match="file is a file, and the result a folder"):
        reserve(tmp_path / "file", overwrite=True)
    assert contents(tmp_path) == {"folder/kept": b"", "file": b""}
