# SPDX-License-Identifier: Apache-2.0
"""Trees of the user to leaves, and back into containers of the same types."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import inspect
import sys
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, final

from milepost.errors import UnsupportedLeafError
from milepost.model import keypath
from milepost.model.keypath import KeyPath, join
from milepost.model.leaf import LeafSpec
from milepost.model.structure import MAX_DEPTH, Structure
from milepost.model.value import value_type


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
    """Whether each array of the state is compared with the object's present one (modules), or all is given back whole.
    The state is then a flat dict; what in it is no array is given back whole, too."""
    by_value: bool
    """Whether a copy of the object is as good as itself (random generators), so that `load` may return one."""

    def owns(self, value: Any) -> bool:
        """Return whether this provider knows the value; asked once for each type."""
        ...

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
        whole: of a `like`, the paths of what is given back whole: states, or parts of them.
        unranked: path -> path without the ranks of `PerProcess`, for the nodes below one.
    """

    leaves: dict[KeyPath, Any]
    structure: Structure
    aliases: dict[KeyPath, KeyPath]
    objects: list[StateObject]
    whole: list[KeyPath]
    unranked: dict[KeyPath, KeyPath]


@contextmanager
def collector_paused() -> Generator[None]:
    """Let the garbage collector rest: where all new objects stay alive it frees nothing, and takes half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


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
    flat = Flat({}, None, {}, [], [], {})
    structure = _Walk(flat, classify, rank, present).node(tree, keypath.ROOT, 0)
    return dataclasses.replace(flat, structure=structure)


@final
class _Walk:
    def __init__(self, flat: Flat, classify: Classify, rank: int, present: bool) -> None:
        self.flat, self.classify, self.rank, self.present = flat, classify, rank, present
        self.seen: dict[Hashable, KeyPath] = {}
        self.owner: StateObject | None = None
        self.ranked: list[tuple[KeyPath, KeyPath]] = []

    def node(self, value: Any, path: KeyPath, depth: int) -> Structure:
        if depth > MAX_DEPTH:
            raise UnsupportedLeafError(
                f"{path[:80]}…: the tree is nested deeper than {MAX_DEPTH} levels\n"
                "  If a container contains itself, leave that reference out; else flatten it."
            )
        if self.classify.is_array(value):
            return self.shared(value, path) or self.leaf(value, path)
        if value is SKIP or isinstance(value, LeafSpec):
            return self.leaf(value, path)
        if isinstance(value, PerProcess):
            return self.per_process(value.value, path, depth)
        kind = cast("type[object]", type(value))
        if kind is not dict and kind is not list and kind is not tuple:
            if _is_value(value, path):
                return self.leaf(value, path)
            if (provider := self.classify.provider(value)) is not None:
                return self.state(StateObject(path, value, provider), depth)
        opened = open_node(value, path)
        if opened is None:
            raise UnsupportedLeafError(_unsupported(value, path))
        parts: dict[str, Structure] = {}
        for segment, child in zip(opened.segments, opened.children, strict=True):
            parts[segment] = self.node(child, join(path, segment), depth + 1)
        return {opened.kind: list(parts.values()) if opened.kind in ("list", "tuple") else parts}

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

    def note(self, path: KeyPath) -> None:
        if self.ranked:
            self.flat.unranked[path] = self.unranked(path)

    def leaf(self, value: Any, path: KeyPath) -> Structure:
        self.flat.leaves[path] = value
        self.note(path)
        return 0

    def whole(self, path: KeyPath) -> Structure:
        self.flat.whole.append(path)
        self.note(path)
        return 0

    def shared(self, value: Any, path: KeyPath) -> KeyPath | None:
        identity = self.classify.identity(value)
        return None if identity is None else self.alias(identity, path)

    def alias(self, identity: Hashable, path: KeyPath) -> KeyPath | None:
        first = self.seen.setdefault(identity, path)
        if first == path:
            return None
        self.flat.aliases[path] = first
        self.note(path)
        return first

    def state(self, item: StateObject, depth: int) -> Structure:
        path = item.path
        if self.owner is not None:
            # It would come back as a mere dict, to an owner who does not expect one.
            raise UnsupportedLeafError(
                f"{path or 'the root'}: the state of the {type(self.owner.value).__name__} there holds a"
                f" {type(item.value).__name__}, which has a state of its own\n"
                "  Let the outer `state_dict()` hold the state of the inner object instead."
            )
        if (first := self.alias(("object", id(item.value)), path)) is not None:
            return first
        self.flat.objects.append(item)
        self.note(path)
        if self.present and not item.provider.by_leaf:
            return {"state": self.whole(path)}
        state = self.state_of(item)
        if self.present:
            return {"state": self.parts(state, path)}
        self.owner = item
        structure = {"state": self.node(state, path, depth + 1)}
        self.owner = None
        return structure

    def parts(self, state: Mapping[str, Any], path: KeyPath) -> Structure:
        """Return the structure of a state that is compared by leaf, in a `like`."""
        parts: dict[str, Structure] = {}
        for key, value in state.items():
            at = join(path, segment := keypath.segment(key))
            is_array = self.classify.is_array(value)
            parts[segment] = (self.shared(value, at) or self.leaf(value, at)) if is_array else self.whole(at)
        return {"dict": parts}

    def state_of(self, item: StateObject) -> Any:
        try:
            return item.provider.tree(item.value)
        except UnsupportedLeafError as error:
            raise _at(item.path, error) from None
        except Exception as error:
            error.add_note(f"raised by the {type(item.value).__name__} at {item.path or 'the root'} of the tree")
            raise


def _at(path: KeyPath, error: UnsupportedLeafError) -> UnsupportedLeafError:
    return UnsupportedLeafError(f"{path or 'the root'}: {error}")


def _is_value(value: Any, path: KeyPath) -> bool:
    try:
        return value_type(value) is not None
    except UnsupportedLeafError as error:
        raise _at(path, error) from None


def open_node(value: Any, path: KeyPath = "") -> Node | None:
    """Return the container opened one level deep, None when it is no container.

    Raises:
        UnsupportedLeafError: a dict has a key that cannot be stored; `path` says where.
    """
    if isinstance(value, dict):
        return _open_dict(cast("dict[Any, Any]", value), path)
    if isinstance(value, list | tuple):
        return _open_sequence(value)  # pyright: ignore[reportUnknownArgumentType]
    return _open_registered(value, path) or _open_fields(value)


def _open_dict(value: dict[Any, Any], path: KeyPath) -> Node:
    try:
        segments = [keypath.segment(key) for key in value]
    except UnsupportedLeafError as error:
        raise _at(path, error) from None
    if len(set(segments)) < len(segments):  # NaN, and keys that compare by something else than they hold
        twice = next(text for text, count in collections.Counter(segments).items() if count > 1)
        raise UnsupportedLeafError(
            f"{path or 'the root'}: two keys of a dict are both stored as {twice}\n  Give one of them another name."
        )
    keys = list(value)

    def build(children: list[Any]) -> Any:
        items = dict(zip(keys, children, strict=True))
        if type(value) is dict:
            return items
        other = copy.copy(value)
        for key, child in items.items():
            other[key] = child
        return other

    return Node("dict", segments, list(value.values()), build)


def _open_sequence(value: Any) -> Node:
    items: list[Any] = list(value)
    kind: Any = cast("Any", type(value))
    is_tuple = isinstance(value, tuple)
    if is_tuple and hasattr(kind, "_fields"):
        return Node("namedtuple", [keypath.segment(name) for name in kind._fields], items, kind._make)

    make: Callable[[list[Any]], Any] = kind

    def build(children: list[Any]) -> Any:
        if is_tuple or type(value) is list:
            return make(children)
        other = copy.copy(cast("list[Any]", value))
        other[:] = children
        return other

    return Node("tuple" if is_tuple else "list", [str(i) for i in range(len(items))], items, build)


def _open_registered(value: Any, path: KeyPath) -> Node | None:
    """Open a node registered with JAX, when JAX is loaded; `build` puts its static part back."""
    tree_util: Any = sys.modules.get("jax.tree_util")
    if tree_util is None or not hasattr(tree_util, "tree_flatten_with_path") or isinstance(value, Iterator):
        return None

    def is_leaf(child: Any) -> bool:
        return child is not value

    paths, definition = tree_util.tree_flatten_with_path(value, is_leaf=is_leaf)
    if len(paths) == 1 and not paths[0][0]:
        return None  # a leaf
    try:
        segments = [_registered_segment(keys[0], tree_util) for keys, _ in paths]
    except UnsupportedLeafError as error:
        raise _at(path, error) from None
    if len(set(segments)) < len(segments):
        segments = [str(i) for i in range(len(paths))]
    children = [child for _, child in paths]
    return Node("fields", segments, children, lambda new: tree_util.tree_unflatten(definition, new))


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
        fields: Any = dataclasses.fields(value)
    else:
        fields = getattr(cast("type[object]", type(value)), "__attrs_attrs__", None)
    if fields is None:
        return None
    names: list[str] = [field.name for field in fields if not _static(field.metadata) and hasattr(value, field.name)]

    def build(children: list[Any]) -> Any:
        # Neither `__init__` nor `__post_init__` runs: the fields are put back as they were, on a copy.
        other = copy.copy(value)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(other, name, child)
        return other

    segments = [keypath.segment(name) for name in names]
    return Node("fields", segments, [getattr(value, name) for name in names], build)


def _static(metadata: Mapping[Any, Any]) -> bool:
    return bool(metadata.get("static", False)) or not metadata.get("pytree_node", True)


def _unsupported(value: Any, path: KeyPath) -> str:
    kind = cast("type[object]", type(value))
    if callable(value):
        remedy = (
            "Leave functions out: with Equinox, save `equinox.filter(model, equinox.is_array)`; in dataclasses mark the"
            ' field `metadata={"static": True}`.'
        )
    elif isinstance(value, set | frozenset):
        remedy = "Store it as a sorted list."
    elif isinstance(value, collections.deque | range | Mapping):
        remedy = "Store it as a list." if not isinstance(value, Mapping) else "Store it as a dict."
    else:
        remedy = (
            "Store numbers, text, bytes, dates, None, arrays or containers of them; or give the class `state_dict()`"
            " and `load_state_dict()`."
        )
    return f"{path or 'the root'}: a {kind.__module__}.{kind.__qualname__} cannot be stored\n  {remedy}"


# Back to trees.


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
    new: list[Any] = []
    for name, child in zip(opened.segments, opened.children, strict=True):
        new.append(replaced(child, classify, leaf, path=join(path, name)))
    return opened.build(new)


def is_leaf(value: Any, classify: Classify) -> bool:
    """Return whether a value is an array, a value, a spec or `SKIP`: no container and no object with state."""
    kind = cast("type[object]", type(value))
    if kind is dict or kind is list or kind is tuple:
        return False
    return classify.is_array(value) or value is SKIP or isinstance(value, LeafSpec) or value_type(value) is not None


def setters(tree: Any, classify: Classify, *, path: KeyPath = "") -> Iterator[tuple[KeyPath, Callable[[Any], None]]]:
    """Yield how each leaf can be replaced in its container; leaves of containers that cannot change are left out."""
    if isinstance(tree, PerProcess):
        yield from setters(tree.value, classify, path=path)
        return
    if is_leaf(tree, classify) or classify.provider(tree) is not None or (opened := open_node(tree, path)) is None:
        return
    keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(opened.segments)))  # pyright: ignore[reportUnknownArgumentType]
    for name, child, key in zip(opened.segments, opened.children, keys, strict=True):
        inner = child.value if (ranked := isinstance(child, PerProcess)) else child
        if not is_leaf(inner, classify):
            yield from setters(inner, classify, path=join(path, name))
        elif isinstance(tree, dict | list):
            yield join(path, name), _item_setter(tree, key, ranked)
        elif _assignable(tree, name):
            yield join(path, name), _field_setter(tree, name, ranked)


def _item_setter(container: Any, key: Any, ranked: bool) -> Callable[[Any], None]:
    return lambda value: container.__setitem__(key, PerProcess(value) if ranked else value)


def _field_setter(container: Any, name: str, ranked: bool) -> Callable[[Any], None]:
    return lambda value: setattr(container, name, PerProcess(value) if ranked else value)


def _assignable(container: Any, name: str) -> bool:
    # A property would run code of the class, and give what is no field of its own.
    if isinstance(container, tuple) or isinstance(inspect.getattr_static(container, name, property()), property):
        return False
    kind = cast("type[Any]", type(cast("object", container)))
    if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        return False
    if hasattr(kind, "__attrs_attrs__"):
        return kind.__setattr__.__name__ != "_frozen_setattrs"
    if kind.__setattr__ is not object.__setattr__:
        try:
            setattr(container, name, getattr(container, name))  # of Equinox's modules nothing else tells
        except (AttributeError, TypeError):
            return False
    return True
