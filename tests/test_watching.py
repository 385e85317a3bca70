# SPDX-License-Identifier: Apache-2.0
"""Following a run of another process: what is yielded, and that what is being looked at is never deleted."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import milepost as mp

WRITER = """
import sys
import numpy as np
import milepost as mp

with mp.Checkpointer(sys.argv[1], save="every step", keep=sys.argv[2]) as saver:
    for line in sys.stdin:
        step, *options = line.split()
        saver.save(int(step), {"w": np.full(1000, float(step))}, overwrite="overwrite" in options).result()
        saver.wait()
        print(step, flush=True)
"""


class Writer:
    """A process that saves the steps it is told to, one at a time."""

    def __init__(self, root: Path, keep: str) -> None:
        command = [sys.executable, "-c", WRITER, str(root), keep]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def save(self, *steps: int, options: str = "") -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        for step in steps:
            self._process.stdin.write(f"{step} {options}\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == f"{step}\n"

    def close(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@pytest.fixture
def writer(root: Path) -> Iterator[Writer]:
    """A writer that keeps the latest alone."""
    writer = Writer(root, "last 1")
    try:
        yield writer
    finally:
        writer.close()


def slots(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/manifest.json"))


@pytest.mark.parametrize("which", ["all", "newest"])
def test_a_step_that_is_being_looked_at_is_never_deleted(root: Path, writer: Writer, which: str) -> None:
    writer.save(1)
    found = mp.open(root).watch(which=which, poll_s=0.01, timeout_s=60)  # pyright: ignore[reportArgumentType]

    first = next(found)
    writer.save(2, 3)
    assert slots(root) == ["1", "3"]  # 2 went; nobody looks at it
    np.testing.assert_array_equal(first.load()["w"], np.full(1000, 1.0))

    second = next(found)
    assert second.step == 3
    writer.save(4)
    assert slots(root) == ["3", "4"]  # 1 was let go of
    assert next(found).step == 4
    found.close()
    writer.save(5)
    assert slots(root) == ["5"]


def test_the_step_is_let_go_of_when_the_loop_is_left(root: Path, writer: Writer) -> None:
    writer.save(1)
    for checkpoint in mp.open(root).watch(poll_s=0.01, timeout_s=60):
        assert checkpoint.step == 1
        break
    writer.save(2, 3)

    assert slots(root) == ["3"]


def test_a_loop_that_is_left_by_an_error_holds_nothing(root: Path, writer: Writer) -> None:
    writer.save(1)
    found = mp.open(root).watch(poll_s=0.01, timeout_s=60)
    with pytest.raises(ZeroDivisionError):
        for checkpoint in found:
            checkpoint.step / 0
    found.close()
    writer.save(2, 3)

    assert slots(root) == ["3"]


def test_a_step_that_is_overwritten_while_it_is_looked_at_stays_readable_and_comes_again(
    root: Path, writer: Writer
) -> None:
    writer.save(1)
    found = mp.open(root).watch(poll_s=0.01, timeout_s=60)
    first = next(found)

    writer.save(1, options="overwrite")
    first.verify()
    again = next(found)

    assert (again.step, again.info.slot) == (1, "1.g2")
    assert again.info.id != first.info.id
    writer.save(2, 3)
    assert slots(root) == ["1.g2", "3"]
    assert next(found).step == 3


@pytest.mark.parametrize(
    ("which", "after", "steps"), [("all", -1, [1, 2, 3]), ("all", 1, [2, 3]), ("newest", -1, [3]), ("newest", 3, [])]
)
def test_the_newest_alone_or_all_are_yielded(root: Path, which: str, after: int, steps: list[int]) -> None:
    for step in (1, 2, 3):
        mp.save(root, {"w": step}, step=step)

    found = mp.open(root).watch(which=which, after=after, timeout_s=0)  # pyright: ignore[reportArgumentType]
    assert [checkpoint.step for checkpoint in found] == steps


def test_each_is_yielded_once_however_often_it_is_looked_for(root: Path) -> None:
    mp.save(root, {"w": 1}, step=1)
    found = mp.open(root).watch(which="newest", poll_s=0.01, timeout_s=0.1)

    steps = [checkpoint.step for checkpoint in found]

    assert steps == [1]


def test_a_watcher_that_is_slow_sees_the_newest_next(root: Path) -> None:
    mp.save(root, {"w": 1}, step=1)
    seen: list[int] = []
    for checkpoint in mp.open(root).watch(which="newest", poll_s=0.01, timeout_s=0.1):
        seen.append(checkpoint.step)
        if checkpoint.step == 1:
            for step in (2, 3, 4):
                mp.save(root, {"w": step}, step=step)

    assert seen == [1, 4]


def test_a_run_that_branched_goes_on_being_followed(root: Path) -> None:
    for step in (1, 2, 3):
        mp.save(root, {"w": step}, step=step)
    found = mp.open(root).watch(which="newest", poll_s=0.01, timeout_s=60)
    assert next(found).step == 3

    with mp.Checkpointer(root, resume_from=mp.open(root)[1]) as saver:
        saver.save(2, {"w": -2})

    assert next(found).load() == {"w": -2}


def test_a_damaged_step_is_passed_over_and_told_of_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        mp.save(root, {"w": step}, step=step)
    (root / "2" / "manifest.json").chmod(0o644)
    (root / "2" / "manifest.json").write_bytes(b"torn")

    for which in ("all", "newest"):
        caplog.clear()
        found = mp.open(root).watch(which=which, poll_s=0.01, timeout_s=0.05)  # pyright: ignore[reportArgumentType]
        assert [checkpoint.step for checkpoint in found] == [1]
        assert [record.message[:22] for record in caplog.records] == ["step 2 is passed over:"]


def test_two_watchers_hold_the_same_step(root: Path, writer: Writer) -> None:
    writer.save(1)
    one, other = (mp.open(root).watch(poll_s=0.01, timeout_s=60) for _ in range(2))
    assert next(one).step == next(other).step == 1
    writer.save(2)
    assert next(one).step == 2
    assert slots(root) == ["1", "2"]
    assert next(other).step == 2
    writer.save(3)
    assert slots(root) == ["2", "3"]


def test_an_iterator_may_be_closed_by_another_thread(root: Path, writer: Writer) -> None:
    writer.save(1)
    found = mp.open(root).watch(poll_s=0.01, timeout_s=60)
    next(found)
    thread = threading.Thread(target=found.close)
    thread.start()
    thread.join()
    writer.save(2)

    assert slots(root) == ["2"]


def test_which_is_all_or_newest(root: Path) -> None:
    mp.save(root, {"w": 1})
    with pytest.raises(ValueError, match="which='best': expected 'all' or 'newest'"):
        mp.open(root).watch(which="best")  # pyright: ignore[reportArgumentType]
