# SPDX-License-Identifier: Apache-2.0
"""How fast a machine and a disk are, found out by moving bytes in a temporary folder."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from milepost.engine.transfer import digest

PIECE = 8 << 20
_THREADS = 4
_TRIES = 3
_SMALL_TRIES = 20


@dataclass(frozen=True, slots=True)
class Rate:
    """One thing that was tried.

    Attributes:
        name: for programs.
        what: for people.
        bytes_per_s: the median of three tries; None where the system cannot do it.
        why_not: what the system says then.
    """

    name: str
    what: str
    bytes_per_s: float | None
    why_not: str = ""


def memory_rates(nbytes: int) -> Iterator[Rate]:
    """Yield what one CPU does with memory that is there already."""
    source, target = (memoryview(mmap.mmap(-1, nbytes)) for _ in range(2))
    for memory in (source, target):
        for offset in range(0, nbytes, mmap.PAGESIZE):
            memory[offset] = 1

    def copy() -> None:
        target[:] = source

    yield Rate("copy", "copy in memory", nbytes / _median(copy))
    yield Rate("digest", "digest", nbytes / _median(lambda: digest(source)))


def disk_rates(own: Path, nbytes: int) -> Iterator[Rate]:
    """Yield how fast an empty folder of ours takes bytes, and gives them back; `nbytes` is a multiple of `PIECE`."""
    direct = getattr(os, "O_DIRECT", None)
    for name, what, flag in (("direct", "direct (O_DIRECT)", direct), ("cached", "through the page cache", 0)):
        path = own / name
        if flag is None:
            yield Rate(f"write_{name}", f"write and sync, {what}", None, "this system has no such call")
            continue
        try:
            seconds = _median(lambda path=path, flag=flag: _written(path, nbytes, flag))
            yield Rate(f"write_{name}", f"write and sync, {what}", nbytes / seconds)
            seconds = _median(lambda path=path, flag=flag: _read(path, nbytes, flag), before=lambda p=path: forget(p))
            yield Rate(f"read_{name}", f"cold read, {what}", nbytes / seconds)
        except OSError as error:
            yield Rate(f"write_{name}", f"write and sync, {what}", None, error.strerror or str(error))
        finally:
            path.unlink(missing_ok=True)


def sync_seconds(own: Path) -> float:
    """Return how long a new file of 1 KiB takes until it is durable, its name too."""
    names = iter(range(_SMALL_TRIES))

    def write() -> None:
        with open(own / f"small-{next(names)}", "xb", buffering=0) as file:
            file.write(bytes(1024))
            os.fsync(file.fileno())
        fd = os.open(own, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    return _median(write, tries=_SMALL_TRIES)


def forget(path: Path) -> None:
    """Have the page cache forget a file, where the system can be asked for that."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # what is not yet written stays
        advise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _median(attempt: Callable[[], object], *, tries: int = _TRIES, before: Callable[[], None] | None = None) -> float:
    """Return the median of some tries, in seconds."""
    seconds: list[float] = []
    for _ in range(tries):
        if before is not None:
            before()
        start = time.perf_counter()
        attempt()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _written(path: Path, nbytes: int, flag: int) -> None:
    """Write a new file in pieces on threads, and make it durable."""
    path.unlink(missing_ok=True)
    piece = mmap.mmap(-1, PIECE)  # mapped memory is aligned
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flag, 0o600)

    def write(offset: int) -> None:
        os.pwrite(fd, piece, offset)

    try:
        allocate = getattr(os, "posix_fallocate", None)
        if allocate is not None:
            allocate(fd, 0, nbytes)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(write, range(0, nbytes, PIECE)))
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: Path, nbytes: int, flag: int) -> None:
    """Read a file in pieces on threads, into memory that nobody has touched."""
    data = memoryview(mmap.mmap(-1, nbytes))
    fd = os.open(path, os.O_RDONLY | flag)

    def fill(offset: int) -> None:
        os.preadv(fd, [data[offset : offset + PIECE]], offset)

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, range(0, nbytes, PIECE)))
    finally:
        os.close(fd)
