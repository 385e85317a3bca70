# SPDX-License-Identifier: Apache-2.0
"""Trees as Orbax keeps them, for both of its front doors: dicts with text keys, and lists.

Tuples become lists; namedtuples, dataclasses and nodes registered with JAX become dicts by field; keys are sorted as
JAX does. This is also what a restore without a target returns; with one, its containers come back.
"""

from __future__ import annotations

import copy
import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

Path = tuple[str, ...]
LEAVES = (int, float, complex, str, bytes, np.ndarray, np.generic, enum.Enum, type)
"""What is a leaf whatever is registered."""


def jax() -> Any:
    """Return JAX if the program has loaded it, else None."""
    return sys.modules.get("jax")


@dataclass(frozen=True, slots=True)
class Node:
    """One container, opened: `build(children)` makes another of its kind."""

    names: list[str]
    children: list[Any]
    build: Callable[[list[Any]], Any]
    is_list: bool = False
    is_builtin: bool = True


Opens = Callable[[Any], Node | None]


def opened(value: Any) -> Node | None:
    """Return the container opened one level deep, None when it is a leaf.

    Raises:
        ValueError: two keys of a dict have the same text.
    """
    if value is None or value is ... or isinstance(value, LEAVES):
        return None
    if isinstance(value, dict):
        return _dict(cast("dict[Any, Any]", value))
    kind: Any = cast("type[object]", type(value))
    if hasattr(kind, "_fields") and isinstance(value, tuple):
        return Node(list(kind._fields), list(cast("tuple[Any, ...]", value)), kind._make, is_builtin=False)
    if kind in (list, tuple):
        return Node([str(i) for i in range(len(value))], list(value), kind, is_list=True)
    return _registered(value)


def _dict(value: dict[Any, Any]) -> Node:
    keys = list(value)
    if type(value).__name__ != "OrderedDict":
        try:
            keys.sort()
        except TypeError:
            pass
    names = [str(key) for key in keys]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two keys of a dict are both {twice!r} as text\n  Give one of them another name.")

    def build(children: list[Any]) -> Any:
        items = dict(zip(keys, children, strict=True))
        if type(value) is dict:
            return items
        other = copy.copy(value)
        other.clear()
        other.update(items)
        return other

    return Node(names, [value[key] for key in keys], build)


def _registered(value: Any) -> Node | None:
    """Open a node that is registered with JAX."""
    module = jax()
    tree_util = getattr(module, "tree_util", None)
    if tree_util is None or isinstance(value, module.Array):
        return None

    def is_child(child: Any) -> bool:
        return child is not value

    paths, definition = tree_util.tree_flatten_with_path(value, is_leaf=is_child)
    if len(paths) == 1 and not paths[0][0]:
        return None
    names = [_name(keys[0]) for keys, _ in paths]
    if len(set(names)) < len(names):
        names = [str(i) for i in range(len(paths))]
    return Node(
        names,
        [child for _, child in paths],
        lambda new: tree_util.tree_unflatten(definition, new),
        is_list=bool(paths) and all(isinstance(keys[0], tree_util.SequenceKey) for keys, _ in paths),
        is_builtin=False,
    )


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def plain(tree: Any, leaf: Callable[[Path, Any], Any], *, opened: Opens = opened, path: Path = ()) -> Any:
    """Return the tree in dicts with text keys and lists, with what `leaf(path, value)` returns for each leaf."""
    node = opened(tree)
    if node is None:
        return leaf(path, tree)
    items = [
        plain(child, leaf, opened=opened, path=(*path, name))
        for name, child in zip(node.names, node.children, strict=True)
    ]
    return items if node.is_list else dict(zip(node.names, items, strict=True))


def mapped(tree: Any, leaf: Callable[[Path, Any], Any], *, opened: Opens = opened, path: Path = ()) -> Any:
    """Return the tree in containers of its own types, with what `leaf(path, value)` returns for each leaf."""
    node = opened(tree)
    if node is None:
        return leaf(path, tree)
    items = [
        mapped(child, leaf, opened=opened, path=(*path, name))
        for name, child in zip(node.names, node.children, strict=True)
    ]
    return node.build(items)
