# SPDX-License-Identifier: Apache-2.0
"""Large files, written past the page cache: a ring of aligned buffers, a few threads, no copy where none is needed.

Buffered writing and its write-back cost 4 to 6 CPU-seconds for 2 GiB and run at a fraction of the disk's rate; direct
writing costs 0.1 and runs at all of it (measured on a 2-core VM, 2026-11). Where a file system refuses O_DIRECT the
same blocks go through the page cache, and their write-back is begun as they come.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import final

import numpy as np

from milepost.errors import StorageError, failing
from milepost.stores import Buffer, Sized

if sys.platform != "win32":
    import fcntl

BLOCK = 4 << 20
"""Bytes of one write."""
_BLOCKS = 6
_THREADS = 3
_SECTOR = 512  # what direct I/O asks of addresses
_ALIGNED = 4096  # at least what every disk and file system asks of addresses, offsets and lengths
_LARGE = 1 << 20  # shorter writes of their own would be slower than the copy into a block
SMALL = 64 << 10
"""Below this, a copy by NumPy takes longer to set up than to do."""
_DIRECT = getattr(os, "O_DIRECT", 0)

Begin = Callable[[int, int, int], None]
"""Begin to write back a range of a file: descriptor, offset, bytes."""


@final
class Ring:
    """Aligned buffers, made at the first use and kept warm for the next; one writer has them at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: mmap.mmap | None = None
        self._pid = 0

    @contextmanager
    def blocks(self, nbytes: int) -> Generator[list[memoryview]]:
        """Give as many blocks as a file of `nbytes` can use; another writer at the same time gets blocks of its own."""
        count = min(_BLOCKS, -(-nbytes // BLOCK))
        if not self._lock.acquire(blocking=False):
            yield _cut(mmap.mmap(-1, count * BLOCK), count)
            return
        try:
            # Such memory is shared with a forked child, which needs its own.
            if self._memory is None or len(self._memory) < count * BLOCK or self._pid != os.getpid():
                self._memory, self._pid = mmap.mmap(-1, count * BLOCK), os.getpid()
            yield _cut(self._memory, count)
        finally:
            self._lock.release()


def _cut(memory: mmap.mmap, count: int) -> list[memoryview]:
    view = memoryview(memory)
    return [view[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]


def write(fd: int, data: Iterable[Buffer], nbytes: int, ring: Ring, begin: Begin, what: str) -> None:
    """Write a new file of `nbytes`; what is in it is durable only after a sync.

    Args:
        fd: the empty file.
        data: its bytes; those of `Sized` are written from where they lie when they lie well.
        nbytes: how many there are.
        ring: the buffers that the others go through.
        begin: begins write-back where O_DIRECT is refused.
        what: for messages: what went wrong if something does.

    Raises:
        StorageError: a write failed.
    """
    with failing(what):
        direct = _made_direct(fd)
    stable = isinstance(data, Sized)
    with ring.blocks(nbytes) as blocks:
        writer = _Writer(fd, blocks, begin, what, direct=direct)
        try:
            for buffer in data:
                writer.add(memoryview(buffer).cast("B"), stable=stable)
            writer.flush()
        finally:
            writer.close()
    writer.check()
    if writer.nbytes != nbytes:  # space was reserved for so many
        raise StorageError(f"{what}: {nbytes:,} bytes were announced, and {writer.nbytes:,} came")
    if direct:  # the last block was padded
        with failing(what):
            os.ftruncate(fd, writer.nbytes)


def read(fd: int, start: int, view: memoryview, scratch: Scratch) -> int:
    """Read a range of a file past the page cache, into which it is not brought; return how many bytes there were.

    What is in the page cache already, or is small, is not read here: then nothing is done, and 0 returned.
    """
    if len(view) < _LARGE or _is_cached(fd, start) or not _made_direct(fd):
        return 0
    done = 0
    try:
        while done < len(view):
            count = _read_some(fd, start + done, view[done:], scratch)
            if not count:
                break
            done += count
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~_DIRECT)
    return done


def _read_some(fd: int, start: int, view: memoryview, scratch: Scratch) -> int:
    address = np.frombuffer(view, np.uint8).ctypes.data
    before = start % _ALIGNED
    if not before and len(view) >= _ALIGNED and not address % _SECTOR:
        return os.preadv(fd, [view[: len(view) // _ALIGNED * _ALIGNED]], start)
    # Through other memory: up to where the direct way begins, or all of it where memory and file never meet.
    wanted = _ALIGNED - before if before and not (address - start) % _SECTOR else len(view)
    wanted = min(wanted, len(view), BLOCK - before)
    block = scratch.block()
    found = os.preadv(fd, [block[: -(-(before + wanted) // _ALIGNED) * _ALIGNED]], start - before) - before
    count = max(0, min(found, wanted))
    copy_bytes(block[before : before + count], view[:count])
    return count


def _is_cached(fd: int, start: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], start, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # nobody knows: the usual way
        return True


@final
class Scratch(threading.local):
    """An aligned block for each thread that reads."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._pid = 0

    def block(self) -> memoryview:
        """Return this thread's block."""
        if self._memory is None or self._pid != os.getpid():  # a forked child would share it
            self._memory, self._pid = mmap.mmap(-1, BLOCK), os.getpid()
        return memoryview(self._memory)


def _made_direct(fd: int) -> bool:
    if not _DIRECT or sys.platform != "linux":
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM):
            raise
        return False
    return True


@final
class _Writer:
    """Fills blocks on the caller's thread, and writes them on others."""

    def __init__(self, fd: int, blocks: list[memoryview], begin: Begin, what: str, *, direct: bool) -> None:
        self._fd, self._begin, self._what = fd, begin, what
        self._padded, self._cached = direct, not direct
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for block in blocks:
            self._free.put(block)
        # Bounded: who gives up waits for what is in it, and progress is told by what was put.
        self._tasks: queue.Queue[tuple[memoryview, int, memoryview | None] | None] = queue.Queue(_BLOCKS)
        self._block: memoryview | None = None
        self._filled = 0
        self.nbytes = 0  # given so far
        self._error: BaseException | None = None
        self._threads = self._started(min(_THREADS, len(blocks) - 1))

    def _started(self, count: int) -> list[threading.Thread]:
        threads: list[threading.Thread] = []
        for _ in range(count):
            thread = threading.Thread(target=self._work, name="milepost-write")
            try:
                thread.start()
            except RuntimeError:  # the interpreter is exiting, or the system has no more: fewer, or this thread alone
                break
            threads.append(thread)
        return threads

    def add(self, view: memoryview, *, stable: bool) -> None:
        while view:
            if stable and len(view) >= _LARGE and not self.nbytes % _ALIGNED and _is_aligned(view):
                if self._block is not None:
                    self.flush()
                whole = min(len(view) // _ALIGNED * _ALIGNED, 4 * BLOCK)
                self._give(view[:whole], self.nbytes, None)
                self.nbytes += whole
                view = view[whole:]
                continue
            if self._block is None:
                self._block, self._filled = self._free.get(), 0
            count = min(len(view), BLOCK - self._filled)
            copy_bytes(view[:count], self._block[self._filled : self._filled + count])
            self._filled += count
            self.nbytes += count
            view = view[count:]
            if self._filled == BLOCK:
                self.flush()

    def flush(self) -> None:
        """Write the block that is being filled."""
        block, self._block = self._block, None
        if block is None:
            return
        start, used = self.nbytes - self._filled, self._filled
        if self._padded and used % _ALIGNED:  # the file's end
            padded = -(-used // _ALIGNED) * _ALIGNED
            block[used:padded] = bytes(padded - used)
            used = padded
        self._give(block[:used], start, block)

    def _give(self, view: memoryview, start: int, block: memoryview | None) -> None:
        self.check()
        if self._threads:
            self._tasks.put((view, start, block))
        else:
            self._do(view, start, block)

    def check(self) -> None:
        """Raise what has gone wrong in a thread."""
        if self._error is not None:
            with failing(self._what):
                raise self._error

    def close(self) -> None:
        """Wait until all is written."""
        for _ in self._threads:
            self._tasks.put(None)
        interrupted: BaseException | None = None
        for thread in self._threads:
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt as error:  # not before they have let go of the file and the blocks
                    interrupted = error
        if interrupted is not None:
            raise interrupted

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._do(*task)

    def _do(self, view: memoryview, start: int, block: memoryview | None) -> None:
        try:
            if self._error is None:  # after a failure nothing more is written
                self._write(view, start)
        except BaseException as error:  # noqa: BLE001 raised by the thread that fills the blocks
            self._error = error
        if block is not None:
            self._free.put(block)

    def _write(self, view: memoryview, start: int) -> None:
        first, nbytes = start, len(view)
        while view:
            try:
                count = os.pwrite(self._fd, view, start)
            except OSError as error:
                if error.errno != errno.EINVAL or self._cached:
                    raise
                self._use_cache()
                continue
            if not count:
                raise OSError(errno.EIO, "the file takes no more bytes")
            if count % _ALIGNED and count < len(view):
                self._use_cache()  # a part was written: the rest begins where O_DIRECT cannot
            view, start = view[count:], start + count
        if self._cached:
            self._begin(self._fd, first, nbytes)

    def _use_cache(self) -> None:
        if not self._cached:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~_DIRECT)
            self._cached = True


def _is_aligned(view: memoryview) -> bool:
    return not np.frombuffer(view, np.uint8).ctypes.data % _ALIGNED


def copy_bytes(source: memoryview, target: memoryview) -> None:
    """Copy bytes to memory of the same size; while much is copied, other threads of the program run."""
    if len(source) < SMALL:
        target[:] = source
    else:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
