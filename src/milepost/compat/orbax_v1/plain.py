# SPDX-License-Identifier: Apache-2.0
"""Trees of the user as plain ones. Unlike v0's, dataclasses need not be registered."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from milepost.compat import orbax_trees
from milepost.compat.orbax_trees import LEAVES, Node, Path, jax

__all__ = ["Path", "child", "is_tree", "jax", "mapped", "opened", "plain"]


def opened(value: Any) -> Node | None:
    """Return the container opened one level deep, None when it is a leaf.

    Raises:
        ValueError: two keys of a dict have the same text.
    """
    return orbax_trees.opened(value) or _fields(value)


def _fields(value: Any) -> Node | None:
    if not dataclasses.is_dataclass(value) or isinstance(value, type) or hasattr(value, "shape"):
        return None  # what has a shape stands for an array
    names = [
        field.name for field in dataclasses.fields(value)
        if not field.metadata.get("static", False) and field.metadata.get("pytree_node", True)
    ]  # fmt: skip

    def build(children: list[Any]) -> Any:
        other = copy.copy(value)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(other, name, child)
        return other

    return Node(names, [getattr(value, name) for name in names], build, is_builtin=False)


def plain(tree: Any, leaf: Callable[[Path, Any], Any]) -> Any:
    """Return the tree in dicts with text keys and lists, with what `leaf(path, value)` returns for each leaf."""
    return orbax_trees.plain(tree, leaf, opened=opened)


def mapped(tree: Any, leaf: Callable[[Path, Any], Any]) -> Any:
    """Return the tree in containers of its own types, with what `leaf(path, value)` returns for each leaf."""
    return orbax_trees.mapped(tree, leaf, opened=opened)


def child(tree: Any, name: str) -> Any:
    """Return the child of a plain container, KeyError when there is none."""
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree)
        if name in items:
            return items[name]
        for key, value in items.items():  # keys of other types, in trees that the native API saved
            if str(key) == name:
                return value
    if isinstance(tree, list | tuple) and name.isdecimal() and int(name) < len(cast("list[Any]", tree)):
        return cast("list[Any]", tree)[int(name)]
    raise KeyError(name)


def is_tree(value: Any) -> bool:
    """Return whether a value is a tree that can be stored natively, as far as the types of its leaves tell."""
    node = opened(value)
    if node is not None:
        return all(map(is_tree, node.children))
    kind = cast("type[object]", type(value))
    if isinstance(value, type):
        return False
    if value is None or isinstance(value, LEAVES) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        return True
    pairs = (("state_dict", "load_state_dict"), ("get_state", "set_state"), ("isoformat", "strftime"))
    return any(all(hasattr(kind, name) for name in pair) for pair in pairs)
