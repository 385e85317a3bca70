# SPDX-License-Identifier: Apache-2.0
"""A saved tree with its bytes: what is at a path, and how its boxes are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from milepost.adapters import Array, adapter_named
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
    """

    table: LeafTable
    source: Source
    path: KeyPath
    node: Any
    rank: int
    where: str

    def entries(self, rank: int | None) -> dict[KeyPath, KeyPath]:
        """Return path -> stored path of every leaf of this part; with rank None those of all processes."""
        return dict(structure.visible(self.table.tree, rank, node=self.node, stored=self.path))

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
        return adapter.place(None, self.spec(stored), reader(self.source, stored, array, array.data_spec))

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
