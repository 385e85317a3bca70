# SPDX-License-Identifier: Apache-2.0
"""Trees of the user as plain ones, and back.

Orbax keeps dicts with text keys and lists, whatever the containers were: tuples become lists; namedtuples, dataclasses
and registered nodes become dicts by field. With an abstract tree the containers of that one come back.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

Path = tuple[str, ...]
_LEAVES = (int, float, complex, str, bytes, np.ndarray, np.generic, enum.Enum)


def jax() -> Any:
    """Return JAX if the program has loaded it, else None."""
    return sys.modules.get("jax")


@dataclass(frozen=True, slots=True)
class Node:
    """One container, opened: `build(children)` makes another of its kind."""

    kind: Literal["dict", "list"]
    names: list[str]
    children: list[Any]
    build: Callable[[list[Any]], Any]


def opened(value: Any) -> Node | None:
    """Return the container opened one level deep, None when it is a leaf.

    Raises:
        ValueError: two keys of a dict have the same text.
    """
    if value is None or isinstance(value, (*_LEAVES, type)):
        return None
    if isinstance(value, dict):
        return _dict(cast("dict[Any, Any]", value))
    kind = cast("Any", type(value))
    if isinstance(value, tuple) and (fields := getattr(kind, "_fields", None)) is not None:
        return Node("dict", list(fields), list(cast("tuple[Any, ...]", value)), kind._make)
    if kind is list or kind is tuple:
        items: list[Any] = list(cast("Any", value))
        return Node("list", [str(i) for i in range(len(items))], items, kind)
    return _registered(value) or _fields(value)


def _dict(value: dict[Any, Any]) -> Node:
    keys = list(value)
    if type(value).__name__ != "OrderedDict":
        try:
            keys.sort()  # as JAX does, so that what is printed comes in the same order
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

    return Node("dict", names, [value[key] for key in keys], build)


def _registered(value: Any) -> Node | None:
    """Open a node that is registered with JAX."""
    module = jax()
    tree_util = getattr(module, "tree_util", None)
    if tree_util is None or isinstance(value, module.Array):
        return None

    def below(child: Any) -> bool:
        return child is not value

    paths, definition = tree_util.tree_flatten_with_path(value, is_leaf=below)
    if len(paths) == 1 and not paths[0][0]:
        return None
    names = [_name(keys[0]) for keys, _ in paths]
    as_list = all(isinstance(keys[0], tree_util.SequenceKey) for keys, _ in paths)
    if len(set(names)) < len(names):
        names = [str(i) for i in range(len(paths))]
    kind = "list" if as_list and paths else "dict"
    return Node(kind, names, [child for _, child in paths], lambda new: tree_util.tree_unflatten(definition, new))


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _fields(value: Any) -> Node | None:
    if not dataclasses.is_dataclass(value) or hasattr(value, "shape"):
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

    return Node("dict", names, [getattr(value, name) for name in names], build)


def plain(tree: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the tree in dicts with text keys and lists, with what `leaf(path, value)` returns for each leaf."""
    node = opened(tree)
    if node is None:
        return leaf(path, tree)
    items = [plain(child, leaf, (*path, name)) for name, child in zip(node.names, node.children, strict=True)]
    return dict(zip(node.names, items, strict=True)) if node.kind == "dict" else items


def mapped(tree: Any, leaf: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the tree in containers of its own types, with what `leaf(path, value)` returns for each leaf."""
    node = opened(tree)
    if node is None:
        return leaf(path, tree)
    items = [mapped(child, leaf, (*path, name)) for name, child in zip(node.names, node.children, strict=True)]
    return node.build(items)


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
    if value is None or isinstance(value, _LEAVES) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        return True
    kind = cast("type[object]", type(value))
    pairs = (("state_dict", "load_state_dict"), ("get_state", "set_state"), ("isoformat", "strftime"))
    return any(all(hasattr(kind, name) for name in pair) for pair in pairs)
