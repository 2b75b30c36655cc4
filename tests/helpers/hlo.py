"""What a compiled program does, read from the text that XLA gives of it."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
LEAST_OF_STACK = 4 << 20
"""Elements of the smallest stack that counts: less than the weights of any map of `small`."""
LEAST_LARGE = 4 << 20
"""Bytes of the smallest array that can be oversize."""
_OVERSIZE = 2

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\](\{[^}]*\})?")
_FAST_MEMORY = re.compile(r"S\([1-9]\)")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_FLOATS = {"bf16", "f16", "f32", "f64"}
# They name, pass on or pick what exists.
_MAKES_NOTHING = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional",
    "call", "copy-done", "slice-done", "async-done", "opt-barrier", "optimization-barrier",
    "custom-call",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A floating-point array that an instruction writes to memory.

    Attributes:
        op: the instruction's kind.
        dtype: its dtype in XLA's words.
        shape: its shape.
        source: where it comes from in the program.
    """

    op: str
    dtype: str
    shape: tuple[int, ...]
    source: str

    @property
    def size(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return self.size * int(re.sub(r"\D", "", self.dtype)) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{'x'.join(map(str, self.shape))}], in {self.source}"


def buffers(text: str) -> Iterator[Buffer]:
    """Yield the arrays that a program writes to the device's main memory.

    What exists within fusions alone is not written; weights on their way to the product that takes
    them are in fast memory.
    """
    fused = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    computation = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            computation = head[1]
        elif computation not in fused and (found := _INSTRUCTION.match(line)):
            _, results, op = found.groups()
            if op in _MAKES_NOTHING:
                continue
            source = _SOURCE.search(line)
            for dtype, dimensions, layout in _ARRAY.findall(_made(op, results)):
                if dtype in _FLOATS and not _FAST_MEMORY.search(layout):
                    shape = tuple(map(int, filter(None, dimensions.split(","))))
                    yield Buffer(op, dtype, shape, source[1] if source else "")


def _made(op: str, results: str) -> str:
    """What an instruction makes: those that begin something name what they are given, too."""
    if not op.endswith("-start"):
        return results
    # Of a copy what it makes comes first; of all else it is behind a tuple of what is given.
    given = re.match(r"\(\(.*?\), ", results)
    return results[given.end() :] if given else results.partition("}, ")[0] + "}"


def collectives(text: str) -> list[str]:
    """List the exchanges between devices."""
    return [name for name in COLLECTIVES if re.search(rf" {name}(-start)?\(", text)]


def problems(lowered: Any, compiled: Any, n_layers: int) -> list[str]:
    """Say what no program of the library should do, and where it does.

    Args:
        lowered: the program, lowered for a device.
        compiled: the same, compiled.
        n_layers: number of the model's layers: arguments with such an axis at the front or behind
            that of the runs are stacks, which a program takes a layer at a time.
    """
    text = compiled.as_text()
    found = [f"exchanges values between devices: {name}" for name in collectives(text)]
    if wide := re.search(r".*(?:x|<)f64>.*", lowered.as_text()):
        found.append(f"float64: {wide[0].strip()[:200]}")
    given = _arrays(lowered.in_avals, compiled.input_shardings)
    gives = _arrays(lowered.out_info, compiled.output_shardings)
    stacks = _stacks(given, n_layers) - _stacks(gives, n_layers)
    largest = max([LEAST_LARGE, *(math.prod(s) * itemsize for s, itemsize in given + gives)])
    for one in buffers(text):
        if one.size in stacks:
            found.append(f"{one.op} of a whole stack, {one}")
        elif one.bytes > _OVERSIZE * largest:
            found.append(f"{one.op} of more than twice what comes in or goes out, {one}")
    return found


def _arrays(tree: Any, shardings: Any) -> list[tuple[tuple[int, ...], int]]:
    """Shape and item size of what a device has of each array."""
    leaves, structure = jax.tree.flatten(tree)
    each = zip(leaves, structure.flatten_up_to(shardings), strict=True)
    # What a program does not use has no sharding.
    used = [(leaf, one.shard_shape(leaf.shape)) for leaf, one in each if one is not None]
    return [(shape, leaf.dtype.itemsize) for leaf, shape in used]


def _stacks(arrays: list[tuple[tuple[int, ...], int]], n_layers: int) -> set[int]:
    """Elements of each stack."""
    sizes = {math.prod(shape) for shape, _ in arrays if n_layers in shape[:2]}
    return {size for size in sizes if size >= LEAST_OF_STACK}
