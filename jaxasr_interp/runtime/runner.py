"""Running long work unit by unit: what is done is skipped, and what comes next is read ahead.

A unit is some rows of a store that are computed together. Its arrays are a function of the work and
the unit alone, so units may run in any order, in any process, and again: the store is the same.
"""

import abc
import collections
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Shaped

from jaxasr_interp.errors import InputError, check_least
from jaxasr_interp.runtime.copies import side_by_side
from jaxasr_interp.runtime.progress import Progress
from jaxasr_interp.runtime.slot_store import SlotStore

_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Unit:
    """Rows of a store that are computed together.

    Attributes:
        rows: numbers of the rows.
        size: amount of work, in the units of the progress that is shown.
        inputs: what it reads and prepares, such as the numbers of its clips; consecutive units of
            the same inputs are faster if one process runs them one after the other.
    """

    rows: tuple[int, ...]
    size: int = 1
    inputs: tuple[int, ...] | None = None


def units_of(n_rows: int, size: int) -> list[Unit]:
    """Cut a table into units of so many rows; the last one may have fewer."""
    starts = range(0, n_rows, size)
    ranges = [tuple(range(start, min(start + size, n_rows))) for start in starts]
    return [Unit(rows, len(rows)) for rows in ranges]


def by_inputs(units: Sequence[Unit]) -> list[list[Unit]]:
    """Group consecutive units of the same inputs."""
    groups: list[list[Unit]] = []
    for unit in units:
        if groups and unit.inputs is not None and unit.inputs == groups[-1][-1].inputs:
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


class Work[Loaded](abc.ABC):
    """The computation of a store's units."""

    @abc.abstractmethod
    def load(self, unit: Unit) -> Loaded:
        """Read the inputs of a unit; called in a thread, ahead of `run`."""

    def on_copies(self) -> "Sequence[Work[Loaded]]":
        """Return the same work on each copy of its model, so that the copies share the units.

        Work that spreads a unit over all devices is the only one, as by default.
        """
        return [self]

    @abc.abstractmethod
    def run(self, unit: Unit, loaded: Loaded) -> Mapping[str, Shaped[np.ndarray, "row ..."]]:
        """Compute the arrays of a unit's rows."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of all units that one of several machines computes.

    Of the groups of units that share inputs it is every `count`-th, from `number`.

    Attributes:
        number: number of the part, from 1.
        count: number of parts.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self):
        if not 1 <= self.number <= self.count:
            raise InputError(f"There is no part {self.number} among {self.count}: count from 1.")

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read `2/8`.

        Raises:
            InputError: it cannot be read, or there is no such part.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"The shard {text!r} cannot be read: write 1/8 to 8/8.")
        return cls(int(match[1]), int(match[2]))

    def of(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Choose the units of this part."""
        groups = by_inputs(units)[self.number - 1 :: self.count]
        return [unit for group in groups for unit in group]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How work is run; no number depends on it.

    Attributes:
        share: the part of the units that this machine computes.
        batch_size: number of questions that run together, rounded up so that they can be divided
            evenly among the devices; by default one that suits the devices.
        devices: number of devices of this process that the work is spread over; by default all.
        tensor_parallel: number of devices that share a copy of the model; see `replicate`.
        overwrite: replace existing stores.
        scheduler: address of a Dask scheduler whose workers compute the units, such as
            `"tcp://host:8786"`; by default this process computes them.
    """

    share: Share = Share()
    batch_size: int | None = None
    devices: int | None = None
    tensor_parallel: int | None = None
    overwrite: bool = False
    scheduler: str | None = None

    def __post_init__(self):
        check_least(1, batch_size=self.batch_size)


def not_done(store: SlotStore, units: Sequence[Unit]) -> list[Unit]:
    """Choose the units that are not done."""
    is_done = store.done
    return [unit for unit in units if not is_done[list(unit.rows)].all()]


def run_units[Loaded](
    store: SlotStore,
    units: Sequence[Unit],
    work: Work[Loaded],
    *,
    phase: str,
    on_progress: Progress | None = None,
) -> None:
    """Compute the units that are not done and write them to the store.

    They run one after the other, or side by side on the copies of the work's model.

    Args:
        store: the store.
        units: the units to compute.
        work: reads and computes a unit.
        phase: what is counted, such as `"patches"`.
        on_progress: called at the start and after each unit with the amount of work done, how much
            there is, and `phase`.
    """
    total = sum(unit.size for unit in units)
    missing = not_done(store, units)
    done = total - sum(unit.size for unit in missing)
    say: Callable[[int, int, str], None] = on_progress or (lambda done, total, phase: None)
    say(done, total, phase)
    counting = threading.Lock()

    def run(own: Work[Loaded], given: tuple[Unit, Loaded]) -> None:
        nonlocal done
        unit, loaded = given
        if not store.is_done(unit.rows):
            store.write(unit.rows, own.run(unit, loaded))
        with counting:
            done += unit.size
            say(done, total, phase)

    side_by_side(work.on_copies(), run, _read_ahead(missing, work.load))
    store.tidy()


def _read_ahead[Loaded](
    units: Sequence[Unit], load: Callable[[Unit], Loaded]
) -> Iterator[tuple[Unit, Loaded]]:
    """Yield units with their inputs in order; a thread reads the next ones meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting: collections.deque[tuple[Unit, Future[Loaded]]] = collections.deque()
        try:
            for unit in units:
                waiting.append((unit, pool.submit(load, unit)))
                if len(waiting) > _AHEAD:
                    ahead, loaded = waiting.popleft()
                    yield ahead, loaded.result()
            while waiting:
                ahead, loaded = waiting.popleft()
                yield ahead, loaded.result()
        finally:
            for _, loaded in waiting:
                loaded.cancel()
