# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, read-only or lie: real file systems in a file, mounted for the test; they need root."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import milepost as mp
from milepost.testing.faults.disks import Disk
from milepost.testing.faults.scripts import Milepost, tree


@pytest.fixture
def tmpfs(as_root: None, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with options."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"tmpfs{len(mounted)}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        mounted.append(path)
        return path

    yield mount
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", path], check=True)


def saved_until_it_fails(root: Path, last: int = 60) -> tuple[list[int], mp.CheckpointError]:
    steps: list[int] = []
    with pytest.raises(mp.CheckpointError) as caught:
        for step in range(1, last):
            mp.save(root, tree(step, step), step=step)
            steps.append(step)
    return steps, caught.value


@pytest.mark.parametrize("limit", ["size=1m", "nr_inodes=40"])
def test_a_full_disk_is_told_and_can_be_made_room_on(tmpfs: Callable[[str], Path], limit: str) -> None:
    root = tmpfs(limit) / "root"
    steps, error = saved_until_it_fails(root)

    assert len(steps) > 2
    assert error.code == "exhausted"
    found = Milepost().read(root)
    assert {name: found[name] for name in map(str, steps)} == {str(step): str(step) for step in steps}
    assert found["latest"] == str(steps[-1])

    mp.open(root).delete(steps[0])
    mp.open(root).delete(steps[1])
    mp.save(root, tree(99, 99), step=99)
    assert Milepost().read(root)["99"] == "99"


def test_a_disk_that_becomes_read_only_is_still_read(as_root: None, tmp_path: Path) -> None:
    with Disk("ext4", tmp_path) as disk:
        root = disk.path / "root"
        mp.save(root, tree(1, 1), step=1)
        subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)

        with pytest.raises(mp.StorageError) as caught:
            mp.save(root, tree(2, 2), step=2)

        assert caught.value.code == "denied"
        assert Milepost().read(root) == {"1": "1", "latest": "1"}
        subprocess.run(["mount", "-o", "remount,rw", disk.path], check=True)
        mp.save(root, tree(2, 2), step=2)
        assert Milepost().read(root)["latest"] == "2"


def test_what_the_disk_could_not_take_is_never_acknowledged(tmpfs: Callable[[str], Path]) -> None:
    """A sync fails once, after the page cache has lost what it held: ext4 in a file for which there is no room."""
    below = tmpfs("size=24m")
    with Disk("ext4", below, mib=64) as disk:
        root = disk.path / "root"
        mp.save(root, tree(1, 1), step=1)
        disk.sync()
        acknowledged = [1]
        with (below / "ballast").open("wb") as file:  # until nothing more can be written through
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError:
                pass
        for step in (2, 3):
            try:
                mp.save(root, {"w": np.random.default_rng(step).random(500_000)}, step=step)
                acknowledged.append(step)
            except mp.CheckpointError:
                pass
        (below / "ballast").unlink()
        disk.cut()

        found = mp.open(root)
        assert set(acknowledged) <= set(found)
        for checkpoint in found.values():
            checkpoint.verify()
        assert acknowledged == [1], "the disk was not full after all"
