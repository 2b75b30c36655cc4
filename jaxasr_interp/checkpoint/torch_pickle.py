"""Reading the pickle inside a torch file as data, without importing or calling anything.

A pickle is a program for a machine with a stack. `pickletools` decodes its instructions; those that
build texts, numbers, lists and dictionaries are followed here. A name stays a piece of text, which
has a meaning only if it is one of a dozen, and the "calls" are the three that a table of tensors
consists of.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from jaxasr_interp.errors import InputError

LARGEST = 1 << 22
"""Bytes of the largest pickle that is read; that of large-v3 has a twentieth."""

_DICTIONARY = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool),
}
ALLOWED = frozenset({_DICTIONARY, _TENSOR, _PARAMETER, *STORAGES})

_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(str):
    """A name that a pickle asks for, which is never looked up."""


class _DamagedError(Exception):
    """The instructions do not fit each other."""


def read_pickle(
    data: bytes,
    storage: Callable[[np.dtype, str, int], Any],
    tensor: Callable[[Any, int, tuple[int, ...], tuple[int, ...]], Any],
    origin: str,
) -> Any:
    """Read a pickle of tables of tensors.

    Args:
        data: the pickle.
        storage: called with dtype, key and number of elements of each storage.
        tensor: called with a storage, the offset in it, the shape and the strides, in elements.
        origin: name of the file in errors.

    Returns:
        What was pickled: dictionaries, lists, tuples, texts, numbers and tensors.

    Raises:
        InputError: the pickle asks for a name or an instruction that no table of tensors needs, is
            too long, or is damaged.
    """
    if len(data) > LARGEST:
        raise InputError(
            f"{origin} holds a pickle of {len(data)} bytes or more: expected a table of weights, "
            f"of at most {LARGEST}."
        )
    try:
        return _Machine(storage, tensor, origin).run(data)
    except InputError:
        raise
    except (_DamagedError, ValueError, IndexError, KeyError, AssertionError) as error:
        raise InputError(
            f"{origin} is damaged: its pickle cannot be read ({type(error).__name__}: {error}); "
            "fetch the file again."
        ) from None


class _Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self, storage: Callable[..., Any], tensor: Callable[..., Any], origin: str):
        self.storage, self.tensor, self.origin = storage, tensor, origin
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in _VALUES:
                push(argument)
            case _ if name in _EMPTY:
                push(_EMPTY[name]())
            case _ if name in _CONSTANTS:
                push(_CONSTANTS[name])
            case _ if name in _TUPLES:
                push(tuple([pop() for _ in range(_TUPLES[name])][::-1]))
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self.since_mark()))
            case "APPEND" | "APPENDS":
                values = [pop()] if name == "APPEND" else self.since_mark()
                _checked(self.stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = [pop(), pop()][::-1] if name == "SETITEM" else self.since_mark()
                self.set_items(_checked(self.stack[-1], dict), values)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(self.name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(self.name(module, attribute))
            case "BINPERSID":
                push(self.stored(pop()))
            case "REDUCE":
                arguments, function = _checked(pop(), tuple), _checked(pop(), _Name)
                push(self.call(function, arguments))
            case "BUILD":
                pop()  # Attributes of a dictionary, such as the versions of its modules.
                _checked(self.stack[-1], dict)
            case _:
                self.refuse(f"{name} {argument or ''}".strip())

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def set_items(self, target: dict[Any, Any], values: list[Any]) -> None:
        keys = values[::2]
        # The hash of a nested tuple can take for ever.
        if not all(type(key) in (str, int) for key in keys):
            raise _DamagedError("a key is neither text nor a number")
        target.update(zip(keys, values[1::2], strict=True))

    def name(self, module: Any, attribute: Any) -> _Name:
        name = f"{_checked(module, str)}.{_checked(attribute, str)}"
        if name not in ALLOWED:
            self.refuse(name)
        return _Name(name)

    def stored(self, identifier: Any) -> Any:
        match identifier:
            case ("storage", _Name() as kind, str(key), str(), int(count)) if kind in STORAGES:
                return self.storage(STORAGES[kind], key, _count(count))
        raise _DamagedError("it names a storage in an unknown way")

    def call(self, function: _Name, arguments: tuple[Any, ...]) -> Any:
        match function, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "torch._utils._rebuild_tensor_v2", (
                stored,
                offset,
                tuple(size),
                tuple(stride),
                *_,
            ):
                shape, strides = tuple(map(_count, size)), tuple(map(_count, stride))
                return self.tensor(stored, _count(offset), shape, strides)
            case "torch._utils._rebuild_parameter", (data, *_):
                return data
        raise _DamagedError(f"{function} has unknown arguments")

    def refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"{self.origin} asks for {what[:200]!r}, which no table of weights needs: refused, and "
            "nothing in it was run; save the state dict alone, or as safetensors."
        )


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _DamagedError(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _DamagedError("a size is no number from 0 on")
    return value
