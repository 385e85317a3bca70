# SPDX-License-Identifier: Apache-2.0
"""Both stores under the contract suite, and what only the local one has: the order of system calls, links, locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from milepost.errors import CommitUnknownError, ConflictError, NotFoundError, StorageError
from milepost.stores import Buffer, MemoryStore, ObjectInfo, Store, open_store
from milepost.stores.local import LocalStore
from milepost.testing.recorder import Call, Recorder
from milepost.testing.stores import StoreContract, keys

MiB = 1 << 20
NEW_OBJECT = "create {0}.tmp|write {0}.tmp|chmod {0}.tmp|fsync {0}.tmp|link {0}.tmp -> {0}{1}|unlink {0}.tmp"


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, root: Path) -> Store:
        return LocalStore(root, create=True)

    def another(self, store: Store) -> Store:
        return open_store(store.url, create=True)


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root, create=True)


def new_object(folder: str, name: str) -> list[str]:
    """What it takes to write one object of at most a mebibyte."""
    return NEW_OBJECT.format(folder, name).split("|")


class Fails:
    """Makes each call of a name on a path that matches fail, and counts them."""

    def __init__(self, number: int, name: str, path: str) -> None:
        self.number, self.name, self.path = number, name, path
        self.count = 0

    def __call__(self, call: Call) -> None:
        if call.name == self.name and re.match(self.path, call.path):
            self.count += 1
            raise OSError(self.number, os.strerror(self.number))


def commit(store: Store, slot: str) -> None:
    """What a save of two packs asks of its store."""
    with store.claim(f"{slot}/") as claim:
        claim.put("p0", [b"first"], flush=False)
        claim.put("p1", [b"second"], flush=False)
        claim.put("leaves.json", [b"{}"])
        claim.put("manifest.json", [b"{}"])


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


# The order of system calls


def test_a_commit_syncs_every_file_before_its_name_and_every_name_before_the_next_step(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "runs" / "7", create=True)

    with Recorder(tmp_path) as recorder:
        commit(store, "12000")

    assert recorder.story() == [
        *("mkdir runs/", "fsync .", "mkdir runs/7/", "fsync runs/"),
        *("mkdir runs/7/12000/", "fsync runs/7/"),
        *new_object("runs/7/12000/", "p0"),
        *new_object("runs/7/12000/", "p1"),
        *new_object("runs/7/12000/", "leaves.json"),
        "fsync runs/7/12000/",
        *new_object("runs/7/12000/", "manifest.json"),
        "fsync runs/7/12000/",
    ]


def test_a_later_commit_syncs_nothing_twice(tmp_path: Path, store: LocalStore) -> None:
    commit(store, "1")

    with Recorder(tmp_path) as recorder:
        commit(store, "2")

    syncs = [line for line in recorder.story() if line.startswith("fsync")]
    assert syncs == ["fsync root/", *["fsync root/2/.tmp"] * 3, "fsync root/2/", "fsync root/2/.tmp", "fsync root/2/"]


def test_a_root_that_somebody_else_made_is_synced_once(tmp_path: Path, root: Path) -> None:
    root.mkdir()
    store = LocalStore(root)

    with Recorder(tmp_path) as recorder:
        store.put("a", [b"1"])
        store.put("b", [b"2"])

    assert [line for line in recorder.story() if "tmp" not in line] == ["fsync .", "fsync root/", "fsync root/"]


def test_flushing_syncs_the_names_that_wait_above(root: Path, store: LocalStore) -> None:
    store.put("a/b/c/1", [b""], flush=False)
    store.put("waiting", [b""], flush=False)
    store.link("waiting", "a/waiting-too", flush=False)

    with Recorder(root) as recorder:
        store.put("a/b/c/2", [b""])
        store.put("a/b/c/3", [b""])

    syncs = [line for line in recorder.story() if line.startswith("fsync") and "tmp" not in line]
    assert syncs == ["fsync a/b/c/", "fsync .", "fsync a/", "fsync a/b/c/"]


def test_an_overwrite_is_synced_before_it_takes_the_name(root: Path, store: LocalStore) -> None:
    store.put("key", [b"old"])

    with Recorder(root) as recorder:
        store.put("key", [b"new"], mode="overwrite")

    assert recorder.story("chmod") == ["create .tmp", "write .tmp", "fsync .tmp", "rename .tmp -> key", "fsync ."]


def test_a_link_is_one_call_and_one_sync(root: Path, store: LocalStore) -> None:
    store.put("1/p", [b"x"])
    store.put("2/p", [b"x"])

    with Recorder(root) as recorder:
        store.link("1/p", "2/q")

    assert recorder.story() == ["link 1/p -> 2/q", "fsync 2/"]
    assert (root / "1/p").stat().st_ino == (root / "2/q").stat().st_ino


def test_a_folder_is_out_of_sight_for_good_before_its_files_go(root: Path, store: LocalStore) -> None:
    store.put("1/notes/n", [b"x"])

    with Recorder(root) as recorder:
        store.retire("1/")

    assert recorder.story() == [
        *("rename 1/ -> .trash/", "fsync ."),
        *("unlink .trash/notes/n", "rmdir .trash/notes/", "rmdir .trash/"),
    ]


def test_a_folder_in_a_folder_is_retired_from_both(root: Path, store: LocalStore) -> None:
    store.put("1/notes/n", [b"x"])

    with Recorder(root) as recorder:
        store.retire("1/notes/")

    assert recorder.story()[:4] == ["rename 1/notes/ -> .trash/", "fsync .", "fsync 1/", "unlink .trash/n"]


def test_a_folder_that_a_killed_process_made_is_synced_once(root: Path, store: LocalStore) -> None:
    store.put("0/pack", [b"x"])
    (root / "1").mkdir()

    with Recorder(root) as recorder:
        store.put("1/a", [b"x"], flush=False)
        store.put("1/b", [b"x"], flush=False)

    assert recorder.story()[0] == "fsync ."
    assert recorder.story().count("fsync .") == 1


def test_many_tiny_buffers_are_few_writes(root: Path, store: LocalStore) -> None:
    with Recorder(root) as recorder:
        store.put("tiny", [b"x" * 100] * 50_000)
        store.put("mixed", [b"x" * 100, b"y" * 3 * MiB, b"z"])

    writes = [(len(call.data), call.offset) for call in recorder.calls if call.name == "write"]
    assert len(writes) == 2 + 1
    assert writes[-1] == (3 * MiB + 4096, 0)  # padded, and cut to its size afterwards
    assert (root / "mixed").stat().st_size == 3 * MiB + 101


# Failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mkdir", "1/"),
        ("fsync", r"\.$"),
        ("create", "1/.tmp"),
        ("write", "1/.tmp"),
        ("chmod", "1/.tmp"),
        ("fsync", "1/.tmp"),
        ("link", "1/.tmp"),
    ],
)
def test_a_failure_before_the_name_leaves_nothing(root: Path, name: str, path: str, number: int) -> None:
    root.mkdir()
    store = LocalStore(root)
    before = Fails(number, name, path)

    with Recorder(root, before=before), pytest.raises(StorageError, match=r"root/1/pack: ") as caught:
        store.put("1/pack", [b"bytes"])

    assert not isinstance(caught.value, CommitUnknownError)
    assert caught.value.errno == number
    assert before.count == 1
    assert files_below(root) == []
    store.put("1/pack", [b"bytes"])
    assert store.get("1/pack") == b"bytes"


def test_trying_again_syncs_the_name_of_a_folder_again(root: Path) -> None:
    root.mkdir()
    store = LocalStore(root)
    with Recorder(root, before=Fails(errno.EIO, "fsync", r"\.$")), pytest.raises(StorageError):
        store.put("1/pack", [b"bytes"])

    with Recorder(root) as recorder:
        store.put("1/pack", [b"bytes"])

    assert recorder.story()[:2] == ["mkdir 1/", "fsync ."]


def test_a_failure_after_the_name_is_of_unknown_outcome(root: Path, store: LocalStore) -> None:
    store.put("1/pack", [b"bytes"])
    before = Fails(errno.EIO, "fsync", "1/$")

    with Recorder(root, before=before), pytest.raises(CommitUnknownError, match=r"manifest\.json") as caught:
        store.put("1/manifest.json", [b"{}"])

    assert (caught.value.code, caught.value.errno) == ("commit_unknown", errno.EIO)
    assert before.count == 1
    assert store.get("1/manifest.json") == b"{}"
    assert files_below(root) == ["1/manifest.json", "1/pack"]


def test_names_that_waited_for_a_sync_that_failed_are_given_up(root: Path, store: LocalStore) -> None:
    store.put("1/pack", [b"bytes"], flush=False)
    with Recorder(root, before=Fails(errno.EIO, "fsync", "1/$")), pytest.raises(CommitUnknownError):
        store.put("1/leaves.json", [b"{}"])

    for put in (
        lambda: store.put("1/manifest.json", [b"{}"]),
        lambda: store.put("1/notes/n", [b"{}"]),
        lambda: store.link("1/pack", "1/other"),
    ):
        with pytest.raises(StorageError, match="an earlier sync of this folder failed"):
            put()
    store.put("2/pack", [b"bytes"])
    store.retire("1/")
    store.put("1/pack", [b"bytes"])
    assert keys(store) == ["1/pack", "2/pack"]


def test_a_folder_that_may_come_back_keeps_its_files(root: Path, store: LocalStore) -> None:
    store.put("1/pack", [b"bytes"])

    with Recorder(root, before=Fails(errno.EIO, "fsync", r"\.$")), pytest.raises(StorageError, match="may be back"):
        store.retire("1/")
    store.sweep()

    assert keys(store) == []
    assert [path.name for path in root.rglob("pack")] == ["pack"]


def test_files_that_cannot_be_deleted_are_said_to_be_retired(root: Path, store: LocalStore) -> None:
    store.put("1/pack", [b"bytes"])

    with Recorder(root, before=Fails(errno.EIO, "unlink", ".trash")), pytest.raises(StorageError, match="is retired"):
        store.retire("1/")

    assert keys(store) == []
    store.sweep()
    assert list(root.iterdir()) == []


def test_short_writes_are_carried_on(root: Path, store: LocalStore) -> None:
    data = [bytes(range(256)) * 3, b"x" * 300_000, b"y"]

    with Recorder(root, largest_write=1_000):
        store.put("key", data)

    assert store.get("key") == b"".join(data)


@pytest.fixture
def small_files_only() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MiB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files_only")
def test_what_does_not_fit_is_found_before_it_is_written_if_its_size_is_known(root: Path, store: LocalStore) -> None:
    data = [b"x" * MiB] * 3

    with Recorder(root) as known, pytest.raises(StorageError) as caught:
        store.put("key", data)
    with Recorder(root) as unknown, pytest.raises(StorageError):
        store.put("key", iter(data))

    assert caught.value.code == "exhausted"
    assert "write .tmp" not in known.story()
    assert unknown.story().count("write .tmp") == 2
    assert files_below(root) == []


def test_an_object_of_absurd_size_takes_no_memory(root: Path, store: LocalStore) -> None:
    root.mkdir()
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 43)

    with pytest.raises(StorageError) as caught:
        store.get("huge")

    assert caught.value.code == "exhausted"
    assert store.get("huge", start=1 << 42, length=3) == b"\0\0\0"


def test_no_descriptor_is_left_open(root: Path, store: LocalStore) -> None:
    before = len(os.listdir("/proc/self/fd"))

    commit(store, "1")
    for number, name, path in ((errno.EIO, "fsync", "2/"), (errno.EIO, "link", "2/"), (errno.EIO, "create", "2/")):
        with Recorder(root, before=Fails(number, name, path)), pytest.raises(StorageError):
            store.put("2/p", [b""])
    with pytest.raises(NotFoundError):
        store.get("1/nothing")
    with pytest.raises(NotFoundError):
        store.get("1/p0/deeper")
    with store.hold("1/p0", exclusive=True), pytest.raises(ConflictError):
        store.hold("1/p0", exclusive=True)
    store.get("1/p0")
    store.map("1/p0")
    store.link("1/p0", "3/p0")
    keys(store)
    store.retire("1/")
    store.sweep()

    assert len(os.listdir("/proc/self/fd")) == before


# File systems that cannot do everything


def test_without_hard_links_a_put_is_still_create_only(root: Path, store: LocalStore) -> None:
    with Recorder(root, before=Fails(errno.EPERM, "link", "")):
        store.put("key", [b"first"])
        with pytest.raises(ConflictError):
            store.put("key", [b"second"])

    assert store.get("key") == b"first"
    assert files_below(root) == ["key"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP])
def test_where_a_link_is_refused_a_durable_copy_is_made(root: Path, store: LocalStore, number: int) -> None:
    data = os.urandom(9 * MiB + 5)
    store.put("1/pack", [data])

    with Recorder(root, before=Fails(number, "link", "1/pack")) as recorder:
        store.link("1/pack", "2/pack")
        with pytest.raises(ConflictError):
            store.link("1/pack", "2/pack")

    assert store.get("2/pack") == data
    assert (root / "1/pack").stat().st_ino != (root / "2/pack").stat().st_ino
    story = recorder.story("write", "chmod")
    assert story[2:7] == [*("create 2/.tmp", "fsync 2/.tmp", "link 2/.tmp -> 2/pack", "unlink 2/.tmp", "fsync 2/")]
    assert files_below(root) == ["1/pack", "2/pack"]


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO])
def test_a_link_whose_answer_was_lost_is_recognized(root: Path, store: LocalStore, number: int) -> None:
    def linked_all_the_same(call: Call) -> None:
        if call.name == "link":
            os.link(root / call.path, root / call.target)
            raise OSError(number, os.strerror(number))

    with Recorder(root, before=linked_all_the_same):
        store.put("1/manifest.json", [b"{}"])

    assert files_below(root) == ["1/manifest.json"]


def test_a_file_system_without_locks_says_so_once(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "milepost"):
        first = store.hold("lock", exclusive=True, create=True)
        second = open_store(store.url).hold("lock", exclusive=True)
        first.close()
        second.close()

    assert not first.supported
    assert not second.supported

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(root)]


def test_a_file_system_that_cannot_sync_folders_says_so_once(
    root: Path, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("1/a", [b""])

    with Recorder(root, before=Fails(errno.EINVAL, "fsync", "1/$")), caplog.at_level(logging.WARNING, "milepost"):
        store.put("1/b", [b""])
        store.put("1/c", [b""])

    assert len(caplog.records) == 1
    assert keys(store) == ["1/a", "1/b", "1/c"]


# What is on the disk


def test_an_object_is_private_until_it_is_whole_and_then_read_only(root: Path, store: LocalStore) -> None:
    modes: list[int] = []
    umask = os.umask(0o077)
    os.umask(umask)

    def look(call: Call) -> None:
        if call.name in ("write", "chmod"):
            modes.append(stat.S_IMODE((root / call.path).stat().st_mode))

    with Recorder(root, before=look):
        store.put("key", [b"x" * MiB, b"y"])

    assert set(modes) == {0o600}
    assert stat.S_IMODE((root / "key").stat().st_mode) == 0o444 & ~umask


def test_links_within_the_root_are_not_followed(tmp_path: Path, root: Path, store: LocalStore) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store.put("1/pack", [b"x"])
    (root / "1/file").symlink_to(outside / "secret")
    (root / "1/folder").symlink_to(outside)
    (root / "2").symlink_to(outside)

    for key in ("1/file", "1/folder/secret", "2/secret"):
        for attempt in (
            partial(store.get, key),
            partial(store.map, key),
            partial(store.hold, key, exclusive=False),
            partial(store.link, key, "3/pack"),
        ):
            with pytest.raises(NotFoundError):
                attempt()
    for key in ("1/folder/new", "2/new"):
        with pytest.raises(StorageError):
            store.put(key, [b"x"])
    with pytest.raises(ConflictError):
        store.put("1/file", [b"x"])
    store.retire("2/")
    assert keys(store) == ["1/pack"]
    store.retire("1/")
    assert files_below(outside) == ["secret"]


def test_the_root_itself_may_be_a_link(tmp_path: Path, root: Path) -> None:
    root.mkdir()
    (tmp_path / "latest").symlink_to(root)

    LocalStore(tmp_path / "latest").put("key", [b"x"])

    assert files_below(root) == ["key"]


def test_what_is_no_file_is_not_there_and_stops_nobody(root: Path, store: LocalStore) -> None:
    store.put("key", [b"x"])
    os.mkfifo(root / "fifo")
    (root / "back\\slash").write_bytes(b"")
    (Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff"))).write_bytes(b"")

    with pytest.raises(NotFoundError, match="not a regular file"):
        store.get("fifo")
    assert keys(store) == ["key"]


def test_leftovers_are_hidden_and_swept(tmp_path: Path, root: Path, store: LocalStore) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"")
    store.put("1/pack", [b"x"])
    (root / ".tmp-1").write_bytes(b"")
    (root / "1/.tmp-2").write_bytes(b"")
    (root / ".trash-3/deep").mkdir(parents=True)
    (root / ".trash-3/deep/file").write_bytes(b"")
    (root / ".trash-3/link").symlink_to(outside)
    assert list(store.list("", delimiter="/")) == [ObjectInfo("1/", None)]

    with Recorder(root) as recorder:
        store.sweep()
        store.sweep()

    assert recorder.story()[0] == "fsync ."
    assert recorder.story().count("fsync .") == 1
    assert files_below(root) == ["1/.tmp-2", "1/pack"]
    assert files_below(outside) == ["kept"]


def test_a_killed_writer_leaves_nothing_that_is_seen(root: Path, store: LocalStore) -> None:
    store.put("1/pack", [b"x"])
    program = (
        "import os, signal, sys\n"
        "from milepost.stores.local import LocalStore\n"
        "def data():\n"
        "    yield b'x' * (2 << 20)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalStore(sys.argv[1]).put('1/manifest.json', data())\n"
    )

    done = subprocess.run([sys.executable, "-c", program, str(root)], check=False)

    assert done.returncode == -signal.SIGKILL
    assert keys(store) == ["1/pack"]
    store.put("1/manifest.json", [b"{}"])


def test_a_listing_never_has_half_of_what_is_being_deleted(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        store.put(f"1/{name}", [b"x"])
    scandir = os.scandir

    def half_deleted_meanwhile(fd: int) -> object:
        monkeypatch.setattr(os, "scandir", scandir)
        (root / "1").rename(root / ".trash-1")
        (root / ".trash-1/b").unlink()
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", half_deleted_meanwhile)

    assert keys(store, "1/") == []


def test_what_is_put_into_a_folder_on_its_way_out_is_not_acknowledged(root: Path, store: LocalStore) -> None:
    asked_for: list[int] = []

    def data() -> Iterator[Buffer]:
        asked_for.append(1)
        (root / "1").rename(root / ".trash-1")
        yield b"{}"

    with store.claim("1/") as claim:
        for _ in range(2):
            with pytest.raises(ConflictError) as caught:
                claim.put("manifest.json", data())
            assert caught.value.code == "fenced"

    assert len(asked_for) == 1  # the second time, nothing is written to find out
    assert keys(store) == []


# Locks


def test_a_child_does_not_keep_its_dead_parents_lock(root: Path, store: LocalStore) -> None:
    program = (
        "import os, signal, sys\n"
        "from milepost.stores.local import LocalStore\n"
        "hold = LocalStore(sys.argv[1], create=True).hold('writer.lock', exclusive=True, create=True)\n"
        "if os.fork() == 0:\n"
        "    print('the child lives', flush=True)\n"
        "    sys.exit(sys.stdin.read())\n"
        "sys.stdout.close()\n"
        "os.read(int(sys.argv[2]), 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    go, let_go = os.pipe()
    command = [sys.executable, "-c", program, str(root), str(go)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[go]) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"the child lives\n"
        with pytest.raises(ConflictError):  # closing the child's copy has not unlocked the parent's
            store.hold("writer.lock", exclusive=True)
        os.write(let_go, b"!")
        assert parent.wait() == -signal.SIGKILL

        store.hold("writer.lock", exclusive=True).close()
    os.close(go)
    os.close(let_go)


def after_the_lock(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Let something happen once, between locking a file and seeing whether it is still there."""
    flock = fcntl.flock

    def locked(fd: int, how: int) -> None:
        flock(fd, how)
        monkeypatch.setattr(fcntl, "flock", flock)
        what()

    monkeypatch.setattr(fcntl, "flock", locked)


def test_a_lock_on_what_is_being_retired_is_none(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("1/manifest.json", [b"{}"])
    after_the_lock(monkeypatch, lambda: store.retire("1/"))

    with pytest.raises(NotFoundError) as caught:
        store.hold("1/manifest.json", exclusive=False)

    assert caught.value.code == "deleted"


def test_a_lock_file_that_was_replaced_is_locked_anew(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("lock", [b"old"])
    before = len(os.listdir("/proc/self/fd"))
    after_the_lock(monkeypatch, lambda: store.put("lock", [b"new"], mode="overwrite"))

    with store.hold("lock", exclusive=False, create=True), pytest.raises(ConflictError):
        store.hold("lock", exclusive=True)

    assert len(os.listdir("/proc/self/fd")) == before


# Opening


def test_a_root_that_is_missing_has_nothing_and_stays_missing(root: Path) -> None:
    store = open_store(root)

    assert keys(store) == []
    store.retire("1/")
    store.sweep()
    for attempt in (
        lambda: store.get("key"),
        lambda: store.map("key"),
        lambda: store.hold("key", exclusive=False),
        lambda: store.hold("key", exclusive=False, create=True),
        lambda: store.put("key", [b"x"]),
        lambda: store.link("key", "other"),
    ):
        with pytest.raises(NotFoundError):
            attempt()
    assert not root.exists()


def test_a_root_that_is_a_file_is_an_error_only_for_writers(root: Path) -> None:
    root.write_bytes(b"")
    store = open_store(root, create=True)

    assert keys(store) == []
    with pytest.raises(StorageError):
        store.put("key", [b"x"])


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/7", create=True)
    store.put("1/a", [b"x"])

    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("1/b", [b"y"])

    assert store.url == "runs/7"
    assert files_below(tmp_path) == ["runs/7/1/a", "runs/7/1/b"]


def test_a_url_says_which_store_it_is(root: Path) -> None:
    store = open_store(f"file://{root}%20x", create=True)
    store.put("key", [b"x"])

    assert store.url == f"{root} x"
    assert open_store(store) is store
    assert isinstance(open_store("memory://a"), MemoryStore)
    with pytest.raises(StorageError, match="no store for ftp://") as caught:
        open_store("ftp://host/runs")
    assert caught.value.code == "unsupported"
    with pytest.raises(StorageError, match="absolute"):
        open_store("file://runs/7")


def test_memory_is_shared_by_name_within_the_process() -> None:
    open_store("memory://shared").put("key", [b"x"])

    assert open_store("memory://shared").get("key") == b"x"
    assert keys(open_store("memory://other")) == []
    assert keys(open_store("memory://")) == []
    unnamed = open_store("memory://")
    unnamed.put("key", [b"x"])
    assert open_store(unnamed.url).get("key") == b"x"


def test_a_plugin_brings_a_scheme_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tape-1.0.dist-info").mkdir()
    (tmp_path / "tape-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tape\nVersion: 1.0\n")
    (tmp_path / "tape-1.0.dist-info/entry_points.txt").write_text("[milepost.stores]\ntape = tape:TapeStore\n")
    (tmp_path / "tape.py").write_text("def TapeStore(url, *, create):\n    return url, create\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    assert open_store("tape://left/7", create=True) == ("tape://left/7", True)


def test_data_may_come_from_the_store_itself(store: LocalStore) -> None:
    store.put("1/a", [b"x" * 1000])

    def copied() -> Iterator[Buffer]:
        yield store.get("1/a")
        store.put("1/b", [b"y"])
        yield store.get("1/b")

    store.put("1/c", copied())

    assert store.get("1/c") == b"x" * 1000 + b"y"
