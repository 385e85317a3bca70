# SPDX-License-Identifier: Apache-2.0
"""Trees of the user as plain ones: what is in them, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast, final

from milepost.compat.orbax_trees import Path, jax, mapped, opened, plain

__all__ = ["ABSENT", "Path", "at", "hollow", "jax", "leaves", "mapped", "opened", "plain"]


@final
class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""What `at` returns where there is nothing."""


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
