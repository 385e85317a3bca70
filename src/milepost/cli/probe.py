# SPDX-License-Identifier: Apache-2.0
"""What a disk can do, found out by doing it in a temporary folder, and what follows from it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from milepost.table import size

if sys.platform != "win32":
    import fcntl

Status = Literal["ok", "note", "warning", "problem"]

_REMOTE = re.compile(r"nfs|cifs|smb|9p|fuse|lustre|gpfs|beegfs|ceph|gluster|afs|ocfs|vboxsf|virtiofs|drvfs")
_FORGETS = ("tmpfs", "ramfs")
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: `problem` where saving will fail or has been damaged, `warning` where something may be lost.
        found: what is so.
        means: what follows from it; empty when nothing does.
    """

    name: str
    status: Status
    found: str
    means: str = ""


def disk_checks(folder: Path, needed: int) -> Iterator[Check]:
    """Yield what the disk of an existing folder can do. Makes a folder of its own there, and removes it.

    Args:
        folder: the root, or the nearest folder that exists.
        needed: bytes of the newest checkpoint, for which there should be room once more.
    """
    yield _file_system(folder)
    yield _space(folder, needed)
    try:
        own = tempfile.mkdtemp(prefix=".doctor-", dir=folder)
    except OSError as error:
        yield Check(
            "writing", "warning", f"no: {error.strerror}",
            "Checkpoints can be read here, but not saved, pinned or deleted; the disk cannot be tried out.",
        )  # fmt: skip
        return
    try:
        yield from _tried(Path(own))
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _tried(own: Path) -> Iterator[Check]:
    linked = _result(lambda: _link(own))
    yield Check("hard links", "ok", "yes") if linked is None else Check(
        "hard links", "warning", f"no: {linked}", "Unchanged arrays are copied into every step instead of linked.",
    )  # fmt: skip
    renamed = _result(lambda: _rename_new(own))
    if renamed is None:
        yield Check("rename without replacing", "ok", "yes")
    elif linked is None:
        yield Check("rename without replacing", "note", f"no: {renamed}", "Not needed, as there are hard links.")
    else:
        yield Check(
            "rename without replacing", "problem", f"no: {renamed}",
            "Nothing can be saved here: without it and without hard links two writers cannot be told apart.",
        )  # fmt: skip
    synced = _result(lambda: _sync_folder(own))
    yield Check("fsync of folders", "ok", "yes") if synced is None else Check(
        "fsync of folders", "warning", f"no: {synced}", "What was saved last may be lost in a power cut.",
    )  # fmt: skip
    locked = _result(lambda: _lock(own))
    yield Check("locks (flock)", "ok", "yes") if locked is None else Check(
        "locks (flock)", "warning", f"no: {locked}",
        "A second writer is noticed at its commit only, and pruning does not see who reads.",
    )  # fmt: skip
    direct = _result(lambda: _write_direct(own))
    yield Check("direct writes (O_DIRECT)", "ok", "yes") if direct is None else Check(
        "direct writes (O_DIRECT)", "note", f"no: {direct}", "Large saves go through the page cache and take more CPU.",
    )  # fmt: skip


def _file_system(folder: Path) -> Check:
    kind = file_system_of(folder)
    if kind is None:
        return Check("file system", "note", "unknown")
    if kind in _FORGETS:
        return Check("file system", "warning", kind, "It lives in memory: everything is gone after a restart.")
    if _REMOTE.search(kind):
        return Check(
            "file system", "warning", kind,
            "Not local: saves are as safe as its fsync, and locks as good as its flock, between machines too.",
        )  # fmt: skip
    return Check("file system", "ok", kind)


def nearest_folder(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def file_system_of(folder: Path) -> str | None:
    """Return the type of the file system of a folder, None where the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    where = os.path.realpath(folder)
    for line in lines:
        # proc_pid_mountinfo(5): id parent major:minor root mount-point options [fields] - type source options
        fields, _, rest = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split(" ")[4])
        if (where == mount or where.startswith(mount.rstrip("/") + "/")) and len(mount) >= best:
            best, kind = len(mount), rest.split(" ")[0]
    return kind


def _space(folder: Path, needed: int) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free"
    if not needed:
        return Check("space", "ok", found)
    found += f", a step takes up to {size(needed)}"
    if free < needed:
        return Check("space", "problem", found, "The next save may fail: keep fewer steps (`milepost prune`).")
    if free < 3 * needed:
        return Check("space", "warning", found, "Room for fewer than three more steps.")
    return Check("space", "ok", found)


def _result(attempt: Callable[[], None]) -> str | None:
    """Return None when the attempt works, else what the system says."""
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    except (AttributeError, NotImplementedError):
        return "this system has no such call"
    return None


@contextmanager
def _file(path: Path, flags: int) -> Generator[int]:
    fd = os.open(path, flags | os.O_CREAT, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _link(own: Path) -> None:
    (own / "linked").touch()
    os.link(own / "linked", own / "link")


def _rename_new(own: Path) -> None:
    call, only_new = {"linux": ("renameat2", 1), "darwin": ("renameatx_np", 4)}.get(sys.platform, ("", 0))
    rename = getattr(ctypes.CDLL(None, use_errno=True), call) if call else None
    if rename is None:
        raise NotImplementedError
    (own / "renamed").touch()
    at_cwd = -2 if sys.platform == "darwin" else -100
    if rename(at_cwd, os.fsencode(own / "renamed"), at_cwd, os.fsencode(own / "new"), only_new):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _sync_folder(own: Path) -> None:
    fd = os.open(own, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(own: Path) -> None:
    if sys.platform == "win32":
        raise NotImplementedError
    with _file(own / "lock", os.O_RDWR) as fd, _file(own / "lock", os.O_RDWR) as other:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError(errno.ENOLCK, "a second lock was given out")


def _write_direct(own: Path) -> None:
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        raise NotImplementedError
    with _file(own / "direct", os.O_WRONLY | flag) as fd, mmap.mmap(-1, _BLOCK) as block:  # mapped memory is aligned
        os.write(fd, block)
