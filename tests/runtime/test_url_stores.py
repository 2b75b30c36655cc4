"""Stores at URLs, on a real S3 server of this machine; and what fails while stores are written."""

import logging
import resource
import shutil
import sys
import threading

import fsspec
import numpy as np
import pytest
import zarr
from moto.server import ThreadedMotoServer

import jaxasr_interp as ji
from helpers.dataset_sweeps import N_CLIPS, swept
from helpers.files import contents
from jaxasr_interp.runtime import checked, location
from jaxasr_interp.runtime.slot_store import Layout, Variable, open_slots

LAYOUT = Layout(
    kind="tried",
    rows=4,
    rows_per_chunk=2,
    variables={"value": Variable((), (), "float32"), "problem": Variable((), (), "T")},
    known={"path": (("clip",), np.asarray(list("abcd"), "T"))},
    attributes={},
)
UNIT = {"value": np.ones(2, np.float32), "problem": np.asarray(["", "silent"], "T")}


class Server:
    """An S3 server; what it holds outlives a stop."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        self.running = ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self.running.start()
        _, self.port = self.running.get_host_and_port()

    def stop(self):
        self.running.stop()


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
        fsspec.filesystem("s3").mkdir("bucket")
        yield running
    running.stop()


def at(url):
    """The bytes of every file at a URL, by path."""
    files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {name[len(path) + 1 :]: data for name, data in files.cat(files.find(path)).items()}


@pytest.mark.parametrize("url", ["s3://bucket/sweep", "memory://sweep", "file://{}/a%20folder"])
def test_a_sweep_at_a_url_has_the_files_of_one_in_a_folder(
    server, model, folder, tmp_path, whole, url
):
    url, said = url.format(tmp_path), []
    done = swept(model, folder, f"{url}/")
    assert (done.questions, done.done) == (N_CLIPS, N_CLIPS)
    if url.startswith("file"):
        assert done.path == tmp_path / "a folder" / "sweep.zarr"
        assert contents(tmp_path / "a folder") == whole
    else:
        assert done.path == f"{url}/sweep.zarr"
        assert at(url) == whole
    opened = ji.open_dataset(done.path).load()
    assert opened.done.values.all()
    swept(model, folder, url, on_progress=lambda *now: said.append(now))
    assert said == [(N_CLIPS, N_CLIPS, "clips"), (12 * N_CLIPS, 12 * N_CLIPS, "patches")]
    with pytest.raises(ji.InputError, match=r"is of another transcription \(model differs\)"):
        swept(ji.random_model(model), folder, url)
    swept(model, folder, url, overwrite=True)
    assert ji.open_dataset(done.path).load().identical(opened)


def test_an_extraction_at_a_url_is_that_of_a_folder(server, model, folder, tmp_path):
    here, there = (
        ji.extract(
            model,
            folder / "clips.tsv",
            out,
            sites=["encoder.resid_post:mean"],
            options=ji.ExtractOptions(random_seed=None),
        )
        for out in (tmp_path / "x.zarr", "s3://bucket/x.zarr")
    )
    assert there.path == "s3://bucket/x.zarr"
    first, second = ji.open_activations(here.path), ji.open_activations(there.path)
    assert first.drop_attrs().load().identical(second.drop_attrs().load())
    fsspec.filesystem("s3").pipe_file("bucket/x.zarr/frames/c/0", b"torn by somebody")
    with pytest.raises(
        ji.InputError, match=r"s3://bucket/x\.zarr is damaged: the chunk frames/c/0"
    ):
        ji.open_activations(there.path).frames.load()


@pytest.mark.parametrize("url", ["s3://bucket/{1}", "memory://{1}", "{0}/{1}"])
def test_processes_that_make_and_write_one_store_at_once_do_no_harm(server, tmp_path, url):
    place = location.locate(url.format(tmp_path, "store"))
    start, problems = threading.Barrier(4), []

    def make_and_write():
        try:
            start.wait()
            store = open_slots(place, LAYOUT, {"of": "all"})
            store.write([2, 3], UNIT)
            store.tidy()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=make_and_write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    store = open_slots(place, LAYOUT, {"of": "all"})
    assert store.done.tolist() == [False, False, True, True]
    assert store.problems == [("d", "silent")]
    with pytest.raises(ji.InputError, match=r"is of another tried \(of differs\)"):
        open_slots(place, LAYOUT, {"of": "others"})


def test_a_store_that_was_half_made_is_no_store(server):
    """Its root is written last."""
    place = "s3://bucket/half"
    files = fsspec.filesystem("s3")
    open_slots(place, LAYOUT, {"of": "all"})
    files.rm("bucket/half/zarr.json")
    assert not location.exists(place)
    with pytest.raises(ji.InputError, match=r"There is no Zarr store at s3://bucket/half"):
        ji.open_dataset(place)
    with pytest.raises(ji.InputError, match=r"There is no Zarr store at s3://bucket/half"):
        open_slots(place, LAYOUT, {"of": "all"}, must_exist=True)
    open_slots(place, LAYOUT, {"of": "all"}).write([0, 1], UNIT)
    # What a user keeps there is neither removed nor mixed with a store.
    files.pipe_file("bucket/own/notes.txt", b"mine")
    with pytest.raises(ji.InputError, match="holds other files"):
        open_slots("s3://bucket/own", LAYOUT, {"of": "all"}, overwrite=True)
    assert files.cat_file("bucket/own/notes.txt") == b"mine"


def test_a_server_that_stops_for_a_while_is_waited_for(server, model, folder, whole):
    url, up = "s3://bucket/stopped", threading.Timer(3, server.start)

    def on_progress(done, total, phase):
        if phase == "patches" and done and not up.ident:
            server.stop()
            up.start()

    done = swept(model, folder, url, on_progress=on_progress)
    up.join()
    assert done.done == N_CLIPS
    assert at(url) == whole


def test_a_server_that_is_gone_is_said_in_a_sentence(server, model, folder, whole, monkeypatch):
    monkeypatch.setattr(checked, "_WAITS", (0.01,))
    url = "s3://bucket/gone"

    def on_progress(done, total, phase):
        if phase == "patches" and done:
            server.stop()

    with pytest.raises(ji.InputError, match=r"gone/sweep.zarr cannot be .*What is done") as gone:
        swept(model, folder, url, on_progress=on_progress)
    assert "\n" not in str(gone.value)
    with pytest.raises(ji.InputError, match=r"gone/texts.zarr cannot be read"):
        swept(model, folder, url)
    server.start()
    assert swept(model, folder, url).done == N_CLIPS
    assert at(url) == whole


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://nowhere/x", "The specified bucket does not exist"),
        ("unheard://x/y", "Protocol not known: unheard"),
        ("s3://bucket/x", r"Install s3fs .*pip install 'jaxasr-interp\[cloud\]'"),
    ],
)
def test_a_url_that_cannot_be_used_is_said_in_a_sentence(server, url, why, monkeypatch):
    if "Install" in why:
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
        monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ji.InputError, match=why) as refused:
        open_slots(url, LAYOUT, {"of": "all"})
    assert "\n" not in str(refused.value)


def test_empty_chunks_are_written_whatever_the_setting_of_other_threads(tmp_path):
    with zarr.config.set({"array.write_empty_chunks": False}):
        store = open_slots(tmp_path / "x.zarr", LAYOUT, {"of": "all"})
        nothing = {"value": np.full(2, np.nan, np.float32), "problem": np.asarray(["", ""], "T")}
        store.write([0, 1], nothing)
    assert (tmp_path / "x.zarr/value/c/0").is_file()
    assert store.problems == []
    assert np.isnan(ji.open_dataset(tmp_path / "x.zarr").value[:2]).all()


def test_a_folder_that_is_removed_while_it_is_written_is_said_in_a_sentence(
    model, folder, tmp_path, whole
):
    def on_progress(done, total, phase):
        if phase == "patches" and done:
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(ji.InputError, match=r"sweep\.zarr was removed while it was written"):
        swept(model, folder, tmp_path / "out", on_progress=on_progress)
    swept(model, folder, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_a_folder_that_took_the_name_of_a_store_is_left_alone(tmp_path):
    path = tmp_path / "x.zarr"
    store = open_slots(path, LAYOUT, {"of": "all"})
    shutil.rmtree(path)
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(ji.InputError, match="was removed while it was written"):
        store.write([0, 1], UNIT)
    assert contents(path) == {"thesis.txt": b"mine"}


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    """A limit on the size of files fails writes as a full disk does."""
    store = open_slots(tmp_path / "x.zarr", LAYOUT, {"of": "all"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(ji.InputError, match=r"x\.zarr cannot be .*: File too large\."):
            store.write([0, 1], UNIT)
        with pytest.raises(ji.InputError, match=r"y\.zarr cannot be .*: File too large\."):
            open_slots(tmp_path / "y.zarr", LAYOUT, {"of": "all"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zarr"]
    assert not store.done.any()
    store.write([0, 1], UNIT)
    assert store.done.tolist() == [True, True, False, False]
