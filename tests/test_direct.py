# SPDX-License-Identifier: Apache-2.0
"""Large files past the page cache: the same bytes, whatever their buffers, and whatever the file system refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import milepost as mp
from milepost.errors import StorageError
from milepost.stores import Sized, direct
from milepost.stores.direct import BLOCK
from milepost.stores.local import LocalStore
from milepost.testing.recorder import Call, Recorder

MiB = 1 << 20


def memory(nbytes: int, *, aligned: bool, seed: int = 0) -> memoryview:
    """Return random bytes that begin at a page, or beside one."""
    data = np.empty(nbytes + 8192, np.uint8)
    start = -data.ctypes.data % 4096 + (0 if aligned else 64)
    data[start : start + nbytes] = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return memoryview(data)[start : start + nbytes]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", create=True)


def same(store: LocalStore, key: str, pieces: list[memoryview]) -> bool:
    return (store.path / key).read_bytes() == b"".join(pieces)


sizes = st.sampled_from([0, 1, 511, 4096, 5000, MiB - 1, MiB, MiB + 4096, BLOCK - 1, BLOCK, BLOCK + 64, 3 * BLOCK])


@settings(max_examples=30, deadline=None)
@given(buffers=st.lists(st.tuples(sizes, st.booleans()), max_size=6), sized=st.booleans(), cached=st.booleans())
def test_a_file_holds_its_bytes_whatever_their_buffers(
    tmp_path_factory: pytest.TempPathFactory, buffers: list[tuple[int, bool]], sized: bool, cached: bool
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("direct"), create=True)
    pieces = [memory(nbytes, aligned=aligned, seed=i) for i, (nbytes, aligned) in enumerate(buffers)]
    with pytest.MonkeyPatch.context() as patch:
        if cached:
            patch.setattr(direct, "_DIRECT", 0)
        store.put("file", Sized(sum(map(len, pieces)), pieces) if sized else pieces)

    assert same(store, "file", pieces)


def test_what_lies_well_is_written_from_where_it_lies(store: LocalStore) -> None:
    pieces = [memory(4096, aligned=True), memory(6 * BLOCK, aligned=True)]

    with Recorder(store.path) as recorder:
        store.put("file", Sized(4096 + 6 * BLOCK, pieces))

    lengths = sorted(len(call.data) for call in recorder.calls if call.name == "write")
    assert lengths[0] == 4096  # what came before is not copied together with it
    assert lengths[-1] == 4 * BLOCK
    assert same(store, "file", pieces)


@pytest.mark.parametrize("where", [0, 2])
def test_a_write_that_cannot_be_direct_goes_through_the_page_cache(store: LocalStore, where: int) -> None:
    pieces = [memory(5 * BLOCK + 77, aligned=False)]
    seen: list[Call] = []

    def refuse(call: Call) -> None:
        if call.name == "write":
            seen.append(call)
            if len(seen) == where + 1:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with Recorder(store.path, before=refuse):
        store.put("file", pieces)

    assert same(store, "file", pieces)


def test_short_writes_go_on_where_they_ended(store: LocalStore) -> None:
    pieces = [memory(2 * BLOCK + 4096 + 5, aligned=False)]

    with Recorder(store.path, largest_write=100_001):
        store.put("file", pieces)

    assert same(store, "file", pieces)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINVAL])
@pytest.mark.parametrize("nbytes", [MiB, 8 * BLOCK])
def test_a_write_that_fails_in_any_thread_is_raised_and_leaves_nothing(
    store: LocalStore, number: int, nbytes: int
) -> None:
    def fail(call: Call) -> None:
        if call.name == "write" and call.offset + len(call.data) > nbytes // 2:
            raise OSError(number, os.strerror(number))

    with Recorder(store.path, before=fail), pytest.raises(StorageError) as caught:
        store.put("file", [memory(nbytes, aligned=True)])

    assert caught.value.errno == number
    assert not list(store.path.iterdir())


def test_bytes_that_fail_to_come_leave_nothing_and_pass_their_error(store: LocalStore) -> None:
    def broken() -> object:
        yield memory(3 * BLOCK, aligned=True)
        raise OSError("not of the store")

    with pytest.raises(OSError, match="not of the store") as caught:
        store.put("file", Sized(9 * BLOCK, broken()))  # type: ignore[arg-type]

    assert not isinstance(caught.value, StorageError)
    assert not list(store.path.iterdir())


def test_two_files_at_once_do_not_share_buffers(store: LocalStore) -> None:
    inner = [memory(3 * BLOCK, aligned=False, seed=1)]
    outer = [memory(BLOCK, aligned=False, seed=2), memory(2 * BLOCK, aligned=False, seed=3)]

    def pieces() -> object:
        yield outer[0]
        store.put("inner", inner)
        yield outer[1]

    store.put("outer", Sized(3 * BLOCK, pieces()))  # type: ignore[arg-type]

    assert same(store, "inner", inner)
    assert same(store, "outer", outer)


_EXIT = """
import numpy as np, sys, milepost as mp
saver = mp.Checkpointer(sys.argv[1])
saver.save(3, {"w": np.arange(8 << 20, dtype=np.float32)})
"""


def test_a_large_save_in_flight_is_finished_when_the_interpreter_exits(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _EXIT, str(tmp_path / "run")], check=True, timeout=120)

    w = mp.load(tmp_path / "run")["w"]
    np.testing.assert_array_equal(w, np.arange(8 << 20, dtype=np.float32))


def test_without_threads_the_caller_writes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    start: Callable[..., None] = refused
    monkeypatch.setattr(direct.threading.Thread, "start", start)
    pieces = [memory(5 * BLOCK + 9, aligned=False)]

    store.put("file", pieces)

    assert same(store, "file", pieces)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_buffers_of_its_own(store: LocalStore) -> None:
    size = 6 * BLOCK + 77
    store.put("before", [memory(size, aligned=False)])
    if not (child := os.fork()):
        store.put("child", [memory(size, aligned=False, seed=1)])
        os._exit(0)

    store.put("parent", [memory(size, aligned=False, seed=2)])

    assert os.waitpid(child, 0)[1] == 0
    assert same(store, "child", [memory(size, aligned=False, seed=1)])
    assert same(store, "parent", [memory(size, aligned=False, seed=2)])


@pytest.mark.parametrize("announced", [3 * BLOCK, 5 * BLOCK])
def test_a_file_of_another_size_than_announced_is_refused(store: LocalStore, announced: int) -> None:
    with pytest.raises(StorageError, match="announced"):
        store.put("file", Sized(announced, [memory(4 * BLOCK, aligned=True)]))

    assert os.listdir(store.path) == []


def test_what_is_to_be_written_is_not_taken_long_before(store: LocalStore) -> None:
    data = memory(24 * MiB, aligned=True)
    all_taken, go_on = threading.Event(), threading.Event()
    taken_before: list[Call] = []

    def look(call: Call) -> None:
        if call.name != "write":
            return
        if not call.offset:
            if all_taken.wait(0.3):
                taken_before.append(call)
            go_on.set()
        go_on.wait()  # no thread writes before the first has looked

    def pieces() -> Iterator[memoryview]:
        for start in range(0, len(data), MiB):
            yield data[start : start + MiB]
        all_taken.set()

    with Recorder(store.path, before=look):
        store.put("file", Sized(len(data), pieces()))

    assert not taken_before
    assert same(store, "file", [data])
