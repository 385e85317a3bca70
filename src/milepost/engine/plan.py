# SPDX-License-Identifier: Apache-2.0
"""Pure: who writes which box where, and which stored ranges fill a wanted box.

Nothing here touches a store, a framework or a clock, so every process that is given the same specs computes the same.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from milepost.model.format import (
    ALIGNMENT,
    MAX_CUTS,
    MAX_DIMENSIONS,
    MAX_HEADER,
    MAX_STEP,
    StoredArray,
    StoredBox,
    pack_header,
    tensor_name,
)
from milepost.model.leaf import Box, LeafSpec, dtype_info


@dataclass(frozen=True, slots=True)
class Source:
    """A box that somebody could write.

    Attributes:
        path: the leaf.
        spec: the leaf's data spec (whole shape).
        box: the range that this piece holds.
        nbytes: how many bytes that is.
        rank: the process that holds it.
        replica: which of the equal copies it is.
    """

    path: str
    spec: LeafSpec
    box: Box
    nbytes: int
    rank: int = 0
    replica: int = 0

    @property
    def start(self) -> tuple[int, ...] | None:
        shape = self.spec.shape
        return None if self.box is Box.whole(shape) or self.box.shape == shape else self.box.start


def owned(sources: Sequence[Source], rank: int) -> list[int]:
    """Return the indices of the boxes that process `rank` writes: each box once, balanced by bytes over its holders."""
    holders: dict[tuple[str, Box], list[int]] = {}
    for index, source in enumerate(sources):
        holders.setdefault((source.path, source.box), []).append(index)
    load: dict[int, int] = {}
    mine: list[int] = []
    for indices in sorted(holders.values(), key=lambda group: (-sources[group[0]].nbytes, group[0])):
        writer = min(indices, key=lambda i: (load.get(sources[i].rank, 0), sources[i].replica, sources[i].rank, i))
        load[sources[writer].rank] = load.get(sources[writer].rank, 0) + sources[writer].nbytes
        if sources[writer].rank == rank:
            mine.append(writer)
    return sorted(mine)


@dataclass(frozen=True, slots=True)
class PackPlan:
    """One pack: its header, which of the sources it holds, and where each begins in the file.

    Attributes:
        header: the safetensors header with its length field.
        members: indices of the sources, in file order.
        offsets: where each member's bytes begin in the file.
        nbytes: size of the file.
    """

    header: bytes
    members: tuple[int, ...]
    offsets: tuple[int, ...]
    nbytes: int


def packs(sources: Sequence[Source], members: Sequence[int], *, max_header: int = MAX_HEADER) -> list[PackPlan]:
    """Return the packs that hold the given sources, no empty ones.

    Tensors are ordered by the alignment of their sizes, largest first, so that the file has no holes and yet each one
    begins at a multiple of 64 when its size is one, and of its item size always.
    """
    ordered = sorted(members, key=lambda i: -_alignment(sources[i].nbytes))
    plans: list[PackPlan] = []
    while ordered:
        count = _that_fit(sources, ordered, max_header)
        plans.append(_pack(sources, ordered[:count]))
        ordered = ordered[count:]
    return plans


def _pack(sources: Sequence[Source], members: Sequence[int]) -> PackPlan:
    entries = [
        (
            tensor_name(sources[i].path, sources[i].start),
            dtype_info(sources[i].spec.dtype),
            sources[i].box.shape,
            sources[i].nbytes,
        )
        for i in members
    ]
    header = pack_header(entries, {"format": "pt", "written_by": "milepost"})
    offsets: list[int] = []
    position = len(header)
    for i in members:
        offsets.append(position)
        position += sources[i].nbytes
    return PackPlan(header, tuple(members), tuple(offsets), position)


def _that_fit(sources: Sequence[Source], members: Sequence[int], max_header: int) -> int:
    used = 256
    for count, i in enumerate(members):
        # At most: the name with every character escaped, dtype, a shape and two offsets of 20 digits a number.
        used += 6 * len(sources[i].path.encode()) + 120 + 42 * (1 + len(sources[i].spec.shape))
        if used > max_header and count:
            return count
    return len(members)


def _alignment(nbytes: int) -> int:
    return math.gcd(nbytes, ALIGNMENT) if nbytes else ALIGNMENT


@dataclass(frozen=True, slots=True)
class Part:
    """One stored box and the part of it that is wanted.

    Attributes:
        stored: the stored box.
        held: its range in the leaf.
        wanted: the common range, in the leaf.
    """

    stored: StoredBox
    held: Box
    wanted: Box


def stored_box(box: StoredBox, shape: tuple[int, ...]) -> Box:
    """Return the range of the leaf that a stored box holds."""
    if box.start is None or box.shape is None:
        return Box.whole(shape)
    return Box(box.start, tuple(a + n for a, n in zip(box.start, box.shape, strict=True)))


def parts(boxes: Sequence[StoredBox], shape: tuple[int, ...], wanted: Box) -> list[Part]:
    """Return the stored ranges that fill a wanted box; an empty list when the stored boxes do not cover it."""
    found: list[Part] = []
    for box in boxes:
        held = stored_box(box, shape)
        common = held.intersection(wanted)
        if common is not None:
            found.append(Part(box, held, common))
    return found if sum(part.wanted.size for part in found) == wanted.size else []


def flaw(array: StoredArray, itemsize: int, packs: int) -> str:
    """Return what is wrong with where the leaf table says that an array lies; empty when nothing is.

    Nothing of a table that fails here may be read: memory would be taken by its word, or given out as it was found.

    Args:
        array: the array.
        itemsize: bytes of an element.
        packs: how many packs the table names.
    """
    shape, boxes = array.shape, array.boxes
    least, whole = min(shape, default=1), math.prod(shape) * itemsize
    if not least:
        whole = math.prod(size for size in shape if size) * itemsize
    if len(shape) > MAX_DIMENSIONS or least < 0 or whole > MAX_STEP:
        return "its shape is none"
    if least and len(boxes) == 1 and boxes[0].start is None:  # nearly every array there is
        box = boxes[0]
        if box.nbytes == whole and box.offset >= 0 and 0 <= box.pack < packs:
            return ""
    for box in boxes:
        start, size = ((0,) * len(shape), shape) if box.start is None or box.shape is None else (box.start, box.shape)
        if not len(start) == len(size) == len(shape):
            return "a box has other dimensions than the array"
        if any(a < 0 or n < 0 or a + n > end for a, n, end in zip(start, size, shape, strict=True)):
            return "a box lies outside of the array"
        if box.nbytes != math.prod(size) * itemsize:
            return f"{math.prod(size) * itemsize} bytes are needed where {box.nbytes} are stored"
        if box.offset < 0 or not 0 <= box.pack < packs:
            return "a box lies in no pack"
    plain = not math.prod(shape) or (len(boxes) == 1 and boxes[0].start is None)
    return "" if plain or _tiled(boxes, shape) else "its boxes overlap, or leave something out"


def _tiled(boxes: Sequence[StoredBox], shape: tuple[int, ...]) -> bool:
    """Return whether the boxes cover the array, each element once.

    Summed over the corners of a box with the sign of (-1)^(number of far sides), a box is known by its corners; so the
    boxes fill the array exactly when their corners add up to its own.
    """
    held = [stored_box(box, shape) for box in boxes]
    cut = [i for i, size in enumerate(shape) if any((box.start[i], box.stop[i]) != (0, size) for box in held)]
    if len(cut) > MAX_CUTS:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for box, sign in [*((box, 1) for box in held), (Box.whole(shape), -1)]:
        for sides in itertools.product((0, 1), repeat=len(cut)):
            corner = tuple((box.stop if far else box.start)[i] for i, far in zip(cut, sides, strict=True))
            corners[corner] += sign * (-1) ** sum(sides)
    return not any(corners.values())
