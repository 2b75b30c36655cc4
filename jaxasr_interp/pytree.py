"""Frozen dataclasses that are JAX pytrees."""

import dataclasses
from typing import Any, dataclass_transform

import jax


def static(**kwargs: Any) -> Any:
    """Declare a field that is part of the tree's structure: hashable, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree_dataclass[T](cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass registered as a pytree.

    Fields are children unless declared with `static()`. Rebuilding the tree (in `jax.tree.map`,
    `vmap`, ...) does not call `__init__`, so `__post_init__` checks what a user constructs and
    never sees placeholders.
    """
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
