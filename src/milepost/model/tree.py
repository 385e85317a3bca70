# SPDX-License-Identifier: Apache-2.0
"""Tree to leaves and back. The structure is data (JSON), never code: no stored name is imported.

A structure is made of these nodes:

| node | JSON |
|---|---|
| leaf | `0` |
| the same array or object as the one at an earlier path | `"that/path"` |
| dict, with its keys as segments | `{"dict": {"a": node, "%int:3": node}}` |
| list, tuple | `{"list": [node, ...]}`, `{"tuple": [node, ...]}` |
| namedtuple, dataclass, attrs class, node registered with JAX | `{"namedtuple": {"field": node}}`, `{"fields": {"field": node}}` |
| object with a state of its own | `{"state": node}` |
| one value for each process | `{"per_process": {"0": node}}` |
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from milepost.errors import FormatError, StructureError, UnsupportedLeafError, message
from milepost.model import keypath
from milepost.model.keypath import KeyPath, join
from milepost.model.leaf import LeafSpec
from milepost.model.value import value_type

# Frames of the walkers stay well under Python's own limit of 1,000, and so do JSON readers'.
MAX_DEPTH = 200

Structure = Any


@final
class Skip:
    """The type of `SKIP`, which as a leaf of `like` leaves what is saved there unread."""

    def __repr__(self) -> str:
        return "milepost.SKIP"


SKIP = Skip()


@final
@dataclass(frozen=True, slots=True)
class PerProcess:
    """Marks a value that differs in each process: a data iterator, a random state."""

    value: Any


class StateProvider(Protocol):
    """Teaches the library objects that own state: a module with its optimizer, a loader, a generator."""

    by_leaf: bool
    """Whether the state is compared leaf by leaf with the object's present state (modules), or given back whole."""
    by_value: bool
    """Whether a copy of the object is as good as itself (random generators), so that `load` may return one."""

    def owns(self, value: Any) -> bool: ...
    def tree(self, value: Any) -> Any:
        """Return the present state as a tree."""
        ...

    def restore(self, value: Any, tree: Any) -> None:
        """Put a state that `tree` returned into the object."""
        ...


class Classify(Protocol):
    """What the walker asks about a value that is no builtin container."""

    def is_array(self, value: Any) -> bool: ...
    def identity(self, array: Any) -> Hashable | None:
        """Return a key that is equal for two arrays over the same memory, None where sharing means nothing."""
        ...

    def provider(self, value: Any) -> StateProvider | None: ...


@dataclass(frozen=True, slots=True)
class Node:
    """One container, opened: `build(children)` makes another of its kind."""

    kind: str
    segments: list[str]
    children: list[Any]
    build: Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class StateObject:
    """An object with state, at `path`, with the provider that knows how to take and give it."""

    path: KeyPath
    value: Any
    provider: StateProvider


@dataclass(frozen=True, slots=True)
class Flat:
    """A flattened tree.

    Attributes:
        leaves: path -> value, in the tree's order, each shared array once.
        structure: the tree as data.
        aliases: path -> the earlier path that holds the same array or object.
        objects: the objects with state, in the tree's order.
        unranked: path -> path without the ranks of `PerProcess`, for the nodes below one.
    """

    leaves: dict[KeyPath, Any]
    structure: Structure
    aliases: dict[KeyPath, KeyPath]
    objects: list[StateObject]
    unranked: dict[KeyPath, KeyPath]


def flatten(tree: Any, classify: Classify, *, rank: int = 0, present: bool = False) -> Flat:
    """Return the leaves of a tree and its structure.

    Args:
        tree: any nesting of dict, list, tuple, namedtuple, dataclass, attrs classes and nodes registered with JAX.
        classify: knows arrays and objects with state.
        rank: this process, for `PerProcess` values.
        present: the tree is a `like`: objects whose state is given back whole are not asked for their present state.

    Raises:
        UnsupportedLeafError: a value cannot be stored, with its path.
    """
    flat = Flat({}, None, {}, [], {})
    structure = _Walk(flat, classify, rank, present).node(tree, keypath.ROOT, 0)
    return dataclasses.replace(flat, structure=structure)


@final
class _Walk:
    def __init__(self, flat: Flat, classify: Classify, rank: int, present: bool) -> None:
        self.flat, self.classify, self.rank, self.present = flat, classify, rank, present
        self.seen: dict[Hashable, KeyPath] = {}
        self.inside = 0
        self.ranked: list[tuple[KeyPath, KeyPath]] = []

    def node(self, value: Any, path: KeyPath, depth: int) -> Structure:
        if depth > MAX_DEPTH:
            raise UnsupportedLeafError(
                f"{path[:120]}…: the tree is nested deeper than {MAX_DEPTH} levels\n"
                "  If a container contains itself, leave that reference out."
            )
        if self.classify.is_array(value):
            return self.shared(value, path) or self.leaf(value, path)
        if value is SKIP or isinstance(value, LeafSpec):
            return self.leaf(value, path)
        if isinstance(value, PerProcess):
            return self.per_process(value.value, path, depth)
        kind = type(value)
        if kind is not dict and kind is not list and kind is not tuple:
            if value_type(value) is not None:
                return self.leaf(value, path)
            if (provider := self.classify.provider(value)) is not None:
                return self.state(value, provider, path, depth)
        opened = open_node(value, path)
        if opened is None:
            raise UnsupportedLeafError(_unsupported(value, path))
        parts = [
            self.node(child, join(path, segment), depth + 1)
            for segment, child in zip(opened.segments, opened.children, strict=True)
        ]
        if opened.kind in ("list", "tuple"):
            return {opened.kind: parts}
        return {opened.kind: dict(zip(opened.segments, parts, strict=True))}

    def per_process(self, value: Any, path: KeyPath, depth: int) -> Structure:
        segment = str(self.rank)
        inner = join(path, segment)
        self.ranked.append((inner, self.unranked(path)))
        structure = self.node(value, inner, depth + 1)
        self.ranked.pop()
        return {"per_process": {segment: structure}}

    def unranked(self, path: KeyPath) -> KeyPath:
        if not self.ranked:
            return path
        stored, seen = self.ranked[-1]
        return join(seen, path[len(stored) + 1 :]) if len(path) > len(stored) else seen

    def leaf(self, value: Any, path: KeyPath) -> Structure:
        self.flat.leaves[path] = value
        if self.ranked:
            self.flat.unranked[path] = self.unranked(path)
        return 0

    def shared(self, value: Any, path: KeyPath) -> KeyPath | None:
        identity = self.classify.identity(value)
        if identity is None:
            return None
        first = self.seen.setdefault(identity, path)
        if first == path:
            return None
        self.flat.aliases[path] = first
        if self.ranked:
            self.flat.unranked[path] = self.unranked(path)
        return first

    def state(self, value: Any, provider: StateProvider, path: KeyPath, depth: int) -> Structure:
        # Within the state of an object, objects are not shared: an alias then never leads to another (see `visible`).
        first = path if self.inside else self.seen.setdefault(("object", id(value)), path)
        if first != path:
            self.flat.aliases[path] = first
            return first
        self.flat.objects.append(StateObject(path, value, provider))
        if self.ranked:
            self.flat.unranked[path] = self.unranked(path)
        if self.present and not provider.by_leaf:
            return {"state": 0}
        self.inside += 1
        structure = {"state": self.node(provider.tree(value), path, depth + 1)}
        self.inside -= 1
        return structure


def open_node(value: Any, path: KeyPath = "") -> Node | None:
    """Return the container opened one level deep, None when it is no container."""
    if isinstance(value, dict):
        return _open_dict(value, path)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields: Any = value  # a namedtuple
        return Node("namedtuple", list(fields._fields), list(fields), lambda children: type(fields)(*children))
    if isinstance(value, list | tuple):
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        kind = "list" if isinstance(value, list) else "tuple"
        return Node(kind, [str(i) for i in range(len(items))], items, _sequence_builder(value))  # pyright: ignore[reportUnknownArgumentType]
    return _open_registered(value) or _open_fields(value)


def _open_dict(value: dict[Any, Any], path: KeyPath) -> Node:
    try:
        segments = [keypath.segment(key) for key in value]
    except UnsupportedLeafError as error:
        raise UnsupportedLeafError(f"{path or 'the root'}: {error}") from None
    keys = list(value)

    def build(children: list[Any]) -> Any:
        items = dict(zip(keys, children, strict=True))
        if type(value) is dict:
            return items
        other = copy.copy(value)
        other.update(items)
        return other

    return Node("dict", segments, list(value.values()), build)


def _sequence_builder(value: Any) -> Callable[[list[Any]], Any]:
    kind = type(value)
    if kind is list:
        return list
    if kind is tuple:
        return tuple

    def build(children: list[Any]) -> Any:
        if isinstance(value, tuple):
            return kind(children)
        other = copy.copy(value)
        other[:] = children
        return other

    return build


def _open_registered(value: Any) -> Node | None:
    """Open a node registered with JAX, when JAX is loaded: its children with their names, its static part in `build`."""
    tree_util: Any = sys.modules.get("jax.tree_util")
    if tree_util is None or not hasattr(tree_util, "tree_flatten_with_path"):
        return None
    paths, definition = tree_util.tree_flatten_with_path(value, is_leaf=lambda child: child is not value)
    if len(paths) == 1 and not paths[0][0]:
        return None  # a leaf
    segments = [_registered_segment(keys[0], tree_util) for keys, _ in paths]
    if len(set(segments)) < len(segments):
        segments = [str(i) for i in range(len(paths))]
    return Node(
        "fields",
        segments,
        [child for _, child in paths],
        lambda children: tree_util.tree_unflatten(definition, children),
    )


def _registered_segment(key: Any, tree_util: Any) -> str:
    if isinstance(key, tree_util.DictKey):
        return keypath.segment(key.key)
    for attribute in ("name", "idx", "key"):
        if hasattr(key, attribute):
            return keypath.segment(str(getattr(key, attribute)))
    return keypath.segment(str(key))


def _open_fields(value: Any) -> Node | None:
    """Open a dataclass or attrs class; fields marked `metadata={"static": True}` come from `like` alone."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        marks = [(field.name, field.metadata) for field in dataclasses.fields(value)]
    elif hasattr(type(value), "__attrs_attrs__"):
        marks = [(field.name, field.metadata) for field in type(value).__attrs_attrs__]
    else:
        return None
    names = [name for name, metadata in marks if not _static(metadata) and hasattr(value, name)]

    def build(children: list[Any]) -> Any:
        # Neither `__init__` nor `__post_init__` runs: the fields are put back as they were, on a copy.
        other = copy.copy(value)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(other, name, child)
        return other

    return Node("fields", names, [getattr(value, name) for name in names], build)


def _static(metadata: Mapping[Any, Any]) -> bool:
    return bool(metadata.get("static", False)) or not metadata.get("pytree_node", True)


def _unsupported(value: Any, path: KeyPath) -> str:
    kind = type(value)
    remedy = (
        "Leave functions out: with Equinox, save `equinox.filter(model, equinox.is_array)`; in dataclasses mark the"
        ' field `metadata={"static": True}`.'
        if callable(value)
        else "Store it as a sorted list."
        if isinstance(value, set | frozenset)
        else "Store numbers, text, bytes, dates, None, arrays or containers of them; or give the class `state_dict()`"
        " and `load_state_dict()`."
    )
    return f"{path or 'the root'}: a {kind.__module__}.{kind.__qualname__} cannot be stored\n  {remedy}"


# --- back to trees


def replaced(tree: Any, classify: Classify, leaf: Callable[[KeyPath, Any], Any], *, path: KeyPath = "") -> Any:
    """Return the tree with other leaves, in containers of the same types.

    Args:
        tree: a tree that `flatten` accepted.
        classify: the same as there.
        leaf: returns what stands at a path, given the path without ranks and the leaf or object that stood there.
        path: where the tree itself stands.
    """
    if isinstance(tree, PerProcess):
        return PerProcess(replaced(tree.value, classify, leaf, path=path))
    if is_leaf(tree, classify) or classify.provider(tree) is not None:
        return leaf(path, tree)
    opened = open_node(tree, path)
    if opened is None:
        return leaf(path, tree)
    children = zip(opened.segments, opened.children, strict=True)
    return opened.build([replaced(child, classify, leaf, path=join(path, name)) for name, child in children])


def is_leaf(value: Any, classify: Classify) -> bool:
    """Return whether a value is an array, a value, a spec or `SKIP`: no container and no object with state."""
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        return False
    return classify.is_array(value) or value is SKIP or isinstance(value, LeafSpec) or value_type(value) is not None


def setters(tree: Any, classify: Classify, *, path: KeyPath = "") -> Iterator[tuple[KeyPath, Callable[[Any], None]]]:
    """Yield how each leaf can be replaced in its container; leaves of containers that cannot change are left out."""
    tree = tree.value if isinstance(tree, PerProcess) else tree
    if is_leaf(tree, classify) or classify.provider(tree) is not None or (opened := open_node(tree, path)) is None:
        return
    places = list(tree) if isinstance(tree, dict) else range(len(opened.segments))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for name, child, place in zip(opened.segments, opened.children, places, strict=True):
        if is_leaf(child, classify):
            if isinstance(tree, dict | list):
                yield join(path, name), _item_setter(tree, place)  # pyright: ignore[reportUnknownArgumentType]
            elif not isinstance(tree, tuple) and hasattr(tree, name) and not _frozen(tree):
                yield join(path, name), _field_setter(tree, name)
        else:
            yield from setters(child, classify, path=join(path, name))


def _item_setter(container: Any, place: Any) -> Callable[[Any], None]:
    return lambda value: container.__setitem__(place, value)


def _field_setter(container: Any, name: str) -> Callable[[Any], None]:
    return lambda value: setattr(container, name, value)


def _frozen(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return bool(getattr(parameters, "frozen", False)) or type(value).__setattr__.__name__ == "_frozen_setattrs"


def rebuild(
    structure: Structure,
    leaf: Callable[[KeyPath, KeyPath], Any],
    *,
    node: Structure = None,
    stored: KeyPath = keypath.ROOT,
) -> Any:
    """Return the saved tree with builtin containers.

    namedtuples come back as tuples; dataclasses, attrs classes and registered nodes as dicts by field; objects with
    state as their state; `PerProcess` values as the value of their only process, or as a dict by rank.

    Args:
        structure: the whole tree's.
        leaf: returns the leaf for a path, counted from `node`, and the stored path; one that is shared is asked for
            at each place that it stands at.
        node, stored: the part that is wanted, and where it is stored; by default all of it.

    Raises:
        FormatError: the structure is malformed.
    """
    node = structure if node is None else node
    return _rebuilt(structure, node, leaf, keypath.ROOT, stored, 0, inside=False)


def _rebuilt(
    root: Structure,
    node: Structure,
    leaf: Callable[[KeyPath, KeyPath], Any],
    path: KeyPath,
    stored: KeyPath,
    depth: int,
    *,
    inside: bool,
) -> Any:
    if isinstance(node, str):
        node, stored = _shared(root, node, stored, inside=inside)
        inside = True
    if node == 0:
        return leaf(path, stored)
    kind, body = node_of(node, stored, depth)

    def built(name: str, item: Structure) -> Any:
        return _rebuilt(root, item, leaf, join(path, name), join(stored, name), depth + 1, inside=inside)

    if kind == "state":
        return _rebuilt(root, body, leaf, path, stored, depth + 1, inside=inside)
    if kind in ("list", "tuple"):
        items = [built(str(i), item) for i, item in enumerate(body)]
        return items if kind == "list" else tuple(items)
    return _container(kind, {name: built(name, item) for name, item in body.items()})


def _container(kind: str, fields: dict[str, Any]) -> Any:
    if kind == "namedtuple":
        return tuple(fields.values())
    if kind == "per_process" and len(fields) == 1:
        return next(iter(fields.values()))
    if kind == "per_process":
        return {int(name): value for name, value in fields.items()}
    return {keypath.key(name): value for name, value in fields.items()}


def node_of(structure: Structure, path: KeyPath, depth: int) -> tuple[str, Any]:
    """Return kind and body of a structure's container node, checked.

    Raises:
        FormatError: it is none, or nested too deep.
    """
    if isinstance(structure, dict) and len(structure) == 1 and depth <= 2 * MAX_DEPTH:  # pyright: ignore[reportUnknownArgumentType]
        kind, body = next(iter(structure.items()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        form = _BODIES.get(kind)
        if kind == "state" or (form is not None and isinstance(body, form)):
            return kind, body
    raise FormatError(f"{path or 'the root'}: malformed structure of a tree")


_BODIES: dict[Any, type] = {
    "dict": dict, "list": list, "tuple": list, "namedtuple": dict, "fields": dict, "per_process": dict,
}  # fmt: skip


def visible(
    structure: Structure, rank: int | None = 0, *, node: Structure = None, stored: KeyPath = keypath.ROOT
) -> Iterator[tuple[KeyPath, KeyPath]]:
    """Yield (path as users see it, path as stored) of each leaf; they differ by the ranks of `PerProcess`.

    With `rank=None` the values of all processes are yielded, under their ranks. With `node`, the part of the structure
    that is stored at `stored`, the leaves of that part alone.

    What shares the array or object of an earlier path is yielded too, with the stored path of that one.

    Raises:
        StructureError: a value was saved per process, and not for this rank.
    """
    yield from _visible(structure, structure if node is None else node, keypath.ROOT, stored, rank, 0, inside=False)


def _visible(
    root: Structure, node: Structure, path: KeyPath, stored: KeyPath, rank: int | None, depth: int, *, inside: bool
) -> Iterator[tuple[KeyPath, KeyPath]]:
    if isinstance(node, str):
        node, stored = _shared(root, node, stored, inside=inside)
        inside = True
    if node == 0:
        yield path, stored
        return
    kind, body = node_of(node, stored, depth)
    if kind == "state":
        yield from _visible(root, body, path, stored, rank, depth + 1, inside=inside)
    elif kind == "per_process" and rank is not None:
        name = _of_rank(body, rank, path)
        yield from _visible(root, body[name], path, join(stored, name), rank, depth + 1, inside=inside)
    else:
        for name, item in _members(body):
            yield from _visible(root, item, join(path, name), join(stored, name), rank, depth + 1, inside=inside)


def _shared(root: Structure, first: KeyPath, stored: KeyPath, *, inside: bool) -> tuple[Structure, KeyPath]:
    """Return the node that an alias names; within what was reached by an alias, it must be a leaf: else a small file
    could stand for a tree without end."""
    node, there = _found(root, first)
    if inside and node != 0:
        raise FormatError(f"{stored}: a shared object within a shared object")
    return node, there


def _of_rank(body: dict[str, Structure], rank: int, path: KeyPath) -> str:
    if str(rank) in body:
        return str(rank)
    raise StructureError(
        message(
            f"{path or 'the root'}: saved per process, without a value for this one",
            expected=f"process {rank}",
            found=f"processes {', '.join(body)}",
            remedy="Run on as many processes as saved it, or put `mp.SKIP` there.",
        )
    )


def _members(body: Any) -> Iterator[tuple[str, Structure]]:
    if isinstance(body, list):
        yield from ((str(i), item) for i, item in enumerate(body))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    else:
        yield from body.items()


def subtree(
    structure: Structure, path: KeyPath, rank: int = 0, *, node: Structure = None, stored: KeyPath = keypath.ROOT
) -> tuple[Structure, KeyPath]:
    """Return the node at a path, and its path as stored; the ranks of `PerProcess` may be given or left out.

    The path counts from `node`, the part of the structure that is stored at `stored`, when it is given.

    Raises:
        KeyError: there is no such node.
    """
    node = structure if node is None else node
    rest = keypath.split(path)
    for depth in range(4 * MAX_DEPTH):
        if isinstance(node, str):
            node, stored = _found(structure, node)
        elif not rest:
            return node, stored
        elif node == 0:
            break
        else:
            kind, body = node_of(node, stored, depth)
            if kind == "state":
                node = body
                continue
            name = rest[0]
            if kind == "per_process" and name not in body:
                name = _of_rank(body, rank, path)
            else:
                rest = rest[1:]
            node = _member(body, name)
            stored = join(stored, name)
    raise KeyError(path)


def _member(body: Any, name: str) -> Structure:
    if isinstance(body, list):
        if name.isdecimal() and int(name) < len(body):  # pyright: ignore[reportUnknownArgumentType]
            return body[int(name)]  # pyright: ignore[reportUnknownVariableType]
        raise KeyError(name)
    return body[name]


def _found(structure: Structure, path: KeyPath) -> tuple[Structure, KeyPath]:
    """Return the node that an alias names, by its stored path."""
    node = structure
    for name in keypath.split(path):
        kind, body = node_of(node, path, 0)
        while kind == "state":
            kind, body = node_of(body, path, 0)
        try:
            node = _member(body, name)
        except KeyError:
            raise FormatError(f"the structure shares {path!r}, which is not there") from None
    if isinstance(node, str):
        raise FormatError(f"the structure shares {path!r}, which is itself shared")
    return node, path
