"""Running a job's units in this process, or on the workers of a Dask cluster.

A worker opens the job once, from a small description, and keeps it. Units that share their inputs
are computed and written to the store by one worker; the process that asks for them only waits.
A worker whose model or clips are others is refused by the identity in the store. Units of lost
workers go to other workers.
"""

import abc
import contextlib
import dataclasses
import functools
import logging
import pickle
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.runner import RunOptions, Unit, Work, by_inputs, not_done, run_units
from jaxasr_interp.runtime.slot_store import SlotStore

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_CONNECT = 10
_RETRIES = 2
_OPENING, _RUNNING = threading.Lock(), threading.Lock()


@dataclasses.dataclass(frozen=True)
class OpenJob:
    """A job with everything that it needs to run.

    Attributes:
        store: the store.
        units: the units to compute.
        work: reads and computes a unit.
    """

    store: SlotStore
    units: Sequence[Unit]
    work: Work[Any]


class Job(abc.ABC):
    """A description of work, which can be pickled, and opened in any process."""

    @abc.abstractmethod
    def open(self, *, must_exist: bool = False) -> OpenJob:
        """Load what the work needs, and make or open the store.

        Args:
            must_exist: only open the store, which another process has made.

        Raises:
            InputError: something cannot be read, or the store is of other work.
        """


def run_job(
    job: Job, options: RunOptions, *, phase: str, on_progress: Progress | None = None
) -> OpenJob:
    """Open a job, and compute its units that are not done.

    Args:
        job: the job.
        options: says whether the units run on a cluster.
        phase: what is counted, such as `"patches"`.
        on_progress: called at the start and after each unit.

    Returns:
        The job as it is open in this process.

    Raises:
        InputError: the work cannot be done; what is done stays in the store.
    """
    opened = job.open()
    if options.scheduler is None:
        run_units(opened.store, opened.units, opened.work, phase=phase, on_progress=on_progress)
    else:
        _run_on_cluster(job, opened, options.scheduler, phase, on_progress)
    return opened


def _run_on_cluster(
    job: Job, opened: OpenJob, scheduler: str, phase: str, on_progress: Progress | None
) -> None:
    """Hand the units that are not done to a cluster, and wait for them."""
    missing = not_done(opened.store, opened.units)
    total = sum(unit.size for unit in opened.units)
    done = total - sum(unit.size for unit in missing)
    if on_progress is not None:
        on_progress(done, total, phase)
    if not missing:
        return
    with _connected(scheduler) as client:
        from distributed import as_completed

        # The largest go first, so that all workers end at about the same time.
        groups = sorted(by_inputs(missing), key=_size, reverse=True)
        # The names are what the dashboard shows; no two calls may have the same ones.
        call = uuid.uuid4().hex[:8]
        names = [f"{phase}-{call}-rows-{_rows(units)}" for units in groups]
        futures = client.map(
            _run_on_worker, groups, description=_pickled(job), key=names, retries=_RETRIES
        )
        sizes = {future.key: _size(units) for future, units in zip(futures, groups, strict=True)}
        for future, problem in as_completed(futures, loop=client.loop, with_results=True):
            if isinstance(problem, CancelledError):
                raise problem
            if problem:
                raise InputError(problem)
            done += sizes[future.key]
            if on_progress is not None:
                on_progress(done, total, phase)


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator["Client"]:
    """Connect to a scheduler.

    Raises:
        InputError: Dask is not installed, the scheduler does not answer or is lost, or a unit ended
            every worker that took it.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError(
            "A cluster needs Dask, which is not installed: pip install 'jaxasr-interp[cluster]'."
        ) from None
    try:
        client = Client(scheduler, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError):
        raise InputError(
            f"No scheduler answers at {scheduler!r}: start one with `dask scheduler`, and give the "
            "address that it prints."
        ) from None
    # It logs tracebacks of what is said below in a sentence.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        with client:
            yield client
    except KilledWorker as error:
        raise InputError(
            f"The unit {error.task} ended every worker that took it: see their logs, and whether "
            "they have enough memory. What is done stays; the same call goes on."
        ) from None
    except CancelledError:
        raise InputError(
            f"The scheduler at {scheduler!r} was lost. What is done stays; the same call goes on."
        ) from None


def _pickled(job: Job) -> bytes:
    """Describe a job to workers."""
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError(
            f"The clips cannot be sent to workers ({error}): give them as a manifest."
        ) from None


def _size(units: Sequence[Unit]) -> int:
    return sum(unit.size for unit in units)


def _rows(units: Sequence[Unit]) -> str:
    """Name some units by their first and last row."""
    rows = [row for unit in units for row in unit.rows]
    return str(rows[0]) if len(rows) == 1 else f"{min(rows)}-to-{max(rows)}"


def _run_on_worker(units: Sequence[Unit], description: bytes) -> str:
    """Compute and write units of the same inputs; return why that cannot be done, or `""`."""
    try:
        with _OPENING:
            job = _opened(description)
        missing = [unit for unit in units if not job.store.is_done(unit.rows)]
        loaded = [job.work.load(unit) for unit in missing]
        # A worker's other threads read and write meanwhile; the devices are used in turn.
        with ThreadPoolExecutor(1) as writing, _RUNNING:
            written = [
                writing.submit(job.store.write, unit.rows, job.work.run(unit, inputs))
                for unit, inputs in zip(missing, loaded, strict=True)
            ]
        for one in written:
            one.result()
    except InputError as error:
        # Tried again, it would be the same.
        return f"The worker on {socket.gethostname()} stopped: {error}"
    return ""


@functools.lru_cache(maxsize=2)
def _opened(description: bytes) -> OpenJob:
    """Open a job on a worker, which keeps the last ones."""
    return pickle.loads(description).open(must_exist=True)
