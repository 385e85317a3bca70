# SPDX-License-Identifier: Apache-2.0
"""A saved tree with its bytes: what is at a path, and how its boxes are read."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, final

import numpy as np

from milepost.adapters import Array, adapter_named, adapter_of
from milepost.engine.ahead import Ahead
from milepost.engine.transfer import Source
from milepost.errors import CorruptionError, FormatError
from milepost.model import structure
from milepost.model.format import LeafTable, StoredArray
from milepost.model.keypath import KeyPath
from milepost.model.leaf import KEY_WORDS, Box, LeafSpec, data_spec, dtype_info
from milepost.model.value import data_type, decode


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """A saved tree, or a part of one, with its bytes.

    Attributes:
        table: the leaf table.
        source: reads the boxes.
        path: where the part lies, as stored.
        node: its structure.
        rank: this process, for `PerProcess` values.
        where: for messages, `step 12000 of runs/7`.
        loaded: where immutable arrays are noted that now hold a whole leaf as it is stored.
    """

    table: LeafTable
    source: Source
    path: KeyPath
    node: Any
    rank: int
    where: str
    loaded: dict[KeyPath, weakref.ref[Any]] = field(default_factory=dict[KeyPath, "weakref.ref[Any]"], compare=False)

    def entries(self, rank: int | None) -> dict[KeyPath, KeyPath]:
        """Return path -> stored path of every leaf of this part; with rank None those of all processes."""
        return dict(structure.visible(self.table.tree, rank, node=self.node, stored=self.path))

    @contextmanager
    def ahead(self) -> Generator[tuple[Stored, Ahead]]:
        """Give this tree again, with a source that reads ahead what it is told to."""
        with Ahead(self.source) as ahead:
            yield dataclasses.replace(self, source=cast("Source", ahead)), ahead

    def spec(self, stored: KeyPath) -> LeafSpec:
        """Return the spec of a leaf."""
        array = self.table.arrays.get(stored)
        if array is None:
            if stored not in self.table.values:
                raise CorruptionError(f"{self.where}: the leaf table has no entry for {stored or 'the root'}")
            return LeafSpec("value", data_type(self.table.values[stored]))
        if array.key and (array.key not in KEY_WORDS or data_spec(array.spec) != array.data_spec):
            raise FormatError(f"{self.where}: {stored or 'the root'} is no key of {array.key[:80]}")
        return array.spec

    def leaf(self, stored: KeyPath) -> Any:
        """Return a leaf as it comes without `like`: a NumPy array, or the value."""
        array = self.table.arrays.get(stored)
        if array is None:
            self.spec(stored)  # says so when there is no such leaf
            return decode(self.table.values[stored])
        return self.source.read(stored, array, Box.whole(array.shape))

    def native(self, stored: KeyPath) -> Any:
        """Return a leaf in the framework that it came from, when that is loaded, else as `leaf` does."""
        array = self.table.arrays.get(stored)
        adapter = adapter_named(array.origin) if array is not None else None
        if array is None or adapter is None:
            return self.leaf(stored)
        placed = adapter.place(None, self.spec(stored), reader(self.source, stored, array, array.data_spec))
        self.note(stored, self.spec(stored), placed)
        return placed

    def note(self, stored: KeyPath, spec: LeafSpec, placed: Any) -> None:
        """Note the array that a leaf was loaded into, if it can never hold anything else."""
        adapter = adapter_of(placed)
        if adapter is not None and adapter.immutable and spec == self.spec(stored):
            self.loaded[stored] = weakref.ref(placed)

    def at(self, path: KeyPath) -> tuple[Any, KeyPath] | None:
        """Return the node at a path, for this process, and its stored path; None when there is none."""
        try:
            found = structure.subtree(self.table.tree, path, self.rank, node=self.node, stored=self.path)
        except KeyError:
            return None
        return structure.of_process(*found, self.rank)

    def state(self, node: Any, there: KeyPath) -> Any:
        """Return a saved state, each array in the framework that it came from when that is loaded."""
        read: dict[KeyPath, Any] = {}  # what was saved shared comes back shared

        def leaf(_: KeyPath, at: KeyPath) -> Any:
            if at not in read:
                read[at] = self.native(at)
            return read[at]

        return structure.rebuild(self.table.tree, leaf, node=node, stored=there)


def reader(
    source: Source, path: KeyPath, array: StoredArray, wanted: LeafSpec, *, lazy: bool = False
) -> Callable[..., Array]:
    """Return the function that reads boxes of a stored leaf in the dtype that is wanted."""
    target = dtype_info(wanted.dtype).numpy
    same = array.dtype.lstrip(">") == wanted.dtype.lstrip(">")

    def read(box: Box, out: Array | None = None) -> Array:
        if lazy and out is None and same and box == Box.whole(array.shape):
            data = source.mapped(path, array)
        elif array.dtype == wanted.dtype:
            return source.read(path, array, box, out)
        else:
            data = source.read(path, array, box)
        return converted(data, target, out)

    return read


def number_reader(value: Any, wanted: LeafSpec) -> Callable[..., Array]:
    """Return the function that gives a stored number as the 0-d array that is wanted."""
    target = dtype_info(wanted.dtype).numpy

    def read(_: Box, out: Array | None = None) -> Array:
        return converted(np.asarray(value), target, out)

    return read


def converted(data: Array, target: np.dtype[Any], out: Array | None) -> Array:
    if data.dtype != target:
        with np.errstate(all="ignore"):  # a number out of range was asked for with dtype="cast"
            data = data.astype(target)
    if out is None:
        return data
    out[...] = data
    return out
