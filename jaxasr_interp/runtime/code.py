"""The content of functions and classes, by which two of them can be told apart."""

import dataclasses
import dis
import functools
import importlib.metadata
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxasr_interp._version import __version__
from jaxasr_interp.errors import InputError

_UNSEEN = {"eval", "exec", "globals", "locals", "open", "vars", "__import__"}
# fmt: off
_ABOUT_CLASSES = {
    "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__qualname__",
    "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__", "__firstlineno__",
    "__static_attributes__",
}
_GENERATED = {
    "__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__",
    "__setattr__", "__delattr__", "__replace__", "__match_args__", "__dataclass_fields__",
    "__dataclass_params__",
}
# fmt: on
_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


class UnknownError(InputError):
    """The input holds something that a later process could not recognise."""


def major_version(version: str = __version__) -> str:
    """Return the part of the version whose change may change numbers: `2`, or `0.2` before 1.0."""
    first, second, *_ = version.split(".")
    return f"{first}.{second}" if first == "0" else first


@functools.cache
def version_of(module: str) -> str | None:
    """Return the version of a module's installed package; `None` for a user's own module."""
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return major_version()
    if top in sys.builtin_module_names:
        return sys.version
    file = getattr(sys.modules.get(module), "__file__", None)
    if top and module not in sys.modules and (found := importlib.util.find_spec(top)) is not None:
        file = found.origin
    if file is None or not str(Path(file).resolve()).startswith(_INSTALLED):
        return None
    names = _distributions().get(top)
    return importlib.metadata.version(names[0]) if names else sys.version


_distributions = functools.cache(importlib.metadata.packages_distributions)


def class_content(cls: type) -> dict[str, Any]:
    """Return a class's own attributes, without those that Python or `dataclass` generate."""
    left_out = _ABOUT_CLASSES | (_GENERATED if dataclasses.is_dataclass(cls) else set())
    slots = types.MemberDescriptorType | types.GetSetDescriptorType
    return {
        name: _unbound(value)
        for name, value in sorted(vars(cls).items())
        if name not in left_out and not isinstance(value, slots)
    }


def _unbound(value: Any) -> Any:
    """Return the functions or values inside a method, property or similar wrapper of a class."""
    match value:
        case staticmethod() | classmethod():
            return value.__func__
        case property():
            return [value.fget, value.fset, value.fdel]
        case functools.cached_property():
            return value.func
        case functools.partialmethod():
            return [value.func, value.args, value.keywords]
        case _:
            return value


def globals_read(code: types.CodeType, around: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each global that a function's own instructions read.

    Where only attributes of a user's module are read, they are yielded instead of the module.

    Raises:
        UnknownError: the function reads something in a way that cannot be followed.
    """
    read: dict[str, Any] = {}
    steps = list(dis.get_instructions(code))
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.opname == "IMPORT_NAME" and version_of(step.argval) is None:
            raise UnknownError(f"a function that imports {step.argval}")
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        if step.argval not in around:
            if step.argval in _UNSEEN:
                raise UnknownError(f"a function that calls {step.argval}")
            continue
        value = around[step.argval]
        mine = isinstance(value, types.ModuleType) and version_of(value.__name__) is None
        if mine and following is not None and following.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            name = f"{step.argval}.{following.argval}"
            read[name] = getattr(value, following.argval, None)
        else:
            read[step.argval] = value
    yield from sorted(read.items(), key=lambda pair: pair[0])


def cell_content(cell: types.CellType) -> Any:
    """Return the value that a function closes over."""
    try:
        return cell.cell_contents
    except ValueError:  # Nothing has been assigned to the variable yet.
        return None
