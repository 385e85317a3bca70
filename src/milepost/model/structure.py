# SPDX-License-Identifier: Apache-2.0
"""The structure of a saved tree. It is data (JSON), never code: no stored name is imported.

| node | JSON |
|---|---|
| leaf | `0` |
| the same array or object as the one at an earlier path | `"that/path"` |
| dict, with its keys as segments | `{"dict": {"a": node, "%int:3": node}}` |
| list, tuple | `{"list": [node, ...]}`, `{"tuple": [node, ...]}` |
| namedtuple | `{"namedtuple": {"field": node}}` |
| dataclass, attrs class, node registered with JAX | `{"fields": {"field": node}}` |
| object with a state of its own | `{"state": node}` |
| one value for each process | `{"per_process": {"0": node}}` |

Leaves lie in the leaf table under their *stored* paths, which hold the ranks of `per_process` nodes. Users see paths
without the rank where only one process saved a value, or where it is known which process asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from milepost.errors import FormatError, StructureError, message
from milepost.model import keypath
from milepost.model.keypath import KeyPath, join

# Frames of the walkers stay well under Python's own limit of 1,000, and so do JSON readers'.
MAX_DEPTH = 200

Structure = Any

_BODIES: dict[Any, type] = {
    "dict": dict, "list": list, "tuple": list, "namedtuple": dict, "fields": dict, "per_process": dict,
    "state": object,
}  # fmt: skip


def node_of(node: Structure, path: KeyPath, depth: int) -> tuple[str, Any]:
    """Return kind and body of a container node, checked.

    Raises:
        FormatError: it is none, or nested too deep.
    """
    # What an alias leads to may lie as deep again as the alias.
    if isinstance(node, dict) and depth <= 2 * MAX_DEPTH:
        items = cast("dict[str, Any]", node)
        kind = next(iter(items), "")
        if len(items) == 1 and isinstance(items[kind], _BODIES.get(kind, ())):
            return kind, items[kind]
    raise FormatError(f"{path or 'the root'}: malformed structure of a tree")


def visible(
    structure: Structure, rank: int | None = 0, *, node: Structure = None, stored: KeyPath = keypath.ROOT
) -> Iterator[tuple[KeyPath, KeyPath]]:
    """Yield (path as users see it, path as stored) of each leaf.

    What shares the array or object of an earlier path is yielded too, with the stored path of that one.

    Args:
        structure: the whole tree's.
        rank: the process that asks; None for the values of all processes.
        node, stored: the part of the structure to look at, and where it is stored; the whole by default.

    Raises:
        StructureError: a value was saved per process, and not for this rank.
        FormatError: the structure is malformed.
    """
    yield from _visible(structure, structure if node is None else node, keypath.ROOT, stored, rank, 0, False)


def _visible(
    root: Structure, node: Structure, path: KeyPath, stored: KeyPath, rank: int | None, depth: int, inside: bool
) -> Iterator[tuple[KeyPath, KeyPath]]:
    if isinstance(node, str):
        node, stored, inside = _followed(root, node, inside)
    if node == 0:
        yield path, stored
        return
    kind, body = node_of(node, stored, depth)
    if kind == "state":
        yield from _visible(root, body, path, stored, rank, depth + 1, inside)
    elif kind == "per_process" and (rank is not None or len(body) == 1):
        name = next(iter(body)) if rank is None else _of_rank(body, rank, path)
        yield from _visible(root, body[name], path, join(stored, name), rank, depth + 1, inside)
    else:
        for name, item in _members(body):
            yield from _visible(root, item, join(path, name), join(stored, name), rank, depth + 1, inside)


def rebuild(
    structure: Structure,
    leaf: Callable[[KeyPath, KeyPath], Any],
    *,
    node: Structure = None,
    stored: KeyPath = keypath.ROOT,
    container: Callable[[str, dict[str, Any], KeyPath], Any] | None = None,
) -> Any:
    """Return the saved tree, or the part of it at `node`, in builtin containers.

    namedtuples come back as tuples; dataclasses, attrs classes and registered nodes as dicts by field; objects with
    state as their state; `PerProcess` values as the value of their only process, or as a dict by rank.

    Args:
        structure: the whole tree's.
        leaf: returns a leaf, given its paths as `visible` yields them for all processes.
        node, stored: as in `visible`.
        container: makes another container than these: of a node's kind, its items by segment, and its stored path.

    Raises:
        FormatError: the structure is malformed.
    """
    start = structure if node is None else node
    return _rebuilt(structure, start, keypath.ROOT, stored, leaf, container or _container, 0, False)


def _rebuilt(
    root: Structure,
    node: Structure,
    path: KeyPath,
    stored: KeyPath,
    leaf: Callable[[KeyPath, KeyPath], Any],
    container: Callable[[str, dict[str, Any], KeyPath], Any],
    depth: int,
    inside: bool,
) -> Any:
    if isinstance(node, str):
        node, stored, inside = _followed(root, node, inside)
    if node == 0:
        return leaf(path, stored)
    kind, body = node_of(node, stored, depth)
    if kind == "state":
        return _rebuilt(root, body, path, stored, leaf, container, depth + 1, inside)
    alone = kind == "per_process" and len(body) == 1
    items: dict[str, Any] = {}
    for name, item in _members(body):
        seen = path if alone else join(path, name)
        items[name] = _rebuilt(root, item, seen, join(stored, name), leaf, container, depth + 1, inside)
    return container(kind, items, stored)


def _container(kind: str, items: dict[str, Any], stored: KeyPath) -> Any:
    if kind == "list":
        return list(items.values())
    if kind in ("tuple", "namedtuple"):
        return tuple(items.values())
    if kind == "per_process":
        if not all(name.isdecimal() for name in items):
            raise FormatError(f"{stored or 'the root'}: malformed ranks of a value per process")
        values = {int(name): value for name, value in items.items()}
        return values if len(values) != 1 else next(iter(values.values()))
    return {keypath.key(name): value for name, value in items.items()}


def subtree(
    structure: Structure, path: KeyPath, rank: int = 0, *, node: Structure = None, stored: KeyPath = keypath.ROOT
) -> tuple[Structure, KeyPath]:
    """Return the node at a path, and its path as stored.

    Args:
        structure: the whole tree's.
        path: counts from `node`. Ranks of `PerProcess` are left out, or given where that leads nowhere.
        rank: the process that asks.
        node, stored: as in `visible`.

    Raises:
        KeyError: there is no such node.
        StructureError: a value was saved per process, and not for this rank.
        FormatError: the structure is malformed.
    """
    return _subtree(structure, structure if node is None else node, stored, keypath.split(path), rank, 0)


def _subtree(
    root: Structure, node: Structure, stored: KeyPath, rest: list[str], rank: int, depth: int
) -> tuple[Structure, KeyPath]:
    if isinstance(node, str):
        node, stored = _target(root, node)
    if not rest:
        return node, stored
    if node == 0:
        raise KeyError(rest[0])
    kind, body = node_of(node, stored, depth)
    if kind == "state":
        return _subtree(root, body, stored, rest, rank, depth + 1)
    if kind == "per_process" and (str(rank) in body or rest[0] not in body):
        name = _of_rank(body, rank, stored)
        try:
            return _subtree(root, body[name], join(stored, name), rest, rank, depth + 1)
        except KeyError:
            if rest[0] not in body:
                raise
    return _subtree(root, _member(body, rest[0]), join(stored, rest[0]), rest[1:], rank, depth + 1)


def of_process(node: Structure, stored: KeyPath, rank: int) -> tuple[Structure, KeyPath]:
    """Return the node for one process, and its stored path, where a node holds one for each; else the node itself.

    Raises:
        StructureError: it was not saved for this rank.
    """
    for depth in range(2 * MAX_DEPTH):
        if node == 0 or isinstance(node, str):
            break
        kind, body = node_of(node, stored, depth)
        if kind != "per_process":
            break
        name = _of_rank(body, rank, stored)
        node, stored = body[name], join(stored, name)
    return node, stored


def _of_rank(body: dict[str, Structure], rank: int, path: KeyPath) -> str:
    if str(rank) in body:
        return str(rank)
    raise StructureError(
        message(
            f"{path or 'the root'}: saved per process, without a value for this one",
            expected=f"process {rank}",
            found=f"processes {', '.join(body) or '(none)'}",
            remedy="Run on as many processes as saved it, or load it without `like`: the values of all come by rank.",
        )
    )


def _followed(root: Structure, alias: KeyPath, inside: bool) -> tuple[Structure, KeyPath, bool]:
    """Return the node that an alias names and its path; `inside` says whether it lies in an object that is shared."""
    node, stored = _target(root, alias)
    if node != 0 and inside:  # else a small table could name a tree without end
        raise FormatError(f"{stored or 'the root'}: a shared object within a shared object")
    return node, stored, inside or node != 0


def _target(root: Structure, alias: KeyPath) -> tuple[Structure, KeyPath]:
    node = root
    for depth, name in enumerate(keypath.split(alias)):
        kind, body = node_of(node, alias, depth)
        while kind == "state":
            kind, body = node_of(body, alias, depth)
        try:
            node = _member(body, name)
        except KeyError:
            raise FormatError(f"the structure shares {alias[:200]!r}, which is not there") from None
    if isinstance(node, str):
        raise FormatError(f"the structure shares {alias[:200]!r}, which is itself shared")
    return node, alias


def _members(body: Any) -> Iterator[tuple[str, Structure]]:
    if isinstance(body, list):
        for index, item in enumerate(cast("list[Structure]", body)):
            yield str(index), item
    else:
        yield from body.items()


def _member(body: Any, name: str) -> Structure:
    if not isinstance(body, list):
        return body[name]
    items = cast("list[Structure]", body)
    if name.isdecimal() and len(name) < 10 and int(name) < len(items):
        return items[int(name)]
    raise KeyError(name)
