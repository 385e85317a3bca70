# SPDX-License-Identifier: Apache-2.0
"""Several writers of one root on a real file system: the lock, whoever comes after it, forks, and no locks at all."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp
from milepost.stores import Store
from milepost.stores.local import LocalStore
from milepost.testing.recorder import Call, Recorder

HOLDER = """
import sys
import numpy as np
import milepost as mp
from milepost.engine.commit import Lock
from milepost.engine.opening import open_root
from milepost.stores import open_store

root, saves = sys.argv[1], sys.argv[2:]
lock = Lock(open_root(open_store(root, create=True), create=True))
for step in saves:
    mp.save(root, {"step": int(step)}, step=int(step))
print("holds", flush=True)
sys.stdin.read()
"""


def tree(step: int) -> dict[str, Any]:
    return {"w": np.full(3, float(step)), "step": step}


def fill(where: Any, *steps: int, **options: Any) -> None:
    with mp.Checkpointer(where, save="every step", **options) as saver:
        for step in steps:
            saver.save(step, tree(step)).result()


def steps_of(root: Path) -> list[int]:
    """The steps of a root, each of which was read in full."""
    catalog = mp.open(root)
    for step, checkpoint in catalog.items():
        assert checkpoint.load()["step"] == step
        checkpoint.verify()
    return list(catalog)


@contextmanager
def holder(root: Path, *steps: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the writer's lock, after it has saved these steps."""
    command = [sys.executable, "-c", HOLDER, root, *map(str, steps)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "holds\n"
            yield process
        finally:
            process.kill()


def in_another_process(root: Path, step: int) -> None:
    """Save a step in another process; raises what that raised."""
    script = "import sys, milepost; milepost.save(sys.argv[1], {'step': int(sys.argv[2])}, step=int(sys.argv[2]))"
    command = [sys.executable, "-c", script, root, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise mp.ConflictError(done.stderr)


# --- the lock


def test_a_root_that_another_process_writes_to_is_locked_and_who_does_is_said(root: Path) -> None:
    with holder(root, 1) as other:
        with pytest.raises(mp.ConflictError) as caught:
            fill(root, 2)
        text = str(caught.value)
        assert caught.value.code == "locked"
        assert f"process {other.pid} on {os.uname().nodename}" in text
        assert "started" in text
        assert "has ended" in text  # only as a condition: it runs
        assert "reading needs no lock" in text
        assert steps_of(root) == [1]
        mp.open(root).pin(1, "paper")
        for change in (lambda: mp.open(root).prune("all"), lambda: mp.open(root).delete(1)):
            with pytest.raises(mp.ConflictError, match="is locked"):
                change()
    fill(root, 2)
    assert steps_of(root) == [1, 2]


def test_a_holder_that_has_not_saved_yet_is_not_taken_for_the_writer_before_it(root: Path) -> None:
    with holder(root), pytest.raises(mp.ConflictError, match="is locked.*\n  It has not saved yet\\.\n"):
        fill(root, 1)
    in_another_process(root, 1)

    with holder(root), pytest.raises(mp.ConflictError) as caught:
        fill(root, 2)

    assert "It has not saved yet; the writer before it was process" in str(caught.value)
    assert "and has ended" in str(caught.value)


def test_handles_of_one_process_share_the_lock_however_they_spell_the_path(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    link = root.parent / "link"
    link.symlink_to(root)
    monkeypatch.chdir(root.parent)
    spellings = [root, "root", "./root/", f"file://{root}", link, root.parent / "other" / ".." / "root"]
    (root.parent / "other").mkdir()

    savers = [mp.Checkpointer(place, save="every step") for place in spellings]
    for step, saver in enumerate(savers):
        saver.save(step, tree(step)).result()
    for saver in savers[:-1]:
        saver.close()
    with pytest.raises(mp.ConflictError, match="is locked"):  # the last one still holds it
        in_another_process(root, 99)
    savers[-1].close()
    in_another_process(root, 99)

    assert steps_of(root) == [*range(len(spellings)), 99]
    assert [checkpoint.info.epoch for checkpoint in mp.open(root).values()] == [1] * len(spellings) + [2]


def test_a_lock_ends_with_its_process_and_what_that_left_is_swept(root: Path) -> None:
    fill(root, 1)
    with holder(root, 2) as other:
        store = LocalStore(root)
        store.claim("3/").put("p00000-0123abcd.safetensors", [b"half"])
        other.send_signal(signal.SIGKILL)
        other.wait()
        fill(root, 3)

    assert steps_of(root) == [1, 2, 3]
    assert [checkpoint.info.epoch for checkpoint in mp.open(root).values()] == [1, 2, 3]
    assert mp.open(root)[3].info.slot == "3"


def test_a_lock_that_was_refused_can_be_had_later(root: Path) -> None:
    fill(root, 1, 2)
    saver = mp.Checkpointer(root, save="every step", resume_from=mp.open(root)[1])
    with holder(root):
        for _ in range(2):
            with pytest.raises(mp.ConflictError, match="locked"):
                saver.save(2, tree(2))
    saver.save(2, tree(2)).result()  # and still from where it was told to
    saver.close()

    assert mp.open(root)[2].info.slot == "2.g2"


# --- forks


class Gated:
    """A store that holds back packs until it is told to go on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reached, self.gate = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(self, prefix: str) -> Any:
        claim = self._store.claim(prefix)
        put = claim.put

        def gated(name: str, data: Any, **options: Any) -> None:
            if name.endswith(".safetensors"):
                self.reached.set()
                assert self.gate.wait(30)
            put(name, data, **options)

        claim.put = gated
        return claim


def in_child(work: Callable[[], str]) -> str:
    """Run some work in a forked child; return what it says."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = work()
        except BaseException as error:  # noqa: BLE001 told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


# Python 3.12 and JAX warn of a fork of a process that has threads, which is what is tested here.
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_neither_writes_nor_hangs_nor_takes_the_lock_along(root: Path) -> None:
    fill(root, 1)
    store = Gated(LocalStore(root))
    saver = mp.Checkpointer(store, save="every step")
    pending = saver.save(2, tree(2))
    assert store.reached.wait(30)

    def work() -> str:
        codes: list[str] = []
        for attempt in (
            lambda: saver.save(3, tree(3)),
            pending.result,
            lambda: fill(root, 3),
            lambda: mp.open(root).delete(1),
        ):
            try:
                attempt()
            except mp.ConflictError as error:
                codes.append(error.code)
        saver.close()
        return " ".join([*codes, *map(str, steps_of(root))])

    assert in_child(work) == "forked forked locked locked 1"
    with pytest.raises(mp.ConflictError, match="locked"):
        in_another_process(root, 4)
    store.gate.set()
    assert pending.result().step == 2
    saver.save(3, tree(3)).result()
    saver.close()
    in_another_process(root, 4)

    assert steps_of(root) == [1, 2, 3, 4]
    assert sorted(path.name for path in (root / "writers").iterdir()) == ["1.json", "2.json", "3.json"]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_the_lock_of_a_dead_parent_is_free_though_its_child_lives(root: Path) -> None:
    script = """
import os, signal, sys, time
import milepost as mp
saver = mp.Checkpointer(sys.argv[1], save="every step")
saver.save(1, {"step": 1}).result()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    assert parent.wait() == -signal.SIGKILL
    try:
        fill(root, 2)
    finally:
        os.kill(child, signal.SIGKILL)

    assert steps_of(root) == [1, 2]


# --- no locks


class Elsewhere:
    """A handle as another process would have it: nothing that this process knows of the root goes with it."""

    numbers = itertools.count()

    def __init__(self, root: Path) -> None:
        self._store = LocalStore(root, create=True)
        self.url = f"{root}#{next(self.numbers)}"

    def __getattr__(self, name: str) -> Any:
        if name == "path":
            raise AttributeError(name)
        return getattr(self._store, name)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.stores.files.lock", lambda fd, *, exclusive: False)


class At:
    """Does something once, before the nth call that a recorder sees."""

    def __init__(self, number: int, work: Callable[[], None]) -> None:
        self._number, self._work = number, work
        self.count = 0

    def __call__(self, call: Call) -> None:
        self.count += 1
        if self.count == self._number:
            self._work()


def at_every_call(
    tmp_path: Path, work_of: Callable[[Path], Callable[[], None]], successor: Callable[[Path], None]
) -> Iterator[tuple[Path, str, str]]:
    """Interrupt some work at each of its system calls in turn by a successor; yield the root, and what both heard."""

    def told(work: Callable[[], None]) -> str:
        try:
            work()
        except mp.ConflictError as error:
            return error.code
        return "done"

    for number in itertools.count(1):
        root = tmp_path / str(number)
        fill(root, 1)
        work = work_of(root)
        second: list[str] = []
        at = At(number, lambda: second.append(told(lambda: successor(root))))  # noqa: B023
        with Recorder(root, before=at):
            first = told(work)
        if not second:
            return
        yield root, first, second[0]


@pytest.mark.parametrize("step", [2, 3])
def test_a_writer_that_is_overtaken_at_any_system_call_is_fenced_and_harms_nothing(
    tmp_path: Path, no_locks: None, step: int
) -> None:
    """`step` is what the successor saves: the same one as the zombie, or another."""

    def zombie(root: Path) -> Callable[[], None]:
        saver = mp.Checkpointer(Elsewhere(root), save="every step", limits=mp.Limits(memory_bytes=1))
        saver.save(1, tree(1), overwrite=True).result()
        return lambda: saver.save(2, tree(2)).result() and None

    ends: list[tuple[str, str]] = []
    for root, first, second in at_every_call(tmp_path, zombie, lambda root: fill(Elsewhere(root), step)):
        there = steps_of(root)
        assert {1, step} <= set(there)
        assert mp.load(root)["step"] == step
        fill(Elsewhere(root), 4)
        assert mp.load(root)["step"] == 4
        ends.append((first, second))

    # Its manifest may be there before the successor looks, and then counts, though it was not acknowledged.
    assert set(ends) == {("fenced", "done")} | ({("fenced", "exists")} if step == 2 else set())
    assert len(ends) > 30


@pytest.mark.parametrize("step", [2, 3])
def test_a_writer_that_is_overtaken_while_it_takes_over_harms_nothing(
    tmp_path: Path, no_locks: None, step: int
) -> None:
    def begins(root: Path) -> Callable[[], None]:
        LocalStore(root).claim("2/").put("p00000-0123abcd.safetensors", [b"half"])

        def program() -> None:
            fill(Elsewhere(root), 2, limits=mp.Limits(memory_bytes=1))
            steps_of(root)  # calls that come after the save

        return program

    ends: set[tuple[str, str]] = set()
    for root, first, second in at_every_call(tmp_path, begins, lambda root: fill(Elsewhere(root), step)):
        there = steps_of(root)
        assert 1 in there
        assert 2 in there or first != "done"
        assert step in there or second != "done"
        ends.add((first, second))

    assert {("fenced", "done"), ("done", "exists" if step == 2 else "done")} <= ends


def test_without_locks_no_two_epochs_use_one_name(root: Path, no_locks: None) -> None:
    fill(Elsewhere(root), 1)
    LocalStore(root).claim("2/").put("p00000-0123abcd.safetensors", [b"half"])
    fill(Elsewhere(root), 2)
    mp.open(Elsewhere(root)).delete(2)
    fill(Elsewhere(root), 2)

    epochs = [checkpoint.info.epoch for checkpoint in mp.open(root).values()]
    slots = [checkpoint.info.slot for checkpoint in mp.open(root).values()]
    assert slots == [f"1.g{1 + 1_000 * (epochs[0] - 1)}", f"2.g{1 + 1_000 * (epochs[1] - 1)}"]
    assert len(set(epochs)) == 2


def test_a_writer_that_was_overtaken_prunes_and_deletes_nothing(root: Path, no_locks: None) -> None:
    saver = mp.Checkpointer(Elsewhere(root), save="every step")
    for step in (1, 2):
        saver.save(step, tree(step)).result()
    fill(Elsewhere(root), 3)

    for change in (lambda: saver.catalog.prune("last 1"), lambda: saver.catalog.delete(1)):
        with pytest.raises(mp.ConflictError) as caught:
            change()
        assert caught.value.code == "fenced"
    for _ in range(2):
        with pytest.raises(mp.ConflictError, match="took over"):
            saver.save(4, tree(4)).result()
    saver.close()

    assert steps_of(root) == [1, 2, 3]


def test_a_save_waits_for_a_branch_of_another_handle_to_begin_after_it(root: Path) -> None:
    fill(root, 1, 2)
    store = Gated(LocalStore(root))
    first = mp.Checkpointer(store, save="every step")
    pending = first.save(3, tree(3))
    assert store.reached.wait(30)
    second = mp.Checkpointer(root, save="every step", resume_from=mp.open(root)[1])
    branch = threading.Thread(target=lambda: second.save(2, tree(2)).result())
    branch.start()
    store.gate.set()
    assert pending.result().step == 3
    branch.join()
    first.close()
    second.close()

    latest = mp.open(root).latest()
    assert latest is not None
    assert latest.info.slot == "2.g2"
    assert mp.open(root)[3].info.superseded
