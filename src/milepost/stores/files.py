# SPDX-License-Identifier: Apache-2.0
"""What the local store asks of the operating system: folders by descriptor, files that are durable when written.

Reading works wherever Python does. On Windows there are no folder descriptors and no fsync of folders, so paths are
joined there, links on the way are followed, and how durable a name is depends on the file system: best effort.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from typing import final

from milepost.errors import FormatError, StorageError, failing, message
from milepost.stores import Buffer, Sized, direct
from milepost.stores.direct import Ring
from milepost.stores.keys import segments

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger("milepost")

ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.ENODEV})

# Nothing opened here is inherited by other programs, is a link, or makes the open wait (as a FIFO would).
_SAFE = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_FOLDER = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_DIRECTORY"))
_DESCRIPTORS = sys.platform != "win32"

# Buffers under _SMALL are gathered, so that a pack of many tiny leaves is a few system calls. From _LARGE on a file is
# worth the blocks that it takes to write past the page cache.
_SMALL = 256 << 10
_LARGE = 1 << 20
_CHUNK = 8 << 20


@final
class Folder:
    """An open folder. What is in it is reached through its descriptor, so that no link on the way is ever followed."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str, fd: int | None) -> None:
        self.path, self.fd = path, fd

    @classmethod
    def at(cls, path: str) -> Folder:
        """Open the folder at a path; here links are followed, since the user named it."""
        if _DESCRIPTORS:
            return cls(path, os.open(path, os.O_RDONLY | _FOLDER))
        if not os.path.isdir(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return cls(path, None)

    def child(self, name: str) -> Folder:
        path = os.path.join(self.path, name)
        if self.fd is None:
            return Folder.at(path)
        return Folder(path, os.open(name, os.O_RDONLY | _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd))

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        return os.open(_name(self, name), flags | _SAFE, mode, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(_name(self, name), dir_fd=self.fd, follow_symlinks=False)

    def make(self, name: str) -> bool:
        """Make a folder in this one; return False when the name is there already."""
        try:
            os.mkdir(_name(self, name), dir_fd=self.fd)
        except FileExistsError:
            return False
        return True

    def unmake(self, name: str) -> None:
        """Delete a folder if it is empty."""
        with suppress(OSError):
            os.rmdir(_name(self, name), dir_fd=self.fd)

    def link(self, name: str, other: Folder, new: str) -> None:
        os.link(_name(self, name), _name(other, new), src_dir_fd=self.fd, dst_dir_fd=other.fd)

    def move(self, name: str, other: Folder, new: str) -> None:
        """Rename, over what is there."""
        os.replace(_name(self, name), _name(other, new), src_dir_fd=self.fd, dst_dir_fd=other.fd)

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all in it. A link is removed, never followed; what has gone is no error."""
        with suppress(FileNotFoundError):
            if not _is_folder(self.stat(name)):
                os.unlink(_name(self, name), dir_fd=self.fd)
                return
            with self.child(name) as inner:
                for entry in os.listdir(inner.path if inner.fd is None else inner.fd):
                    inner.remove(entry)
            os.rmdir(_name(self, name), dir_fd=self.fd)

    def sync(self) -> None:
        """Make the names in this folder durable."""
        if self.fd is None:
            return
        try:
            sync(self.fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            warn_once("%s: this file system cannot sync folders; what is saved may not survive a power cut", self.path)

    def entries(self) -> list[tuple[str, int | None]]:
        """Return (name, size) of each regular file, and (name, None) of each folder."""
        found: list[tuple[str, int | None]] = []
        with os.scandir(self.path if self.fd is None else self.fd) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        found.append((entry.name, None))
                    elif entry.is_file(follow_symlinks=False):
                        found.append((entry.name, entry.stat(follow_symlinks=False).st_size))
        return found

    def close(self) -> None:
        if self.fd is not None and self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _name(folder: Folder, name: str) -> str:
    return os.path.join(folder.path, name) if folder.fd is None else name


@cache
def warn_once(text: str, place: str) -> None:
    """Log a warning about a place, once in this process."""
    _log.warning(text, place)


def ensure_folder(path: str) -> None:
    """Make a folder and its missing ancestors; each name is durable before anything is made below it.

    The parent of the first folder that exists is synced too: whoever made that folder (the user a moment ago, a
    process that was killed) may not have done so.
    """
    parent = os.path.dirname(path)
    met = os.path.isdir(path)
    if not met:
        ensure_folder(parent)
        with suppress(FileExistsError):
            os.mkdir(path)
    # A parent that may be passed through but not read cannot be synced, and is nothing that this process made.
    with suppress(PermissionError) if met else nullcontext(), Folder.at(parent) as folder:
        folder.sync()


def write_file(
    folder: Folder, name: str, data: Iterable[Buffer], what: str, ring: Ring, clone_of: int | None = None
) -> None:
    """Write a new file that is durable and read-only when this returns; on any error nothing of it is left.

    Args:
        folder: where.
        name: a name that is not taken.
        data: the bytes; a large file of known size goes past the page cache.
        what: for messages: what went wrong if something does.
        ring: the buffers that a large file goes through.
        clone_of: descriptor of a file of the same bytes, whose blocks are shared where the file system can.
    """
    with failing(what):
        fd = folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            if clone_of is None or not _cloned(clone_of, fd):
                _write_all(fd, data, what, ring)
            with failing(what):
                _make_read_only(fd)
                sync(fd)
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        with failing(what):
            os.close(fd)  # some file systems tell only now that the bytes did not fit
    except BaseException:
        # Never synced a second time: an fsync that failed once succeeds the next time, with the data lost.
        with suppress(OSError):
            folder.remove(name)
        raise


def publish(folder: Folder, temporary: str, name: str) -> None:
    """Give a temporary file its name, if that is not taken; the temporary name goes.

    Raises:
        FileExistsError: the name is taken.
        OSError: errno ENOTSUP where a name can be neither linked nor renamed without replacing.
    """
    try:
        folder.link(temporary, folder, name)
    except OSError as error:
        # A network file system that lost the answer to the first request answers the repeated one with "exists".
        if not _same(folder, temporary, name):
            if error.errno not in NO_LINKS:
                raise
            _rename_new(folder, temporary, name)
            return
    with suppress(OSError):
        folder.remove(temporary)


def read_into(fd: int, start: int, view: memoryview) -> int:
    """Fill `view` with a file's bytes from `start` on; return how many there were."""
    done = 0
    with io.FileIO(fd, closefd=False) as file:
        file.seek(start)
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                break
            done += count
    return done


def chunks(fd: int, nbytes: int) -> Iterator[Buffer]:
    """Yield a file's bytes, piece by piece, in one buffer that is used again."""
    buffer = memoryview(bytearray(min(nbytes, _CHUNK)))
    start = 0
    while count := read_into(fd, start, buffer):
        yield buffer[:count]
        start += count


def sync(fd: int) -> None:
    """Make a file's bytes durable, past the drive's own cache."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    os.fsync(fd)


def lock(fd: int, *, exclusive: bool) -> bool:
    """Lock an open file without waiting; return False where this file system has no locks.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        # NFS turns an exclusive flock into a record lock, for which a file opened for reading is a bad descriptor.
        if error.errno not in UNSUPPORTED | {errno.ENOLCK, errno.EBADF}:
            raise
        return False
    return True


def is_named(path: str, fd: int) -> bool:
    """Return whether an open file or folder is still the one at its path."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise


def is_key(name: str) -> bool:
    """Return whether a name on the disk is one that a key may have."""
    try:
        return segments(name) == (name,)
    except FormatError:
        return False


def _write_all(fd: int, data: Iterable[Buffer], what: str, ring: Ring) -> None:
    nbytes = _whole_size(data)
    if nbytes >= _LARGE:
        with failing(what):
            _preallocate(fd, nbytes)
        direct.write(fd, data, nbytes, ring, _begin_write_back, what)
        return
    gathered = bytearray()
    for buffer in data:
        view = memoryview(buffer)
        if small := view.nbytes < _SMALL:
            gathered += view
        if gathered and (not small or len(gathered) >= _LARGE):
            _write(fd, memoryview(gathered), what)
            gathered = bytearray()
        if not small:
            _write(fd, view.cast("B"), what)
    _write(fd, memoryview(gathered), what)


def _whole_size(data: Iterable[Buffer]) -> int:
    """Return how many bytes there are, 0 when only the end will tell."""
    if isinstance(data, Sized):
        return data.nbytes
    return sum(memoryview(buffer).nbytes for buffer in data) if isinstance(data, Sequence) else 0


def _write(fd: int, view: memoryview, what: str) -> None:
    with failing(what):
        while view:
            count = os.write(fd, view)
            if not count:
                raise OSError(errno.EIO, "the file takes no more bytes")
            view = view[count:]


def _preallocate(fd: int, nbytes: int) -> None:
    """Reserve space, so that a full disk is found now, and a large file is laid out in one piece.

    By the system call itself: where there is no support, `os.posix_fallocate` writes into every block instead.
    """
    if sys.platform != "linux":
        return
    while _libc().fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        error = ctypes.get_errno()
        if error in UNSUPPORTED | {errno.EPERM}:  # EPERM: a sandbox forbids the call
            return
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def _begin_write_back(fd: int, start: int, nbytes: int) -> None:
    """Let the system begin to write a range to the disk, so that the sync at the end finds little left to do."""
    if sys.platform == "linux":
        begin = 2  # linux/fs.h: SYNC_FILE_RANGE_WRITE
        # What goes wrong here is told by the sync, which is what counts.
        _libc().sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(nbytes), begin)


def _cloned(source: int, fd: int) -> bool:
    """Let a file share the blocks of another; return False where the file system cannot."""
    if sys.platform != "linux":
        return False
    ficlone = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
    try:
        fcntl.ioctl(fd, ficlone, source)
    except OSError as error:
        if error.errno not in UNSUPPORTED | NO_LINKS:
            raise
        return False
    return True


def _rename_new(folder: Folder, name: str, new: str) -> None:
    """Rename, but not over what is there, where the system has a call for it."""
    if sys.platform == "win32":
        os.rename(_name(folder, name), _name(folder, new))
        return
    call, only_new = {"linux": ("renameat2", 1), "darwin": ("renameatx_np", 4)}.get(sys.platform, ("", 0))
    rename = getattr(_libc(), call, None) if call else None
    error = errno.ENOSYS
    if rename is not None:
        if not rename(folder.fd, os.fsencode(name), folder.fd, os.fsencode(new), only_new):
            return
        error = ctypes.get_errno()
    if error in UNSUPPORTED:
        raise StorageError(
            message(
                f"{folder.path}: this file system can neither make hard links nor rename without replacing",
                remedy="Two writers could not be told apart there: choose a root on another file system.",
            ),
            code="unsupported",
            errno=error,
        )
    raise OSError(error, os.strerror(error))


def _make_read_only(fd: int) -> None:
    if sys.platform == "win32":  # a read-only file cannot be deleted there
        return
    try:
        os.fchmod(fd, 0o444 & ~_umask())
    except OSError as error:  # a guard against mistakes, which file systems without modes do not have
        if error.errno not in UNSUPPORTED | {errno.EPERM}:
            raise


@cache
def _umask() -> int:
    # The umask can only be read by changing it: once in a process, and for the moment to a stricter one.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _same(folder: Folder, name: str, other: str) -> bool:
    try:
        return os.path.samestat(folder.stat(name), folder.stat(other))
    except OSError:
        return False


def _is_folder(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode)
