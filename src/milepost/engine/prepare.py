# SPDX-License-Identifier: Apache-2.0
"""What one save is made of: the arrays to write, those that are as they were saved, and all other leaves."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from milepost.adapters import Classifier, Piece, adapter_of
from milepost.engine.capture import Held
from milepost.engine.plan import PackPlan, Source, owned, packs
from milepost.engine.root import Root
from milepost.errors import UnsupportedLeafError
from milepost.model import tree
from milepost.model.format import LeafTable, Manifest, Slot, StoredArray
from milepost.model.keypath import KeyPath
from milepost.model.leaf import Box, LeafSpec, data_spec, dtype_info
from milepost.model.value import encode

References = dict[KeyPath, "weakref.ref[Any]"]


@dataclass(frozen=True, slots=True)
class Base:
    """The step that unchanged leaves are linked from: the newest one that this writer knows to be whole.

    Attributes:
        slot: where its files lie.
        table: its leaf table.
        digest: of the leaf table's file.
        nbytes: size of that file.
        arrays: the immutable arrays that it was saved from, or that were loaded from it.
    """

    slot: Slot
    table: LeafTable
    digest: str
    nbytes: int
    arrays: References = dataclasses.field(default_factory=dict[KeyPath, Any])


def base_of(root: Root, slot: Slot, manifest: Manifest) -> Base:
    """Return a committed step as a base.

    Raises:
        CheckpointError: it cannot be read.
    """
    nbytes = next(file.nbytes for file in manifest.files if file.name == "leaves.json")
    return Base(slot, root.table(slot, manifest), manifest.leaves, nbytes, root.loaded.get(manifest.leaves, {}))


@final
class Outline:
    """What the last tree's arrays were like, so that the same tree is not planned again."""

    def __init__(self) -> None:
        self.known: dict[KeyPath, tuple[Hashable, LeafSpec, list[Source]]] = {}
        self._sources: list[Source] = []
        self._members: list[int] = []
        self._plans: list[PackPlan] = []

    def packs(self, sources: list[Source], members: list[int]) -> list[PackPlan]:
        """Return the packs that hold the given sources; those of last time when they are the same."""
        if members != self._members or sources != self._sources:  # the same objects are not compared any further
            self._plans = packs(sources, members)
            self._sources, self._members = sources, members
        return self._plans


@dataclass(frozen=True, slots=True)
class Captured:
    """A tree ready to be written: nothing in it belongs to the caller any more, once its buffers are there.

    Attributes:
        sources: the boxes that this process writes.
        held: the frameworks' objects that hold them; let go of once they are captured.
        specs: the arrays' specs by path, in the tree's order.
        same: arrays that are the very ones of the base, as its leaf table has them; no byte of them is looked at.
        origins: the framework of each other array.
        arrays: the immutable ones among all arrays, to know them again at the next save.
        values: all other leaves, as tagged JSON.
        structure: the tree as data.
        outline: knows the packs of the last tree.
    """

    sources: list[Source]
    held: list[Held]
    specs: dict[KeyPath, LeafSpec]
    same: dict[KeyPath, StoredArray]
    origins: dict[KeyPath, str]
    arrays: References
    values: dict[KeyPath, Any]
    structure: Any
    outline: Outline

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        same = sum(box.nbytes for stored in self.same.values() for box in stored.boxes)
        return same + sum(source.nbytes for source in self.sources)


def prepare(value: Any, root: Root, base: Base | None, outline: Outline, *, rank: int = 0) -> Captured:
    """Return the leaves of a tree, sorted into arrays to write, arrays that are as they were, and values.

    Args:
        value: the tree.
        root: where it is to be saved.
        base: what it may be linked from; None: every array is looked at.
        outline: of the last tree; that of this one when this returns.
        rank: this process.

    Raises:
        UnsupportedLeafError: something cannot be stored, with its path.
    """
    with tree.collector_paused():
        flat = tree.flatten(value, Classifier(), rank=rank)
        return _sorted(flat, _same(flat.leaves, root, base), outline, rank)


def _same(leaves: Mapping[KeyPath, Any], root: Root, base: Base | None) -> dict[KeyPath, StoredArray]:
    """Return the arrays that are the very objects that the base holds, and whose packs stay.

    What lies in a pack under half of which they fill is left out: it may have to be written anew, so its bytes are
    needed.
    """
    if base is None or not base.arrays:
        return {}
    found: dict[KeyPath, StoredArray] = {}
    for path, reference in base.arrays.items():
        array = reference()
        if array is not None and leaves.get(path) is array and path in base.table.arrays:
            adapter = adapter_of(array)
            if adapter is not None and adapter.likeness(array) is not None:
                found[path] = base.table.arrays[path]
    if not found:
        return found
    filled = [0] * len(base.table.packs)
    for stored in found.values():
        for box in stored.boxes:
            filled[box.pack] += box.nbytes
    there = {info.key.rpartition("/")[2] for info in root.store.list(base.slot.key(""), delimiter="/")}
    stays = [
        2 * nbytes >= pack.nbytes - pack.header_nbytes and pack.name in there and pack.name not in root.damaged
        for pack, nbytes in zip(base.table.packs, filled, strict=True)
    ]
    return {path: stored for path, stored in found.items() if all(stays[box.pack] for box in stored.boxes)}


def _sorted(flat: tree.Flat, same: dict[KeyPath, StoredArray], outline: Outline, rank: int) -> Captured:
    sources: list[Source] = []
    held: list[Held] = []
    specs: dict[KeyPath, LeafSpec] = {}
    origins: dict[KeyPath, str] = {}
    arrays: References = {}
    values: dict[KeyPath, Any] = {}
    known, before = {}, outline.known
    divided = False
    for path, leaf in flat.leaves.items():
        adapter = adapter_of(leaf)
        try:
            if adapter is None:
                values[path] = encode(leaf)
                continue
            if path in same:
                specs[path], arrays[path] = same[path].spec, weakref.ref(leaf)
                if path in before:
                    known[path] = before[path]
                continue
            key, entry = adapter.likeness(leaf), before.get(path)
            if entry is None or key is None or entry[0] != key:
                if adapter.nature(leaf) == "abstract":
                    raise UnsupportedLeafError("an abstract array has no data\n  Save the array itself.")
                spec = adapter.spec(leaf)
                entry = key, spec, _outlined(path, spec, pieces := adapter.pieces(leaf), rank)
            else:
                pieces = adapter.pieces(leaf)
            known[path] = entry
            specs[path], origins[path] = entry[1], adapter.name
            if adapter.immutable:
                arrays[path] = weakref.ref(leaf)
            divided = divided or len(pieces) != 1
            sources += entry[2]
            held += [Held(source, piece, adapter) for source, piece in zip(entry[2], pieces, strict=True)]
        except UnsupportedLeafError as error:
            raise UnsupportedLeafError(f"{path or 'the root'}: {error}") from None
    outline.known = known
    if divided:
        mine = owned(sources, rank)
        sources, held = [sources[i] for i in mine], [held[i] for i in mine]
    return Captured(sources, held, specs, same, origins, arrays, values, flat.structure, outline)


def _outlined(path: KeyPath, spec: LeafSpec, pieces: Sequence[Piece], rank: int) -> list[Source]:
    data = data_spec(spec)
    _check_covered(data, pieces)
    itemsize = dtype_info(data.dtype).itemsize
    return [Source(path, data, piece.box, piece.box.size * itemsize, rank, piece.replica) for piece in pieces]


def _check_covered(spec: LeafSpec, pieces: Sequence[Piece]) -> None:
    """Refuse an array of which this process holds a part only."""
    if len(pieces) == 1 and pieces[0].box is Box.whole(spec.shape):
        return
    there, whole = sum(box.size for box in {piece.box for piece in pieces}), Box.whole(spec.shape).size
    if there != whole:
        raise UnsupportedLeafError(
            f"this process holds {there:,} of its {whole:,} elements\n"
            "  Gather it to one process, or save from all processes that hold it."
        )
