# SPDX-License-Identifier: Apache-2.0
"""What differs between two checkpoints, told by digests; numbers only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import numpy as np

from milepost.adapters import Array
from milepost.engine.stored import Stored
from milepost.model.format import StoredArray
from milepost.model.keypath import KeyPath
from milepost.model.leaf import LeafSpec

Change = Literal["same", "changed", "added", "removed", "respecified"]


@dataclass(frozen=True, slots=True)
class LeafDiff:
    """One leaf in two checkpoints.

    Attributes:
        path: its key path.
        change: `same`, `changed` (other content), `added`, `removed`, or `respecified` (other dtype or shape).
        before, after: the specs; None where it is not there.
    """

    path: KeyPath
    change: Change
    before: LeafSpec | None
    after: LeafSpec | None


@dataclass(frozen=True, slots=True)
class Stats:
    """How far a numeric leaf moved: L2 norm of the difference, of the leaf before, and the largest difference."""

    difference: float
    norm: float
    largest: float

    @property
    def relative(self) -> float:
        """|d| / |w|; infinite when the leaf was all zero."""
        return self.difference / self.norm if self.norm else float("inf") if self.difference else 0.0


@final
class Diff:
    """The leaves of two checkpoints side by side, in the order of the first."""

    def __init__(self, leaves: list[LeafDiff], before: Stored, after: Stored) -> None:
        self.leaves = leaves
        self._before, self._after = before, after

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return any(leaf.change != "same" for leaf in self.leaves)

    def of(self, change: Change) -> list[LeafDiff]:
        """Return the leaves with that change."""
        return [leaf for leaf in self.leaves if leaf.change == change]

    def values(self, path: str) -> tuple[Any, Any]:
        """Return a leaf of both checkpoints, read; None where it is not there."""
        return _leaf(self._before, path), _leaf(self._after, path)

    def stats(self, path: str) -> Stats | None:
        """Return how far a numeric array moved, None for anything else. Cost: reads the leaf twice."""
        before, after = self.values(path)
        if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
            return None
        left, right = cast("Array", before), cast("Array", after)
        if left.shape != right.shape:
            return None
        wide = np.complex128 if left.dtype.kind == "c" else np.float64
        try:
            old: Array = left.astype(wide)
            new: Array = right.astype(wide)
        except (TypeError, ValueError):
            return None
        with np.errstate(all="ignore"):  # infinities and NaN are what somebody is looking for
            delta = np.abs(new - old)
            largest = float(delta.max()) if delta.size else 0.0
            return Stats(float(np.linalg.norm(delta.ravel())), float(np.linalg.norm(old.ravel())), largest)

    def __repr__(self) -> str:
        counts = {change: len(self.of(change)) for change in ("same", "changed", "added", "removed", "respecified")}
        return f"<Diff {', '.join(f'{count} {change}' for change, count in counts.items() if count)}>"


def compared(before: Stored, after: Stored) -> Diff:
    """Return what differs; a digest says whether bytes do, so no array is read unless its boxes were cut otherwise."""
    left, right = before.entries(None), after.entries(None)
    leaves: list[LeafDiff] = []
    for path, there in left.items():
        old = before.spec(there)
        if path not in right:
            leaves.append(LeafDiff(path, "removed", old, None))
            continue
        new = after.spec(right[path])
        if (old.kind, old.dtype, old.shape) != (new.kind, new.dtype, new.shape):
            change: Change = "respecified"
        else:
            change = "same" if _same(before, there, after, right[path]) else "changed"
        leaves.append(LeafDiff(path, change, old, new))
    added = (path for path in right if path not in left)
    leaves += [LeafDiff(path, "added", None, after.spec(right[path])) for path in added]
    return Diff(leaves, before, after)


def _same(before: Stored, left: KeyPath, after: Stored, right: KeyPath) -> bool:
    old, new = before.table.arrays.get(left), after.table.arrays.get(right)
    if old is None or new is None:
        return before.table.values.get(left) == after.table.values.get(right)
    cut = list(_cut(old))
    if [piece[:2] for piece in cut] == [piece[:2] for piece in _cut(new)]:
        return cut == list(_cut(new))
    return before.leaf(left).tobytes() == after.leaf(right).tobytes()


def _cut(array: StoredArray) -> Iterator[tuple[Any, Any, str]]:
    for box in sorted(array.boxes, key=lambda box: box.start or ()):
        yield box.start, box.shape, box.digest


def _leaf(stored: Stored, path: str) -> Any:
    there = stored.entries(None).get(path)
    return None if there is None else stored.leaf(there)
