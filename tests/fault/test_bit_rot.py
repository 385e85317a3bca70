# SPDX-License-Identifier: Apache-2.0
"""Bits that flip and files that end early: found, and the file named, or of no consequence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import milepost as mp
from milepost.testing.faults.scripts import tree
from milepost.testing.model import Content, Disk, ModelStore

Files = dict[str, bytes]


@pytest.fixture
def files(root: Path) -> Files:
    """A root of two steps that share a pack, as names and bytes."""
    with mp.Checkpointer(root, save="every step", keep="all") as saver:
        for step in (1, 2):
            saver.save(step, tree(step, step), metrics={"loss": 1.0})
    mp.open(root).pin(1, "first")
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read(files: Files) -> None:
    """Read all that there is, and compare it with what was saved."""
    content = Content({name: (i, data) for i, (name, data) in enumerate(files.items())})
    catalog = mp.open(ModelStore(Disk(content).perform))  # pyright: ignore[reportArgumentType]
    assert sorted(catalog) == [1, 2]
    for step, checkpoint in catalog.items():
        checkpoint.verify()
        loaded = checkpoint.load()
        for name, value in tree(step, step).items():
            assert np.asarray(loaded[name]).tobytes() == np.asarray(value).tobytes(), f"{name} of step {step} differs"
        assert checkpoint.metrics == {"loss": 1.0}
    assert catalog[1].info.pins == ("first",)


def outcome(files: Files, name: str) -> str:
    """Return `found`, when the damage is found and its file named, or `irrelevant`, when all is as it was saved."""
    try:
        read(files)
    except (mp.CorruptionError, mp.FormatError) as error:
        said = f"{error} {getattr(error, 'damaged', '')}"
        assert name.rpartition("/")[2] in said, f"{name} is damaged, and not named: {said}"
        return "found"
    return "irrelevant"


def flips(data: bytes, count: int | None, chance: random.Random) -> Iterator[bytes]:
    bits = range(8 * len(data))
    changed = bytearray(data)
    for bit in bits if count is None else sorted(chance.sample(bits, min(count, len(bits)))):
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


def with_damage(files: Files, name: str, data: bytes) -> Files:
    """Return the files with one damaged, under all its names: a pack that is shared is one file."""
    same = name.rpartition("/")[2] if name.endswith(".safetensors") else name
    return {other: data if other.endswith(same) else before for other, before in files.items()}


def of_no_consequence(name: str) -> bool:
    """Whether a file may be damaged without harm: nothing that was saved is in it."""
    return name.startswith("noted/") or name == "writer.lock"


def test_every_flipped_bit_is_found_and_its_file_named(files: Files, full: bool) -> None:
    chance = random.Random(0)
    for name, data in files.items():
        for damaged in flips(data, None if full else 40, chance):
            found = outcome(with_damage(files, name, damaged), name)
            assert found == ("irrelevant" if of_no_consequence(name) else "found"), name


def test_every_file_that_ends_early_is_found_and_named(files: Files, full: bool) -> None:
    chance = random.Random(1)
    for name, data in files.items():
        lengths = range(len(data))
        for length in lengths if full else sorted({0, len(data) - 1, *chance.sample(lengths, min(12, len(lengths)))}):
            if length >= 0:
                found = outcome(with_damage(files, name, data[:length]), name)
                assert found == ("irrelevant" if of_no_consequence(name) else "found"), (name, length)


def test_a_deep_verify_asks_the_disk_and_not_the_page_cache(root: Path) -> None:
    checkpoint = mp.save(root, tree(1, 1), step=1)
    pack = next(root.glob("1/*.safetensors"))
    forgotten: list[str] = []

    class Watching:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def forget(self, key: str) -> None:
            store.forget(key)
            forgotten.append(key)

    from milepost.stores.local import LocalStore

    store = LocalStore(root)
    found = mp.open(Watching())[1]  # pyright: ignore[reportArgumentType]
    found.verify(deep=False)
    assert forgotten == []
    found.verify()

    assert forgotten == [f"1/{pack.name}"]
    checkpoint.verify()
