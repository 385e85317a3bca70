# SPDX-License-Identifier: Apache-2.0
"""The records of one checkpoint, and its leaves that are not yet read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from types import EllipsisType
from typing import Any, SupportsIndex, TypeAlias, final

import numpy as np

from milepost.adapters import Array
from milepost.engine.root import Root
from milepost.engine.stored import Stored
from milepost.engine.transfer import Source
from milepost.errors import folded
from milepost.model import keypath
from milepost.model.format import Manifest, Note, Slot
from milepost.model.keypath import KeyPath
from milepost.model.leaf import Box, LeafSpec, dtype_info
from milepost.stores import Hold

_REMEMBERED = 8
"""Checkpoints whose loaded arrays are known again."""

Part: TypeAlias = SupportsIndex | slice | EllipsisType
Index: TypeAlias = Part | tuple[Part, ...]


@final
class LeafRef:
    """One stored leaf not yet read; slicing reads only that range."""

    __slots__ = ("_opened", "_there", "path", "spec")

    def __init__(self, opened: Opened, path: KeyPath, there: KeyPath) -> None:
        self._opened, self._there = opened, there
        self.path = path
        self.spec: LeafSpec = opened.stored.spec(there)

    @property
    def nbytes(self) -> int:
        """Bytes of the leaf's data; 0 for a value."""
        return self.spec.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that `read` returns; () for a value."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the array that `read` returns (of a key, that of its words); None for a value."""
        array = self._opened.stored.table.arrays.get(self._there)
        if array is None:
            return None
        dtype = dtype_info(array.dtype).numpy
        return dtype.newbyteorder("=") if dtype.isnative else dtype  # else it prints as `<f4`

    @property
    def origin(self) -> str:
        """The framework whose array was saved: `numpy`, `jax` or `torch`; empty for a value."""
        array = self._opened.stored.table.arrays.get(self._there)
        return "" if array is None else array.origin or "numpy"

    def read(self) -> Any:
        """Return the whole leaf: a NumPy array, or the value."""
        with self._opened.lease():
            return self._opened.stored.leaf(self._there)

    def __getitem__(self, index: Index) -> Any:
        """Return the part that NumPy's basic indexing (integers, slices, `...`) selects, reading no other range."""
        array = self._opened.stored.table.arrays.get(self._there)
        if array is None:
            raise TypeError(f"{self.path} is a {self.spec}, which has no parts: use read()")
        box, rest = _box_of(index, array.shape)
        with self._opened.lease():
            return self._opened.stored.source.read(self._there, array, box)[rest]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        value = np.asarray(self.read())
        return value if dtype is None else value.astype(dtype)

    def __repr__(self) -> str:
        return f"LeafRef({self.path!r}, {self.spec})"


@final
class Leaves(Mapping[str, LeafRef]):
    """The leaves of a checkpoint by key path, in the tree's order."""

    def __init__(self, opened: Opened, entries: dict[KeyPath, KeyPath]) -> None:
        self._opened, self._entries = opened, entries

    def __getitem__(self, path: str) -> LeafRef:
        there = self._entries.get(path)
        if there is None:
            raise KeyError(path)
        return LeafRef(self._opened, path, there)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{len(self)} leaves: {folded(self._entries)}>"


@final
class Opened:
    """The records of one checkpoint, read when first asked for, shared by its views."""

    def __init__(self, root: Root, slot: Slot, manifest: Manifest, *, rank: int = 0, superseded: bool = False) -> None:
        self.root, self.slot, self.manifest, self.rank, self.superseded = root, slot, manifest, rank, superseded
        self.where = f"step {slot.step} of {root.url}"

    @cached_property
    def stored(self) -> Stored:
        table = self.root.table(self.slot, self.manifest)
        packs = [pack.name for pack in table.packs]
        source = Source(self.root.store, self.slot, packs, self.root.damaged, self.root.concurrency)
        loaded = self.root.loaded.setdefault(self.manifest.leaves, {})
        while len(self.root.loaded) > _REMEMBERED:  # a reader of one step after the other goes on from no old one
            self.root.loaded.pop(next(iter(self.root.loaded)), None)
        return Stored(table, source, keypath.ROOT, table.tree, self.rank, self.where, loaded)

    @cached_property
    def notes(self) -> list[Note]:
        return self.root.notes(self.slot, self.manifest)

    def lease(self) -> Hold:
        return self.root.lease(self.slot, self.manifest)


def _box_of(index: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[Any, ...]]:
    """Return the box that basic indexing needs, and the index to apply to it afterwards."""
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]  # pyright: ignore[reportUnknownArgumentType]
    if not all(item is Ellipsis or isinstance(item, slice) or _is_integer(item) for item in items):
        raise TypeError(f"a leaf is indexed by integers, slices and `...`, not {index!r}: read() it first")
    places = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(places) > 1:
        raise IndexError("an index has one `...` at most")
    for place in places:
        items[place : place + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    if len(items) > len(shape):
        raise IndexError(f"{len(items)} indices for an array of shape {shape}")
    items += [slice(None)] * (len(shape) - len(items))
    start: list[int] = []
    stop: list[int] = []
    rest: list[Any] = []
    for item, size in zip(items, shape, strict=True):
        if isinstance(item, slice):
            positions = range(*item.indices(size))
            low, high = (min(positions), max(positions) + 1) if positions else (0, 0)
            rest.append(slice(None, None, positions.step) if positions else slice(None))
        else:
            low = int(item) + size if int(item) < 0 else int(item)
            if not 0 <= low < size:
                raise IndexError(f"index {int(item)} is out of bounds for a dimension of size {size}")
            high = low + 1
            rest.append(0)
        start.append(low)
        stop.append(high)
    # With a `...` NumPy gives an array where it would give a scalar without.
    return Box(tuple(start), tuple(stop)), (*rest, ...) if places else tuple(rest)


def _is_integer(item: Any) -> bool:
    # A bool is an index of another kind, and so is an array, though both can be made an integer.
    return hasattr(item, "__index__") and not isinstance(item, bool | np.bool_) and np.ndim(item) == 0
