# SPDX-License-Identifier: Apache-2.0
"""Records whose digests are right and whose content lies: a typed error each, before memory is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import milepost as mp
from milepost.engine.plan import flaw
from milepost.model.format import StoredArray, StoredBox

Record = dict[str, Any]


def array(shape: list[int], *boxes: list[Any], **other: Any) -> Record:
    w = {"dtype": "float64", "shape": shape, "boxes": list(boxes), **other}
    return {"arrays": {"w": w}}


def box(pack: int = 0, offset: int = 4096, nbytes: int = 64, start: Any = None, shape: Any = None) -> list[Any]:
    return [pack, offset, nbytes, "0" * 32, "", start, shape]


ARRAYS = {
    "a shape larger than memory": array([1 << 40], box()),
    "a shape larger than any memory": array([1 << 62, 1 << 62], box()),
    "a large shape times zero": array([1 << 62, 0, 1 << 62], box(nbytes=0)),
    "a hundred dimensions": array([1] * 100, box()),
    "a negative size": array([-8], box()),
    "two negative sizes": array([-2, -4], box()),
    "no boxes": array([8]),
    "a box without bytes": array([8], box(nbytes=0)),
    "a box of too many bytes": array([8], box(nbytes=1 << 60)),
    "a box of less than nothing": array([8], box(nbytes=-64)),
    "the same half twice": array([8], *[box(nbytes=32, start=[0], shape=[4])] * 2),
    "boxes that overlap": array([8], box(nbytes=48, start=[0], shape=[6]), box(nbytes=16, start=[4], shape=[2])),
    "a box that begins before the array": array([8], box(start=[-4], shape=[8])),
    "a box that ends after the array": array([8], box(nbytes=32, start=[0], shape=[4]), box(start=[4], shape=[8])),
    "a box of other dimensions": array([8], box(start=[0, 0], shape=[8, 1])),
    "a box in a pack that is not there": array([8], box(pack=7)),
    "a box in the last pack, by Python's counting": array([8], box(pack=-1)),
    "a box before its file": array([8], box(offset=-8)),
    "a box after its file": array([8], box(offset=1 << 60)),
    "an array cut in more dimensions than there are meshes for": array(
        [2] * 12, *[box(nbytes=8, start=[i >> j & 1 for j in range(12)], shape=[1] * 12) for i in range(4096)]
    ),
    "a dtype that does not exist": array([8], box(), dtype="float9"),
    "a dtype of Python objects": array([8], box(), dtype="object"),
    "a dtype nested without end": array([8], box(), dtype='{"a":' * 3_000),
    "a key of no generator": array([8], box(), key="dice"),
}  # fmt: skip


@pytest.mark.parametrize("lie", ARRAYS)
def test_an_array_that_cannot_be_is_refused(forge: Callable[..., mp.Checkpoint], lie: str) -> None:
    checkpoint = forge(ARRAYS[lie])

    with pytest.raises(mp.CheckpointError):
        checkpoint.load(like={"w": np.zeros(8), "s": ""})
    with pytest.raises((mp.FormatError, mp.CorruptionError)):
        checkpoint.leaf("w").read()
    with pytest.raises((mp.FormatError, mp.CorruptionError)):
        checkpoint.verify()


TREES = {
    "a leaf that is not there": {"dict": {"x": 0}},
    "no tree": None,
    "a number": 1,
    "zero as a fraction": 0.0,
    "false for zero": False,
    "a kind that nobody knows": {"set": [0]},
    "two kinds at once": {"dict": {"w": 0}, "list": []},
    "a key that is none": {"dict": {"w": 0, "%zz": "w"}},
    "an alias of nothing": {"dict": {"w": 0, "x": "y"}},
    "an alias of itself": {"dict": {"w": 0, "x": "x"}},
    "an alias of its parent": {"dict": {"w": 0, "x": ""}},
    "aliases that grow": {"dict": {"w": 0, **{f"a{i}": {"list": [f"a{i - 1}" if i else "w"] * 9} for i in range(12)}}},
    "a tree without end": json.loads('{"list":[' * 401 + "0" + "]}" * 401),
}


@pytest.mark.parametrize("lie", TREES)
def test_a_tree_that_cannot_be_is_refused(forge: Callable[..., mp.Checkpoint], lie: str) -> None:
    with pytest.raises((mp.FormatError, mp.StructureError, mp.CorruptionError)):
        forge({"tree": TREES[lie]}).load()


@pytest.mark.parametrize(
    "value",
    [
        {"$": 1}, {"$none": 1}, {"$int": 5}, {"$int": "0x" + "f" * 20_000}, {"$float": "q"}, {"$complex": ["a", "b"]},
        {"$bytes": "?"}, {"$date": "today"}, {"$datetime": []}, {"$timedelta": [1e300, 0, 0]}, {"$tuple": 5},
        {"$dict": 5}, {"$dtype": "object"}, {"$numpy": ["object", "AA=="]}, {"$numpy": ["float64", "AA=="]},
        {"$array": ["int8", [1 << 40], "AA=="]}, {"$array": ["int8", [-1, -1], "AA=="]},
        {"$int": "0x1", "$float": "nan"},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(forge: Callable[..., mp.Checkpoint], value: Any) -> None:
    with pytest.raises(mp.FormatError):
        forge({"values": {"s": value}}).load(only="s")


@pytest.mark.parametrize(
    "lie",
    [
        {"step": 2}, {"step": 1.0}, {"step": -1}, {"id": "x"}, {"epoch": None}, {"files": [["p"]]}, {"files": {}},
        {"time": "noon"}, {"time": "9999-99-99T00:00:00+00:00"}, {"metrics": [1]}, {"metrics": {"$tuple": [1]}},
        {"metadata": None}, {"metrics": {"loss": {"$x": 1}}}, {"reason": 5}, {"pins": "all"},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_refused(forge: Callable[..., mp.Checkpoint], lie: Record) -> None:
    with pytest.raises(mp.FormatError):
        say_all_of(forge(manifest=lie))


@pytest.mark.parametrize("lie", [{"metrics": [1]}, {"metrics": 5}, {"metadata": {"$int": "0x1"}}, {"pin": 5}], ids=str)
def test_a_note_that_cannot_be_is_refused(forge: Callable[..., mp.Checkpoint], lie: Record) -> None:
    with pytest.raises(mp.FormatError):
        say_all_of(forge(note=lie))


def say_all_of(checkpoint: mp.Checkpoint) -> None:
    checkpoint.created, checkpoint.metrics, checkpoint.metadata, checkpoint.info, checkpoint.load()


def test_a_pack_by_another_name_is_not_opened(forge: Callable[..., mp.Checkpoint], root: Path) -> None:
    (root / "secret").write_bytes(b"x" * 5_000)

    for name in ("../secret", "/etc/passwd", "manifest.json", "p00000-2f179d5f.safetensors/../../../secret"):
        with pytest.raises(mp.FormatError, match="no name of a pack"):
            forge({"packs": [[name, 5_000, 4_096, ""]]}).load()


def test_a_pack_that_is_a_link_to_elsewhere_is_not_opened(root: Path, tmp_path: Path) -> None:
    checkpoint = mp.save(root, {"w": np.arange(8.0)}, step=1)
    pack = next(root.glob("1/*.safetensors"))
    pack.rename(tmp_path / "elsewhere")
    pack.symlink_to(tmp_path / "elsewhere")

    with pytest.raises((mp.CorruptionError, mp.NotFoundError, mp.StorageError)):
        checkpoint.load()


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[StoredBox]]:
    """An array, and boxes that tile it: each is halved, or not, at any place in any dimension."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        start, size = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        i = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, size[i]))
        boxes.append((start, (*size[:i], at, *size[i + 1 :])))
        boxes.append(((*start[:i], start[i] + at, *start[i + 1 :]), (*size[:i], size[i] - at, *size[i + 1 :])))
    return shape, [StoredBox(0, 4096, math.prod(size), "", "", start, size) for start, size in boxes]


@given(tilings(), st.data())
def test_boxes_are_accepted_exactly_when_they_cover_the_array_once(
    tiling: tuple[tuple[int, ...], list[StoredBox]], data: st.DataObject
) -> None:
    shape, boxes = tiling
    if data.draw(st.booleans(), "change"):
        others = [*boxes, *data.draw(tilings())[1]]
        boxes = data.draw(st.lists(st.sampled_from(others), max_size=len(boxes) + 1))
    times = np.zeros(shape, int)
    inside = True
    for stored in boxes:
        start, size = stored.start or (), stored.shape or ()
        if len(start) != len(shape) or any(a + n > end for a, n, end in zip(start, size, shape, strict=True)):
            inside = False
        else:
            times[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] += 1

    accepted = not flaw(StoredArray("uint8", shape, boxes), 1, 1)

    assert accepted == (inside and bool((times == 1).all()))
