"""Many processes on one store: shares of the work, and the workers of a Dask cluster."""

import os
import random
import signal
import socket
import sys
import threading
import time
import types

import jax.numpy as jnp
import pytest

import jaxasr_interp as ji
from helpers.dataset_sweeps import N_CLIPS, end, go, process, sweeping, swept, wait_until
from helpers.files import contents
from jaxasr_interp.runtime import cluster
from jaxasr_interp.runtime.runner import Share


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_scheduler():
    address = f"tcp://127.0.0.1:{free_port()}"
    where = ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    return process("-m", "dask", "scheduler", *where, "--no-dashboard"), address


def start_worker(address):
    how = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
    return process("-m", "dask", "worker", address, *how)


@pytest.fixture(scope="module")
def dask():
    """A scheduler and two workers, which tests may replace."""
    scheduler, address = start_scheduler()
    workers = [start_worker(address) for _ in range(2)]
    running = types.SimpleNamespace(address=address, workers=workers)
    yield running
    for one in (*running.workers, scheduler):
        end(one)


def test_shares_one_after_the_other_give_the_store_of_one_run(model, folder, tmp_path, whole):
    for number in (2, 1, 3):
        done = swept(model, folder, tmp_path, share=Share(number, 3))
    assert (done.questions, done.done) == (N_CLIPS, N_CLIPS)
    assert contents(tmp_path) == whole


def test_shares_at_the_same_time_give_the_store_of_one_run(folder, tmp_path, whole):
    """Both processes make the stores, and both may find the same texts."""
    started = [sweeping(folder, tmp_path, share=f"{i}/2") for i in (1, 2)]
    for one in started:
        go(one)
    said = [one.communicate()[0] for one in started]
    assert [one.returncode for one in started] == [0, 0], said
    assert contents(tmp_path) == whole


def test_a_worker_is_killed_and_the_others_go_on(model, folder, tmp_path, whole, dask):
    said = []

    def on_progress(done, total, phase):
        said.append((done, total, phase))
        if phase == "patches" and done and len(dask.workers) == 2:
            end(dask.workers.pop())

    done = swept(model, folder, tmp_path, scheduler=dask.address, on_progress=on_progress)
    dask.workers.append(start_worker(dask.address))
    assert (done.questions, done.done, done.problems) == (N_CLIPS, N_CLIPS, ())
    assert contents(tmp_path) == whole
    for phase in ("clips", "patches"):
        counts = [now for now, _, of in said if of == phase]
        assert counts == sorted(counts)
        assert counts[0] == 0
        assert (counts[-1], counts[-1], phase) in said
    # What is done is not done again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    swept(model, folder, tmp_path, scheduler=dask.address)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_client_is_killed_and_called_again(model, folder, tmp_path, whole, dask):
    client = sweeping(folder, tmp_path, scheduler=dask.address)
    go(client)
    finished = tmp_path / "sweep.zarr" / "done" / "c"
    wait_until(lambda: len(list(finished.glob("*"))) >= 3 or client.poll() is not None)
    assert client.poll() is None, client.stdout.read()
    os.kill(client.pid, signal.SIGKILL)
    end(client)
    done = swept(model, folder, tmp_path, scheduler=dask.address)
    assert done.done == N_CLIPS
    assert contents(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "client"])
def test_killed_at_twenty_random_moments(folder, tmp_path, whole, dask, victim):
    moments, kills, stores = random.Random(0), 0, 0
    while kills < 20:
        out = tmp_path / str(stores)
        client = sweeping(folder, out, scheduler=dask.address)
        go(client)
        # It takes about two seconds.
        time.sleep(moments.uniform(0, 2))
        if client.poll() is None:
            kills += 1
            if victim == "client":
                client.kill()
            else:
                end(dask.workers.pop(moments.randrange(2)))
                dask.workers.append(start_worker(dask.address))
        code, said = client.wait(120), client.stdout.read()
        end(client)
        if code == 0:
            assert contents(out) == whole
            stores += 1
        else:
            assert (victim, code) == ("client", -signal.SIGKILL), said
    assert stores > 0


def test_a_worker_with_another_model_is_refused(folder, tmp_path, dask):
    changed = ji.load_model(folder / "model")
    changed.decoder.pos_embed[...] = changed.decoder.pos_embed[...] + jnp.float32(1)
    with pytest.raises(ji.InputError, match=r"The worker on .* stopped: .*\(model differs\)"):
        swept(changed, folder, tmp_path, scheduler=dask.address)
    changed.name = None
    with pytest.raises(ji.InputError, match="was not loaded by a name"):
        swept(changed, folder, tmp_path, scheduler=dask.address)


def test_a_store_that_workers_do_not_reach_is_refused(model, folder, dask):
    """What is in this process's memory is on no worker."""
    with pytest.raises(ji.InputError, match=r"stopped: There is no Zarr store at memory://here"):
        swept(model, folder, "memory://here", scheduler=dask.address)


def test_without_scheduler_or_dask_one_sentence(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 0.5)
    for address in (f"tcp://127.0.0.1:{free_port()}", "nowhere://x", "tcp://127.0.0.1:x"):
        with pytest.raises(ji.InputError, match="No scheduler answers at") as refused:
            swept(model, folder, tmp_path, scheduler=address)
        assert "\n" not in str(refused.value)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ji.InputError, match=r"pip install 'jaxasr-interp\[cluster\]'"):
        swept(model, folder, tmp_path, scheduler="tcp://127.0.0.1:1")
    assert swept(model, folder, tmp_path).done == N_CLIPS


def test_a_scheduler_that_is_lost_is_said_in_a_sentence(model, folder, tmp_path):
    scheduler, address = start_scheduler()

    def kill_when_asked():
        for line in scheduler.stdout:
            if "Receive client connection" in line:
                break
        time.sleep(2)
        scheduler.kill()

    thread = threading.Thread(target=kill_when_asked)
    thread.start()
    try:
        with pytest.raises(ji.InputError, match=r"The scheduler at .* was lost\. What is done"):
            swept(model, folder, tmp_path, scheduler=address)
    finally:
        scheduler.kill()
        thread.join()
        end(scheduler)
