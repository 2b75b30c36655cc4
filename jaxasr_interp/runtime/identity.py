"""The identity of a job: a digest of each part that its numbers depend on.

Work that can be resumed (sweeps, sweeps on text, extractions, tuned lenses) stores its identity
beside what it has computed, and is resumed only by work of the same identity: the same weights,
inputs, edits, metrics and settings, compared by their content and not by their names.

A function is identified by its code, its defaults, the values that it closes over and the globals
that it reads; functions of installed packages are identified by name and version. What cannot be
identified in this way (a file that a function opens, an object of an unknown class) is refused with
one clear sentence.
"""

import dataclasses
import enum
import functools
import hashlib
import math
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.code import (
    UnknownError,
    cell_content,
    class_content,
    globals_read,
    major_version,
    version_of,
)

_PLAIN = {type(None), bool, int, float, complex, str, bytes, slice, range, type(...)}
_WRAPPERS = {type(jax.jit(lambda: None)), type(functools.cache(lambda: None))}


def identify(**parts: Any) -> dict[str, str]:
    """Compute a digest of each part, and of what the numbers of every job depend on.

    Args:
        parts: everything that the numbers of this job depend on: arrays, models, edits, metrics,
            dataclasses, functions, containers and plain values.

    Returns:
        Hexadecimal SHA-256 of each part by its name, and of the library's version and JAX's
        precision.

    Raises:
        InputError: a part holds something that cannot be identified.
    """
    settings = ("jax_enable_x64", "jax_default_matmul_precision")
    precision = [getattr(jax.config, name) for name in settings]
    every = {**parts, "precision": precision, "version": major_version()}
    digests = {}
    for name, part in every.items():
        try:
            digests[name] = digest(part)
        except UnknownError as error:
            raise InputError(
                f"The {name} holds {error}, which cannot be known again: run it without a file to "
                "go on from."
            ) from None
    return digests


def check_identity(
    path: Path | str, kept: Mapping[str, Any], identity: Mapping[str, Any], what: str
) -> None:
    """Raise `InputError` unless what is stored at `path` belongs to the same work.

    Args:
        path: the file or folder, or its URL.
        kept: the identity that is stored with it, from `identify`.
        identity: identity of the work to be done.
        what: kind of work, for the error message.
    """
    names = [name for name in {**kept, **identity} if kept.get(name) != identity.get(name)]
    if names:
        raise InputError(
            f"{path} is of another {what} ({', '.join(names)} differ{'s' * (len(names) == 1)}): "
            "name another place, or remove it to begin anew."
        )


def digest(value: Any) -> str:
    """Compute the SHA-256 of a value's content, in hexadecimal.

    The digests of plain values and arrays are the same in every version of this library.

    Raises:
        InputError: it holds something that cannot be identified.
    """
    return _Digests().of(value)


def _hash(kind: str, *contents: str | bytes) -> str:
    """Compute the SHA-256 of a kind and of contents, each preceded by its size."""
    digest = hashlib.sha256(kind.encode())
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"\n{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


class _Digests:
    """Computes the digests of values, and of the values inside them, even if a value holds itself.

    A value of an unknown type is refused: a digest that left something out would take two different
    values for the same.
    """

    def __init__(self):
        self.known: dict[int, tuple[Any, str]] = {}
        self.within: list[int] = []
        self.outermost = math.inf

    def of(self, value: Any) -> str:
        """Return the digest of one value."""
        if type(value) in _PLAIN or isinstance(value, np.dtype):
            return _hash(type(value).__name__, repr(value))
        if type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic | jax.Array):
            return self._of_array(value)
        if id(value) in self.known:
            return self.known[id(value)][1]
        if id(value) in self.within:
            at = self.within.index(id(value))
            self.outermost = min(self.outermost, at)
            return _hash("itself", str(len(self.within) - at))
        at, outermost = len(self.within), self.outermost
        self.outermost = math.inf
        self.within.append(id(value))
        digest = self._of_compound(value)
        self.within.pop()
        if self.outermost >= at:
            # Where values hold each other in a circle, a digest depends on which one came first.
            self.known[id(value)] = value, digest
            self.outermost = math.inf
        self.outermost = min(self.outermost, outermost)
        return digest

    def _of_compound(self, value: Any) -> str:
        match value:
            case enum.Enum():
                return self._of_all("enum", [type(value).__qualname__, value.name, value.value])
            case Path():
                return _hash("path", str(value))
            case _ if type(value) in (dict, types.MappingProxyType):
                return self._of_all("mapping", [x for pair in value.items() for x in pair])
            case _ if type(value) in (set, frozenset):
                return _hash("set", *sorted(map(self.of, value)))
            case _ if type(value) in (list, tuple):
                return self._of_all(_name(type(value)), value)
            case tuple() if hasattr(value, "_fields"):
                return self._of_all("tuple", [type(value), *value])
            case types.ModuleType():
                return self._of_module(value)
            case type():
                return self._of_class(value)
            case types.FunctionType():
                return self._of_function(value)
            case types.MethodType():
                return self._of_all("method", [value.__func__, value.__self__])
            case functools.partial():
                kept = [value.func, value.args, value.keywords, vars(value)]
                return self._of_all("partial", [type(value), *kept])
            case Whisper():
                return self._of_model(value)
            case _ if dataclasses.is_dataclass(value):
                return self._of_dataclass(value)
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
        """Digest the weights, and the settings and tokenizer that also decide what is generated."""
        paths, _ = jax.tree_util.tree_flatten_with_path(model)
        weights = [x for path, leaf in paths for x in (jax.tree_util.keystr(path), leaf)]
        tokenizer = None if model.tokenizer is None else model.tokenizer.content
        return self._of_all("model", [model.config, model.generation, tokenizer, *weights])

    def _of_dataclass(self, value: Any) -> str:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if version_of(type(value).__module__) is None:
            fields |= getattr(value, "__dict__", {})
        return self._of_all("dataclass", [type(value), fields])

    def _of_module(self, module: types.ModuleType) -> str:
        """Digest an installed module by its version, a user's own module by its content."""
        version = version_of(module.__name__)
        if version is not None:
            return _hash("module", module.__name__, version)
        content = {n: v for n, v in sorted(vars(module).items()) if not n.startswith("__")}
        return self._of_all("module", [module.__name__, content])

    def _of_class(self, cls: type) -> str:
        version = version_of(cls.__module__)
        if version is not None:
            return _hash("class", _name(cls), version)
        if issubclass(cls, enum.Enum):
            members = {name: member.value for name, member in cls.__members__.items()}
            return self._of_all("enum", [_name(cls), members])
        return self._of_all(f"class {_name(cls)}", [type(cls), cls.__bases__, class_content(cls)])

    def _of_function(self, function: types.FunctionType) -> str:
        # The code's own name: a wrapper has the name of the function that it wraps.
        module, name = function.__globals__.get("__name__", ""), function.__code__.co_qualname
        if (version := version_of(module)) is not None and "<" not in name:
            return _hash("function", module, name, version)
        own = {k: v for k, v in vars(function).items() if k != "__wrapped__"}
        cells = [cell_content(cell) for cell in function.__closure__ or ()]
        code = self._of_code(function.__code__, function.__globals__)
        around = [function.__defaults__, function.__kwdefaults__, own, *cells]
        return _hash("function", code, *map(self.of, around))

    def _of_code(self, code: types.CodeType, around: Mapping[str, Any]) -> str:
        """Digest a function's instructions, its constants, and the globals that it reads."""
        constants = [
            self._of_code(one, around) if isinstance(one, types.CodeType) else self.of(one)
            for one in code.co_consts
        ]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        read = self._of_all("globals", [x for pair in globals_read(code, around) for x in pair])
        return _hash("code", code.co_code, *constants, self.of([*counts, *names]), read)

    def _of_other(self, value: Any) -> str:
        """Digest an installed function that is not Python, a wrapped function, or a JAX pytree."""
        if type(value) is object:  # A sentinel without content.
            return _hash("object")
        module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
        if isinstance(module, str) and isinstance(name, str):
            version = version_of(module)
            if version is not None and getattr(sys.modules.get(module), name, None) is value:
                return _hash("function", module, name, version)
        if type(value) in _WRAPPERS:
            return self._of_all("wrapped", [_name(type(value)), value.__wrapped__])
        leaves, structure = jax.tree.flatten(value)
        if any(leaf is value for leaf in leaves):
            raise UnknownError(f"a {_name(type(value))}")
        return _hash("tree", self._of_structure(structure), *map(self.of, leaves))

    def _of_structure(self, structure: Any) -> str:
        node = structure.node_data()
        kind = "leaf" if node is None else self.of(list(node))
        return _hash("node", kind, *map(self._of_structure, structure.children()))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
