# SPDX-License-Identifier: Apache-2.0
"""Trees of the user as plain ones, and back.

What is stored are dicts with text keys, sorted as JAX does, and lists: tuples become lists; namedtuples, dataclasses
and nodes registered with JAX become dicts by field. This is also what a restore without a target returns. With a
target its own containers come back.
"""

from __future__ import annotations

import copy
import enum
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast, final

import numpy as np

Path = tuple[str, ...]
_LEAVES = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, enum.Enum, type)


@final
class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""What `at` returns where there is nothing."""


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


def opened(value: Any) -> Node | None:
    """Return the container opened one level deep, None when it is a leaf.

    Raises:
        ValueError: two keys of a dict have the same text.
    """
    if value is None or value is ... or isinstance(value, _LEAVES):
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


def plain(tree: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the tree in dicts with text keys and lists, with what `leaf(path, value)` returns for each leaf."""
    node = opened(tree)
    if node is None:
        return leaf(path, tree)
    items = [plain(child, leaf, (*path, name)) for name, child in zip(node.names, node.children, strict=True)]
    return items if node.is_list else dict(zip(node.names, items, strict=True))


def mapped(tree: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the tree in containers of its own types, with what `leaf(path, value)` returns for each leaf."""
    node = opened(tree)
    if node is None:
        return leaf(path, tree)
    items = [mapped(child, leaf, (*path, name)) for name, child in zip(node.names, node.children, strict=True)]
    return node.build(items)


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the leaves of a tree with their paths."""
    node = opened(tree)
    if node is None:
        yield path, tree
        return
    for name, child in zip(node.names, node.children, strict=True):
        yield from leaves(child, (*path, name))


def hollow(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of namedtuples and registered nodes without children: they come back as None."""
    node = opened(tree)
    if node is None:
        return
    if not node.children and not node.is_builtin:
        yield path
    for name, child in zip(node.names, node.children, strict=True):
        yield from hollow(child, (*path, name))


def at(tree: Any, path: Path) -> Any:
    """Return what is at a path of a tree in any containers, `ABSENT` when there is nothing."""
    for name in path:
        tree = _child(tree, name)
        if tree is ABSENT:
            break
    return tree


def _child(tree: Any, name: str) -> Any:
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree)
        if name in items:
            return items[name]
    if isinstance(tree, list) and name.isdecimal():
        numbered = cast("list[Any]", tree)
        return numbered[int(name)] if int(name) < len(numbered) else ABSENT
    node = opened(tree)
    if node is None or name not in node.names:
        return ABSENT
    return node.children[node.names.index(name)]
