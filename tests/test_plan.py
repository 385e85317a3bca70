# SPDX-License-Identifier: Apache-2.0
"""The plan: who writes which box, how boxes lie in packs, which stored ranges fill a wanted box."""

from __future__ import annotations

import json
import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.engine.plan import Source, owned, packs, parts
from milepost.model.format import StoredBox
from milepost.model.leaf import Box, LeafSpec, dtype_info

DTYPES = ("uint8", "bool", "int16", "bfloat16", "float32", "float64", "complex128", "int4", "str3")


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and boxes that cut it into a grid."""
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    ranges = [list(pairwise(cut)) for cut in cuts]
    return shape, [Box(tuple(a for a, _ in box), tuple(b for _, b in box)) for box in product(*ranges)]


@st.composite
def sources(draw: st.DrawFn) -> list[Source]:
    """Leaves cut into boxes, each held by one or more processes."""
    found: list[Source] = []
    for number in range(draw(st.integers(1, 5))):
        shape, boxes = draw(grids())
        spec = LeafSpec("array", draw(st.sampled_from(DTYPES)), shape)
        for box in boxes:
            ranks = sorted(draw(st.sets(st.integers(0, 3), min_size=1)))
            nbytes = box.size * dtype_info(spec.dtype).itemsize
            found += [Source(f"leaf{number}", spec, box, nbytes, rank, i) for i, rank in enumerate(ranks)]
    return found


@given(sources())
def test_every_process_computes_the_same_plan(found: list[Source]) -> None:
    written = [owned(found, rank) for rank in range(4)]

    assert written == [owned(list(found), rank) for rank in range(4)]
    boxes = [(found[i].path, found[i].box) for indices in written for i in indices]
    assert len(boxes) == len(set(boxes))  # each box once
    assert set(boxes) == {(source.path, source.box) for source in found}  # and none left out
    for rank, indices in enumerate(written):
        assert all(found[i].rank == rank for i in indices)  # by somebody who holds it


def test_replicas_are_shared_out_by_bytes() -> None:
    spec = LeafSpec("array", "float32", (1000,))
    found = [Source(f"leaf{i}", spec, Box.whole((1000,)), 4_000, rank, rank) for i in range(8) for rank in range(4)]
    assert [len(owned(found, rank)) for rank in range(4)] == [2, 2, 2, 2]


@given(sources())
def test_a_pack_has_no_holes_and_every_tensor_is_aligned(found: list[Source]) -> None:
    members = owned(found, 0)
    plans = packs(found, members)

    assert sorted(index for plan in plans for index in plan.members) == members
    for plan in plans:
        length = int.from_bytes(plan.header[:8], "little")
        assert len(plan.header) == 8 + length
        assert len(plan.header) % 4096 == 0
        header = json.loads(plan.header[8:])
        position = len(plan.header)
        for index, offset in zip(plan.members, plan.offsets, strict=True):
            source = found[index]
            assert offset == position
            position += source.nbytes
            if source.nbytes:
                assert offset % math.gcd(source.nbytes, 4096) == 0
            name = source.path if source.start is None else f"{source.path}@{','.join(map(str, source.box.start))}"
            assert header[name]["data_offsets"] == [offset - len(plan.header), position - len(plan.header)]
        assert plan.nbytes == position


def test_packs_split_before_their_header_grows_too_large() -> None:
    spec = LeafSpec("array", "float32", (1,))
    found = [Source(f"leaf{i:06}", spec, Box.whole((1,)), 4) for i in range(1_000)]
    plans = packs(found, list(range(1_000)), max_header=20_000)

    assert len(plans) > 1
    assert all(len(plan.header) <= 20_480 for plan in plans)
    assert sorted(index for plan in plans for index in plan.members) == list(range(1_000))


def test_nothing_to_write_is_no_pack() -> None:
    assert packs([], []) == []


@given(grids(), st.data())
def test_stored_ranges_fill_any_wanted_box(grid: tuple[tuple[int, ...], list[Box]], data: st.DataObject) -> None:
    shape, boxes = grid
    bounds = [sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in shape]
    wanted = Box(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))
    stored = [StoredBox(0, 0, 0, "", "", box.start, box.shape) for box in boxes]
    array = np.arange(math.prod(shape)).reshape(shape)

    out = np.full(wanted.shape, -1)
    for part in parts(stored, shape, wanted):
        out[part.wanted.within(wanted).slices] = array[part.held.slices][part.wanted.within(part.held).slices]

    np.testing.assert_array_equal(out, array[wanted.slices])


def test_ranges_that_do_not_cover_the_wanted_box_give_nothing() -> None:
    stored = [StoredBox(0, 0, 0, "", "", (0,), (3,)), StoredBox(0, 0, 0, "", "", (4,), (3,))]
    assert len(parts(stored, (7,), Box((0,), (3,)))) == 1
    assert parts(stored, (7,), Box((2,), (5,))) == []


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_the_whole_of_an_empty_or_single_element_leaf_is_one_box(shape: tuple[int, ...]) -> None:
    source = Source("a", LeafSpec("array", "float32", shape), Box.whole(shape), 4 * math.prod(shape))
    assert source.start is None
    assert [plan.nbytes for plan in packs([source], [0])] == [4096 + source.nbytes]
