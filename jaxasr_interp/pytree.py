"""Frozen dataclasses that are JAX pytrees, and how dataclasses with arrays are shown."""

import dataclasses
import textwrap
from typing import Any, dataclass_transform

import jax
import numpy as np
import wadler_lindig

_WIDTH, _MOST_LINES, _MOST_ITEMS = 100, 20, 8


def static(**kwargs: Any) -> Any:
    """Declare a field that is part of the tree's structure: hashable, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree_dataclass[T](cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass registered as a pytree.

    Fields are children unless declared with `static()`. Rebuilding the tree (in `jax.tree.map`,
    `vmap`, ...) does not call `__init__`, so `__post_init__` checks what a user constructs and
    never sees placeholders. Its `repr` is its `summary`.
    """
    if "__repr__" not in vars(cls):
        cls.__repr__ = summary
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(tree: T):
        children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in data]
        return children, tuple(getattr(tree, name) for name in meta)

    def flatten(tree: T):
        return [getattr(tree, name) for name in data], tuple(getattr(tree, name) for name in meta)

    def unflatten(structure, children) -> T:
        tree = object.__new__(cls)
        for name, value in zip([*data, *meta], [*children, *structure], strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace[T](tree: T, **fields: Any) -> T:
    """A copy of a pytree dataclass with other fields; unchecked, so a batched one too."""
    copy = object.__new__(type(tree))
    for name, value in (vars(tree) | fields).items():
        object.__setattr__(copy, name, value)
    return copy


def summary(self: Any) -> str:
    """Describe a dataclass in at most 20 lines.

    Fields that have their defaults are left out, arrays are shown by dtype and shape, such as
    `f32[11,384]`, and of long sequences the first elements.
    """
    text = wadler_lindig.pformat(self, width=_WIDTH, custom=_shortened)
    lines = text.splitlines()
    if len(lines) <= _MOST_LINES and max(map(len, lines)) <= _WIDTH:
        return text
    # A field on each line takes too many.
    text = " ".join(text.split())
    return textwrap.fill(
        text, _WIDTH, subsequent_indent="  ", max_lines=_MOST_LINES, placeholder=" …"
    )


def _shortened(value: Any) -> wadler_lindig.AbstractDoc | None:
    if isinstance(value, np.generic):
        return wadler_lindig.TextDoc(repr(value.item()))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return wadler_lindig.array_summary(tuple(value.shape), str(value.dtype), None)
    if isinstance(value, tuple | list) and len(value) > _MOST_ITEMS:
        some = (wadler_lindig.pformat(one, custom=_shortened) for one in value[:3])
        first = " ".join(", ".join(some).split())
        return wadler_lindig.TextDoc(f"({first}, … {len(value)} in all)")
    return None
