# SPDX-License-Identifier: Apache-2.0
"""What becomes of a saved tree in Orbax's: one entry a leaf, and all that Orbax cannot hold, told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from milepost.engine.stored import Stored
from milepost.errors import UnsupportedLeafError
from milepost.interop.orbax.arrays import tensorstore
from milepost.model import keypath, structure
from milepost.model.keypath import KeyPath
from milepost.model.leaf import dtype_info
from milepost.model.value import decode

Names = tuple[str, ...]

_SEQUENCE, _DICT = 1, 2
_EMPTY = {"dict": "Dict", "list": "List", "tuple": "Tuple"}
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf, or one container without any.

    Attributes:
        keys: the text of each key on its way, and whether it is the index of a sequence.
        kind: as Orbax calls it: `jax.Array`, `np.ndarray`, `scalar`, `string`, `None`, `Dict`, `List`, `Tuple`.
        stored: the stored path of an array.
        value: a number as an array, or text.
        sharding: as the front doors record it.
        generator: of the keys that an array holds.
    """

    keys: tuple[tuple[str, bool], ...]
    kind: str
    stored: KeyPath | None = None
    value: Any = None
    sharding: Mapping[str, Any] | None = None
    generator: str = ""

    @property
    def names(self) -> Names:
        return tuple(name for name, _ in self.keys)

    @property
    def name(self) -> str:
        """What its files are named by."""
        return ".".join(self.names)

    @property
    def has_data(self) -> bool:
        """Whether there is an array of it."""
        return self.kind in ("jax.Array", "np.ndarray", "scalar")

    def record(self, write_shape: Sequence[int] | None) -> tuple[str, dict[str, Any]]:
        """Return its key and its entry in `_METADATA`."""
        value: dict[str, Any] = {
            "value_type": self.kind,
            "skip_deserialize": not self.has_data and self.kind != "string",
        }
        if self.kind == "jax.Array":
            value["write_shape"] = list(write_shape or ())
        keys = [{"key": name, "key_type": _SEQUENCE if is_index else _DICT} for name, is_index in self.keys]
        return str(self.names), {"key_metadata": keys, "value_metadata": value}


@dataclass(frozen=True, slots=True)
class _Leaf:
    path: KeyPath
    stored: KeyPath


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    items: dict[str, Any]


class Refusals:
    """What cannot be held, by path; raised together."""

    def __init__(self) -> None:
        self._found: dict[KeyPath, str] = {}

    def add(self, path: KeyPath, why: str) -> None:
        """Note a path, and why."""
        self._found.setdefault(path, why)

    def check(self, where: str) -> None:
        """Raise UnsupportedLeafError if there are any."""
        if not self._found:
            return
        lines = [f"{path or 'the root'}: {why}" for path, why in self._found.items()]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"... and {len(lines) - _SHOWN} more"]
        text = "\n  ".join(lines)
        raise UnsupportedLeafError(
            f"{where} holds what a checkpoint of Orbax cannot:\n  {text}\n  Leave them out with `exclude`."
        )


class Tree:
    """One tree of a checkpoint as Orbax's entries.

    Args:
        stored: the tree.
        prefix: its path in the checkpoint, for messages.
        skip: tells of a path whether it is left out.
        sharding: tells the recorded sharding of a leaf.
        hollow: nodes without children that Orbax stores as None.
        refusals: where is put what cannot be held.
    """

    def __init__(
        self,
        stored: Stored,
        prefix: KeyPath,
        skip: Callable[[KeyPath], bool],
        refusals: Refusals,
        *,
        sharding: Callable[[Names], Mapping[str, Any] | None] = lambda _: None,
        hollow: frozenset[Names] = frozenset(),
    ) -> None:
        self._stored, self._prefix, self._skip, self._refusals = stored, prefix, skip, refusals
        self._sharding, self._hollow = sharding, hollow

    def entries(self) -> list[Entry]:
        """Return all entries in the tree's order."""
        root = structure.rebuild(
            self._stored.table.tree, _Leaf, node=self._stored.node, stored=self._stored.path,
            container=lambda kind, items, _: _Node(kind, items),
        )  # fmt: skip
        if isinstance(root, _Node) and not root.items:
            self._refusals.add(self._prefix, "it is empty")
            return []
        found: list[Entry] = []
        taken: dict[Names | str, KeyPath] = {}
        for path, entry in self._visit(root, (), self._prefix):
            for key in (entry.names, entry.name) if entry.has_data or entry.kind == "string" else (entry.names,):
                if taken.setdefault(key, path) != path:
                    self._refusals.add(path, f"Orbax would store it as {entry.name!r}, as it does {taken[key]}")
            found.append(entry)
        texts = {entry.name for entry in found if entry.kind == "string"}
        for name in texts:
            for end in (i for i, letter in enumerate(name) if letter == "/"):
                if name[:end] in texts:
                    self._refusals.add(taken[name], f"text that its file of texts would put below {name[:end]!r}")
        if not found:
            self._refusals.add(self._prefix, "nothing of it is left")
        return found

    def _visit(
        self, node: _Node | _Leaf, keys: tuple[tuple[str, bool], ...], place: KeyPath
    ) -> Iterator[tuple[KeyPath, Entry]]:
        """Yield the entries below a node, each with its path. `place` is the node's own."""
        if isinstance(node, _Leaf):
            path = keypath.join(self._prefix, node.path)
            entry = None if self._skip(path) else self._entry(path, node.stored, keys)
            if entry is not None:
                yield path, entry
            return
        if not node.items:
            hollow = tuple(name for name, _ in keys) in self._hollow
            yield place, Entry(keys, "None" if hollow else _EMPTY.get(node.kind, "None"))
            return
        is_sequence = node.kind in ("list", "tuple")
        for segment, child in node.items.items():
            name = segment if is_sequence else str(keypath.key(segment))
            below, path, there = (*keys, (name, is_sequence)), keypath.join(place, segment), False
            for each in self._visit(child, below, path):
                there = True
                yield each
            if is_sequence and not there:  # a sequence keeps its length when an element is left out
                yield path, Entry(below, "None")

    def _entry(self, path: KeyPath, stored: KeyPath, keys: tuple[tuple[str, bool], ...]) -> Entry | None:
        array = self._stored.table.arrays.get(stored)
        if array is None:
            value = decode(self._stored.table.values[stored])
            try:
                return _of_value(value, keys)
            except UnsupportedLeafError as error:
                self._refusals.add(path, str(error))
                return None
        why = _flaw(array.dtype, array.shape)
        if why:
            self._refusals.add(path, why)
            return None
        sharding = self._sharding(tuple(name for name, _ in keys))
        kind = "jax.Array" if array.key or sharding else "np.ndarray"
        return Entry(keys, kind, stored, None, sharding, array.key)


def _flaw(dtype: str, shape: tuple[int, ...]) -> str:
    """Return why Orbax cannot hold an array; empty when it can."""
    if 0 in shape:
        return f"an array without elements, {dtype}{list(shape)}"
    return "" if holds(dtype_info(dtype).numpy) else f"an array of {dtype}, a dtype that TensorStore lacks"


@lru_cache(maxsize=256)
def holds(dtype: np.dtype[Any]) -> bool:
    """Return whether TensorStore has a dtype in zarr arrays."""
    module = tensorstore()
    try:
        spec = {"driver": "zarr", "kvstore": {"driver": "memory"}}
        module.open(spec, dtype=module.dtype(dtype), shape=[1], create=True).result()
    except (TypeError, ValueError):
        return False
    return True


def _of_value(value: Any, keys: tuple[tuple[str, bool], ...]) -> Entry:
    kind = cast("type[object]", type(value))
    if value is None:
        return Entry(keys, "None")
    if kind is str:
        if any("~" in name for name, _ in keys):
            raise UnsupportedLeafError("text under a key with `~`, which its file of texts cannot name")
        return Entry(keys, "string", value=value)
    if kind in (bool, float) or (kind is int and -(1 << 63) <= value < 1 << 64):
        return Entry(keys, "scalar", value=np.asarray(value))
    if kind is int:
        raise UnsupportedLeafError(f"an integer of {value.bit_length()} bits")
    if issubclass(kind, np.generic) and holds(value.dtype):
        return Entry(keys, "scalar", value=np.asarray(value))
    raise UnsupportedLeafError(f"a value of type {kind.__qualname__}")
