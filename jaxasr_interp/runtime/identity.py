"""What the numbers of a job depend on, as one digest for each part of it.

Whatever can go on where it was cut off (sweeps, sweeps on text, extractions, tuned lenses) keeps
its identity beside what it has computed, and goes on only with work of the same identity: the same
weights, inputs, edits, metrics and settings, compared by their content and not by their names.

A function is its code, its defaults, the values that it closes over and the globals that it reads;
functions of installed packages are known by name and version. What cannot be told apart in this way
(a file that a function opens remains unseen) is refused with a sentence.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import importlib.metadata
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr_interp._version import __version__
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper

_PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, type(...), np.dtype)
_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


def identify(**parts: Any) -> dict[str, str]:
    """A digest of each part, and of what the numbers of every job depend on.

    Args:
        parts: what this job's numbers depend on: arrays, models, edits, metrics, dataclasses,
            functions, containers and plain values.

    Returns:
        Hexadecimal SHA-256 by name; the library's version and JAX's precision are added.

    Raises:
        InputError: a part holds something that cannot be known again.
    """
    settings = ("jax_enable_x64", "jax_default_matmul_precision")
    precision = [getattr(jax.config, name) for name in settings]
    every = {**parts, "precision": precision, "version": major_version()}
    digests = {}
    for name, part in every.items():
        try:
            digests[name] = digest(part)
        except _UnknownError as error:
            raise InputError(
                f"The {name} holds {error}, which cannot be known again: run it without a file to "
                "go on from."
            ) from None
    return digests


def check_identity(
    path: Path, kept: Mapping[str, Any], identity: Mapping[str, Any], what: str
) -> None:
    """Raise `InputError` unless what is kept at `path` is of the same work.

    Args:
        path: where it is kept.
        kept: the identity that is kept with it, from `identify`.
        identity: of the work to be done.
        what: kind of work, for the sentence.
    """
    names = [name for name in {**kept, **identity} if kept.get(name) != identity.get(name)]
    if names:
        raise InputError(
            f"{path} is of another {what} ({', '.join(names)} differ{'s' * (len(names) == 1)}): "
            "name another place, or remove it to begin anew."
        )


def major_version(version: str = __version__) -> str:
    """The part of the version whose change may change numbers: `2`, and `0.2` before version 1."""
    first, second, *_ = version.split(".")
    return f"{first}.{second}" if first == "0" else first


class _UnknownError(InputError):
    """What cannot be known again."""


def digest(value: Any) -> str:
    """SHA-256 of a value's content, in hexadecimal; that of plain values and arrays never changes.

    Raises:
        InputError: it holds something that cannot be known again.
    """
    return _Digests().of(value)


def _hash(kind: str, *contents: str | bytes) -> str:
    """SHA-256 of a kind and contents, with their sizes between them."""
    digest = hashlib.sha256(kind.encode())
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"\n{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


class _Digests:
    """The digests of values, and of the values in them; one that holds itself ends there."""

    def __init__(self):
        self.known: dict[int, tuple[Any, str]] = {}
        self.within: list[int] = []

    def of(self, value: Any) -> str:
        """The digest of one value."""
        if isinstance(value, enum.Enum):
            return _hash("enum", _name(type(value)), value.name)
        if isinstance(value, _PLAIN):
            return _hash(type(value).__name__, repr(value))
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return self._of_array(value)
        if id(value) in self.known:
            return self.known[id(value)][1]
        if id(value) in self.within:
            return _hash("itself", str(len(self.within) - self.within.index(id(value))))
        self.within.append(id(value))
        digest = self._of_compound(value)
        self.within.pop()
        self.known[id(value)] = value, digest
        return digest

    def _of_compound(self, value: Any) -> str:
        match value:
            case Path():
                return _hash("path", str(value))
            case Mapping():
                pairs = sorted((self.of(key), self.of(one)) for key, one in value.items())
                return _hash("mapping", *[digest for pair in pairs for digest in pair])
            case Set():
                return _hash("set", *sorted(map(self.of, value)))
            case Sequence():
                return self._of_all(_name(type(value)), value)
            case types.ModuleType():
                return _hash("module", value.__name__, _require_version(value.__name__))
            case type():
                return self._of_class(value)
            case types.FunctionType():
                return self._of_function(value)
            case types.MethodType():
                return self._of_all("method", [value.__func__, value.__self__])
            case functools.partial():
                return self._of_all("partial", [value.func, value.args, value.keywords])
            case Whisper():
                return self._of_model(value)
            case _ if dataclasses.is_dataclass(value):
                fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
                return self._of_all("dataclass", [type(value), *fields])
            case _ if callable(getattr(value, "__wrapped__", None)):
                return self._of_all("wrapped", [type(value), value.__wrapped__])
            case _:
                return self._of_other(value)

    def _of_all(self, kind: str, values: Iterable[Any]) -> str:
        return _hash(kind, *map(self.of, values))

    def _of_array(self, value: Any) -> str:
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return self._of_all(str(value.dtype), [jax.random.key_data(value)])
        array = np.asarray(value)
        if array.dtype.kind in "OT":
            return self._of_all(f"array {array.shape}", array.reshape(-1).tolist())
        return _hash(f"array {array.dtype} {array.shape}", array.tobytes())

    def _of_model(self, model: Whisper) -> str:
        """The weights, and what decides beside them what is written; not where they came from."""
        paths, _ = jax.tree_util.tree_flatten_with_path(model)
        weights = [x for path, leaf in paths for x in (jax.tree_util.keystr(path), leaf)]
        tokenizer = None if model.tokenizer is None else Path(model.tokenizer.path).read_bytes()
        return self._of_all("model", [model.config, model.generation, tokenizer, *weights])

    def _of_class(self, cls: type) -> str:
        version = _version(cls.__module__)
        if version is not None:
            return _hash("class", _name(cls), version)
        methods = {}
        for name, value in vars(cls).items():
            function = getattr(value, "fget", getattr(value, "__func__", value))
            if isinstance(function, types.FunctionType):
                methods[name] = function
        return self._of_all(f"class {_name(cls)}", [cls.__bases__, methods])

    def _of_function(self, function: types.FunctionType) -> str:
        # Of the code: what is wrapped around a function goes by the name of that.
        module, name = function.__globals__.get("__name__", ""), function.__code__.co_qualname
        if (version := _version(module)) is not None and "<" not in name:
            return _hash("function", module, name, version)
        cells = [_content(cell) for cell in function.__closure__ or ()]
        code = self._of_code(function.__code__, function.__globals__)
        around = [function.__defaults__, function.__kwdefaults__, *cells]
        return _hash("function", code, *map(self.of, around))

    def _of_code(self, code: types.CodeType, around: Mapping[str, Any]) -> str:
        """A function's instructions, its constants, and the globals that it reads."""
        constants = [
            self._of_code(one, around) if isinstance(one, types.CodeType) else self.of(one)
            for one in code.co_consts
        ]
        read = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        values = {}
        for name in read & around.keys():
            value = around[name]
            if isinstance(value, types.ModuleType) and _version(value.__name__) is None:
                # Of a module of the user's own: what the function may take from it.
                value = {n: getattr(value, n) for n in code.co_names if hasattr(value, n)}
            values[name] = value
        names = [code.co_names, code.co_varnames, code.co_freevars]
        return _hash("code", code.co_code, *constants, *map(self.of, [*names, values]))

    def _of_other(self, value: Any) -> str:
        """A function that is not Python's, or what JAX knows as a tree."""
        if type(value) is object:  # A mark without content.
            return _hash("object")
        module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
        if name is not None and module is not None and (version := _version(module)) is not None:
            return _hash("function", module, name, version)
        leaves, structure = jax.tree.flatten(value)
        described = str(structure)
        if any(leaf is value for leaf in leaves) or " at 0x" in described:
            raise _UnknownError(f"a {_name(type(value))}")
        return self._of_all(described, [type(value), *leaves])


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Nothing has been assigned to the variable yet.
        return None


def _require_version(module: str) -> str:
    version = _version(module)
    if version is None:
        raise _UnknownError(f"the module {module}")
    return version


@functools.cache
def _version(module: str) -> str | None:
    """The version of the installed package that a module is of; `None` for a user's own."""
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return major_version()
    if top in sys.builtin_module_names:
        return sys.version
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not str(Path(file).resolve()).startswith(_INSTALLED):
        return None
    names = _distributions().get(top)
    return importlib.metadata.version(names[0]) if names else sys.version


_distributions = functools.cache(importlib.metadata.packages_distributions)
