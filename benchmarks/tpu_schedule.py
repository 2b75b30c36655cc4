"""The static time of a program compiled for a TPU, read from the compiler's final schedule.

An instruction takes its instruction bundles, one a cycle, or the time in which what it reads and
writes passes between the chip and its memory, whichever is longer; a loop takes its body as often
as it runs. Nothing waits in this estimate, and nothing overlaps: it is good for comparing two forms
of one program, and is no measurement.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"
"""For `LIBTPU_INIT_ARGS` before JAX is imported: the folder for the schedules."""
CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "s32": 4, "u32": 4, "f32": 4}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*((?:> ?)*)")
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "iota",
    "opt-barrier", "optimization-barrier", "conditional",
}  # fmt: skip
_SLICES = ("dynamic-slice", "gather", "slice")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
        name: its name.
        op: its kind.
        arrays: dtype, shape and layout of each array that it makes.
        operands: names of its operands.
        rest: its attributes.
    """

    name: str
    op: str
    arrays: list[tuple[str, tuple[int, ...], str]]
    operands: list[str]
    rest: str

    @property
    def bytes(self) -> int:
        """Bytes of what it makes in main memory."""
        return sum(
            _BYTES.get(dtype, 4) * math.prod(shape)
            for dtype, shape, layout in self.arrays
            if "S(1)" not in layout
        )

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


type Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one instruction takes in all its runs.

    Attributes:
        instruction: the instruction.
        times: how often it runs.
        cycles: bundles of all runs.
        bytes: what passes between the chip and its memory.
    """

    instruction: Instruction
    times: float
    cycles: float
    bytes: float

    def seconds(self, clock: float, bandwidth: float) -> float:
        """The longer of both."""
        return max(self.cycles / clock, self.bytes / bandwidth)


def costs(
    text: str, folder: Path, trips: Callable[[int], float], grids: dict[tuple[int, ...], int]
) -> Iterator[Cost]:
    """Yield what each instruction of a program takes.

    Args:
        text: the program, from `compiled.as_text()`.
        folder: the schedules, see `DUMP`.
        trips: how often a loop of unknown length runs, by the number of loops around it.
        grids: the steps of each Pallas kernel, by the shape of its result.
    """
    computations, entry = _parse(text)
    schedules = _bundles(folder)

    def walk(name: str, times: float, depth: int) -> Iterator[Cost]:
        computation = computations[name]
        for one in computation.values():
            if one.op == "while":
                body = one.attribute("body")
                length = _length(computations, one)
                inner = trips(depth) if length is None else length
                yield from walk(body or "", times * inner, depth + 1)
            elif one.op == "call":
                yield from walk(one.attribute("to_apply") or "", times, depth)
            elif one.op not in _FREE and not one.op.endswith("-done"):
                cycles = _cycles(one, schedules.get(one.name), grids)
                moved = _read(computations, computation, one) + one.bytes
                if one.op.endswith("-start"):
                    cycles, moved = 0, 2 * min(moved, _made(one))
                yield Cost(one, times, cycles * times, moved * times)

    yield from walk(entry, 1, 0)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif (found := _LINE.match(line)) and current:
            _, name, result, op, operands, rest = found.groups()
            arrays = [
                (dtype, tuple(map(int, filter(None, shape.split(",")))), layout)
                for dtype, shape, layout in _ARRAY.findall(result)
            ]
            names = re.findall(r"%([\w.\-]+)", operands)
            given = operands if op in ("constant", "parameter") else ""
            computations[current][name] = Instruction(name, op, arrays, names, given + rest)
    return computations, entry


def _bundles(folder: Path) -> dict[str, tuple[int, int]]:
    """The bundles of each instruction outside its innermost window loop, and inside."""
    found = {}
    for file in folder.glob("*final_bundles.txt"):
        name = re.match(r"\d+-(.*)-\d+-final_bundles\.txt$", file.name)
        if name and "schedule-analysis" not in file.name:
            counts = collections.Counter(
                line[1].count(">")
                for line in map(_BUNDLE.match, file.read_text(errors="replace").splitlines())
                if line
            )
            found[name[1]] = counts[0], counts.total() - counts[0]
    return found


def _cycles(
    one: Instruction, schedule: tuple[int, int] | None, grids: dict[tuple[int, ...], int]
) -> float:
    """The cycles of one run; the compiler's own estimate where no schedule is printed."""
    if schedule is None:
        estimated = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        return float(estimated[1]) if estimated else 0.0
    outside, inside = schedule
    bounds = re.search(r'"iteration_bounds":\[([^\]]*)\]', one.rest)
    steps = math.prod(map(int, re.findall(r"\d+", bounds[1]))) if bounds else 1
    if one.op == "custom-call" and one.arrays:
        shape = one.arrays[0][1]
        steps = grids.get(shape, grids.get((1, *shape), steps))
    return outside + inside * steps


def _length(computations: dict[str, Computation], loop: Instruction) -> int | None:
    """How often a loop that counts from 0 to a constant runs; `None` for any other."""
    tested = computations[loop.attribute("condition") or ""].values()
    inner = [computations.get(one.attribute("calls") or "", {}).values() for one in tested]
    ends = [
        int(found[0])
        for one in [*tested, *(each for some in inner for each in some)]
        if one.op == "constant" and (found := re.match(r"-?\d+", one.rest))
    ]
    return ends[0] if len(ends) == 1 else None


def _made(one: Instruction) -> int:
    return max((_BYTES.get(d, 4) * math.prod(s) for d, s, _ in one.arrays[-2:]), default=0)


def _read(
    computations: dict[str, Computation], computation: Computation, one: Instruction
) -> float:
    """Bytes of main memory that an instruction reads; of what it slices only the slice."""
    called = computations.get(one.attribute("calls") or "", {}) if one.op == "fusion" else {}
    parameters = {
        int(found[0]): inner
        for inner in called.values()
        if inner.op == "parameter" and (found := re.match(r"\d+", inner.rest))
    }
    total = 0.0
    for number, name in enumerate(one.operands):
        given = computation.get(name)
        if given is None:
            continue
        whole = given.bytes
        if one.op in _SLICES:
            whole = min(whole, _made(one))
        elif number in parameters:
            whole = min(whole, _taken(computations, called, parameters[number].name, whole))
        total += whole
    return total


def _taken(
    computations: dict[str, Computation], called: Computation, name: str, whole: float
) -> float:
    """Bytes that a fusion takes of a parameter."""
    total = 0.0
    for user in (one for one in called.values() if name in one.operands):
        if user.op in _SLICES:
            total += _made(user)
        elif user.op == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.op in ("bitcast", "copy", "reshape", "transpose"):
            total += _taken(computations, called, user.name, whole)
        elif user.op == "fusion" and (inner := computations.get(user.attribute("calls") or "")):
            place = user.operands.index(name)
            names = [o.name for o in inner.values() if o.op == "parameter"]
            names = [n for n in names if re.match(rf"{place}\b", inner[n].rest)]
            total += _taken(computations, inner, names[0], whole) if names else whole
        else:
            return whole
    return min(total, whole)
