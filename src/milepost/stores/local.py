# SPDX-License-Identifier: Apache-2.0
"""Files below one folder: create-only names, everything fsynced, locks by flock.

A put writes a temporary file next to its name, syncs it, links it to the name (which fails if that is taken) and
removes the temporary name; then, with `flush`, it syncs the folder. A folder is made, and its own name synced, before
anything is put in it. On Windows reading works and writing is best effort: `milepost.stores.files` says how.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Literal, final
from urllib.parse import unquote

from milepost.errors import CommitUnknownError, NotFoundError, StorageError, failing, message
from milepost.stores import Buffer, Claim, Hold, Mode, ObjectInfo, direct, files
from milepost.stores.direct import Ring, Scratch
from milepost.stores.files import ABSENT, NO_LINKS, Folder
from milepost.stores.keys import (
    TEMPORARY,
    TRASH,
    busy,
    check_limit,
    exists,
    fenced,
    not_found,
    place,
    plain_name,
    prefix_segments,
    range_length,
    segments,
    slot_segments,
    too_short,
)

Parts = tuple[str, ...]


@final
class LocalStore:
    """Objects as files below a folder.

    Links inside the root are never followed, and what is neither a regular file nor a folder does not exist. A handle
    knows which names it has put without flush: those of another handle are flushed by that one.

    Args:
        where: path of the root, or `file://` URL; a relative one is taken from the present working directory.
        create: whether writing makes the root, with its parents, where there is none.

    Attributes:
        url: the path as it was given.
        path: the same, absolute.
    """

    def __init__(self, where: str | os.PathLike[str], *, create: bool = False) -> None:
        path = os.fspath(where)
        if path.startswith("file://"):
            if not (match := re.match(r"file://(?:localhost)?(?=/)", path)):
                raise StorageError(f"{path}: a file URL is absolute, file:///home/me/runs", code="unsupported")
            path = unquote(path[match.end() + (sys.platform == "win32") :])  # there it is /C:/runs
        self.url = path
        self.path = Path(os.path.abspath(path))
        self._create = create
        self._lock = threading.Lock()
        self._ring, self._scratch = Ring(), Scratch()
        # Folders whose own name is known to be durable; whose entries wait for a sync; and whose sync failed while
        # entries waited, which no later sync can make good.
        self._durable: set[Parts] = set()
        self._waiting: set[Parts] = set()
        self._lost: set[Parts] = set()
        self._uncertain: set[str] = set()  # retired, but after a power cut perhaps not

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def put(self, key: str, data: Iterable[Buffer], *, mode: Mode = "create", flush: bool = True) -> None:
        *_, name = parts = segments(key)
        with failing(f"cannot write {place(self.url, key)}"):
            folder = self._made(parts[:-1])
        with folder:
            self._put(folder, parts[:-1], name, data, mode=mode, flush=flush)

    def get(
        self, key: str, *, start: int = 0, length: int | None = None, out: memoryview | None = None,
        limit: int | None = None,
    ) -> memoryview:  # fmt: skip
        where = place(self.url, key)
        with self._opened(key) as (fd, nbytes), failing(f"cannot read {where}"):
            check_limit(where, nbytes, limit)
            length = range_length(where, nbytes, start, length, out)
            try:
                view = memoryview(bytearray(length)) if out is None else out
            except (MemoryError, OverflowError) as error:
                raise StorageError(f"cannot read {where}: no memory for {length} bytes", code="exhausted") from error
            if length:
                data = view.cast("B")
                found = direct.read(fd, start, data, self._scratch)
                if found < length:
                    found += files.read_into(fd, start + found, data[found:])
                if found < length:
                    raise too_short(where, start + length, start + found)
        return view

    def forget(self, key: str) -> None:
        with self._opened(key) as (fd, _), failing(f"cannot read {place(self.url, key)}"):
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def map(self, key: str) -> memoryview:
        with self._opened(key) as (fd, nbytes), failing(f"cannot map {place(self.url, key)}"):
            if not nbytes:
                return memoryview(bytearray())
            if sys.platform == "win32":
                return memoryview(mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY))
            # Without a reservation: a private mapping may be larger than the memory of the machine.
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            return memoryview(mmap.mmap(fd, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE))

    def list(self, prefix: str, *, delimiter: Literal["/"] | None = None) -> Iterator[ObjectInfo]:
        return self._listing(prefix_segments(prefix), prefix, deep=delimiter is None)

    def link(self, source_key: str, key: str, *, flush: bool = True) -> None:
        *_, name = parts = segments(key)
        with self._opened(source_key), failing(f"cannot write {place(self.url, key)}"):
            folder = self._made(parts[:-1])
        with folder:
            self._link(folder, parts[:-1], source_key, name, flush=flush)

    def retire(self, prefix: str) -> None:
        parts = slot_segments(prefix)
        where = place(self.url, prefix)
        trash = TRASH + secrets.token_hex(8)
        with self._lock:
            for known in (self._durable, self._waiting, self._lost):
                known.difference_update([some for some in known if some[: len(parts)] == parts])
            if not self._put_aside(parts, trash, where):
                return
        with failing(f"{where} is retired, but its files cannot be deleted"), self._existing(()) as root:
            root.remove(trash)

    def claim(self, prefix: str) -> Claim:
        parts = slot_segments(prefix)
        where = place(self.url, prefix)
        with failing(f"cannot make {where}"), self._made(parts[:-1]) as parent:
            with self._lock:
                if not self._name_folder(parent, parts):
                    raise exists(where)
            try:
                folder = parent.child(parts[-1])
            except FileNotFoundError:  # another process has retired it at once
                raise fenced(where) from None
        return _LocalClaim(folder, where, partial(self._put, folder, parts), partial(self._link, folder, parts))

    def sweep(self) -> None:
        with failing(f"cannot sweep {self.url}"):
            try:
                root = self._existing(())
            except OSError as error:
                if error.errno in ABSENT:
                    return
                raise
            with root:
                names = [name for name, _ in root.entries() if name.startswith((TEMPORARY, TRASH))]
                leftovers = [name for name in names if name not in self._uncertain]
                if leftovers:
                    with self._lock:  # the process that retired them may have been killed before it did this
                        self._sync(root, ())
                for name in leftovers:
                    root.remove(name)

    def hold(self, key: str, *, exclusive: bool, create: bool = False) -> Hold:
        parts = segments(key)
        where = place(self.url, key)
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        while True:
            with failing(f"cannot lock {where}"):
                try:
                    with self._made(parts[:-1]) if create else self._existing(parts[:-1]) as folder:
                        hold = _FileHold(partial(folder.open, parts[-1], flags, 0o666))
                except OSError as error:
                    if create or error.errno not in ABSENT:
                        raise
                    raise not_found(where) from None
                try:
                    hold.lock(where, self.url, exclusive=exclusive)
                    if not stat.S_ISREG(os.fstat(hold.fd).st_mode):
                        raise not_found(where)
                    if files.is_named(os.path.join(self.path, *parts), hold.fd):
                        return hold
                except BaseException:
                    hold.close()
                    raise
                hold.close()
                if not create:
                    raise NotFoundError(f"{where} was removed at this moment", code="deleted")

    def _put(
        self, folder: Folder, parts: Parts, name: str, data: Iterable[Buffer], *, mode: Mode = "create", flush: bool
    ) -> None:
        self._refuse_lost(parts)
        where = place(self.url, "/".join((*parts, name)))
        what = f"cannot write {where}"
        with self._temporary(folder, data, what) as temporary, failing(what):
            if mode == "overwrite":
                folder.move(temporary, folder, name)
            else:
                _publish(folder, temporary, name, where)
        self._settle(folder, parts, where, flush=flush)

    def _link(self, folder: Folder, parts: Parts, source_key: str, name: str, *, flush: bool) -> None:
        self._refuse_lost(parts)
        where = place(self.url, "/".join((*parts, name)))
        what = f"cannot link {place(self.url, source_key)} to {where}"
        with self._opened(source_key) as (fd, nbytes), failing(what):
            try:
                with self._existing(segments(source_key)[:-1]) as source:
                    source.link(segments(source_key)[-1], folder, name)
            except FileExistsError:
                raise exists(where) from None
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with self._temporary(folder, files.chunks(fd, nbytes), what, clone_of=fd) as temporary:
                    _publish(folder, temporary, name, where)
        self._settle(folder, parts, where, flush=flush)

    def _listing(self, parts: Parts, prefix: str, *, deep: bool) -> Iterator[ObjectInfo]:
        with failing(f"cannot list {place(self.url, prefix)}"):
            try:
                entries = self._entries(parts)
            except OSError as error:
                if error.errno in ABSENT:
                    return
                raise
        # A folder sorts as its children do, with the "/" that follows its name.
        entries = [(f"{name}/" if nbytes is None else name, nbytes) for name, nbytes in entries if files.is_key(name)]
        for name, nbytes in sorted(entries):
            if deep and nbytes is None:
                yield from self._listing((*parts, name[:-1]), prefix + name, deep=True)
            else:
                yield ObjectInfo(prefix + name, nbytes)

    def _entries(self, parts: Parts) -> Sequence[tuple[str, int | None]]:
        while True:
            with self._existing(parts) as folder:
                entries = folder.entries()
                # A folder that is being deleted would be listed in part; it has been renamed before that.
                if not parts or _is_in_place(folder):
                    return entries

    @contextmanager
    def _opened(self, key: str) -> Generator[tuple[int, int]]:
        """Open a regular file for reading; give its descriptor and size."""
        *parents, name = segments(key)
        where = place(self.url, key)
        with failing(f"cannot open {where}"):
            try:
                with self._existing(tuple(parents)) as folder:
                    fd = folder.open(name, os.O_RDONLY)
            except OSError as error:
                if error.errno in ABSENT:
                    raise not_found(where) from None
                raise
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise NotFoundError(f"{where} is not a regular file")
            yield fd, found.st_size
        finally:
            os.close(fd)

    @contextmanager
    def _temporary(
        self, folder: Folder, data: Iterable[Buffer], what: str, clone_of: int | None = None
    ) -> Generator[str]:
        """Write a temporary file; give its name; remove it if it cannot be published."""
        name = TEMPORARY + secrets.token_hex(8)
        files.write_file(folder, name, data, what, self._ring, clone_of)
        try:
            yield name
        except BaseException:
            with suppress(OSError):
                folder.remove(name)
            raise

    def _existing(self, parts: Parts) -> Folder:
        """Open a folder that is there."""
        folder = Folder.at(str(self.path))
        for name in parts:
            with folder:
                folder = folder.child(name)
        return folder

    def _made(self, parts: Parts) -> Folder:
        """Open a folder, made where it is missing, its name durable.

        A folder that this handle meets for the first time is treated as if it were new: its maker may have been killed
        before the sync.
        """
        with self._lock:
            if () not in self._durable or not self.path.is_dir():
                if not self._create and not self.path.is_dir():
                    raise NotFoundError(f"{self.url} does not exist\n  Open the store with `create=True` to make it.")
                files.ensure_folder(str(self.path))
                self._durable.add(())
            folder = Folder.at(str(self.path))
            for depth, name in enumerate(parts):
                with folder:
                    self._name_folder(folder, parts[: depth + 1])
                    folder = folder.child(name)
            return folder

    def _name_folder(self, parent: Folder, parts: Parts) -> bool:
        """Make a folder, its name durable; return False when it was there."""
        made = parent.make(parts[-1])
        if made or parts not in self._durable:
            try:
                self._sync(parent, parts[:-1])
            except OSError:
                if made:  # so that trying again makes a new name, which a new sync covers
                    parent.unmake(parts[-1])
                raise
            self._durable.add(parts)
        return made

    def _put_aside(self, parts: Parts, trash: str, where: str) -> bool:
        """Rename a folder into the trash and make that durable; return False where there is no folder."""
        with failing(f"cannot retire {where}"), ExitStack() as stack:
            try:
                stack.enter_context(self._existing(parts))  # a folder, not a link to one
                root = stack.enter_context(self._existing(()))
                parent = stack.enter_context(self._existing(parts[:-1]))
            except OSError as error:
                if error.errno in ABSENT:
                    return False
                raise
            try:
                parent.move(parts[-1], root, trash)
            except FileNotFoundError:  # another process was first
                return False
            # Before anything is deleted: if a power cut brings the folder back, it must be whole.
            self._uncertain.add(trash)
            with failing(f"{where} is out of sight, but may be back after a crash; nothing was deleted"):
                self._sync(root, ())
                if len(parts) > 1:
                    self._sync(parent, parts[:-1])
            self._uncertain.remove(trash)
            return True

    def _settle(self, folder: Folder, parts: Parts, where: str, *, flush: bool) -> None:
        """Make the name of a new object durable, with those that wait in its folder and above it, or let it wait."""
        with self._lock:
            if not flush:
                self._waiting.add(parts)
                return
            try:
                self._sync(folder, parts)
                for depth in range(len(parts)):
                    if parts[:depth] in self._waiting:
                        with self._existing(parts[:depth]) as above:
                            self._sync(above, parts[:depth])
            except OSError as error:
                text = message(
                    f"{where} is written, but may not survive a crash: its folder cannot be synced: {error.strerror}",
                    remedy="`catalog.recheck(step)` tells whether it is there; it is not known to be durable.",
                )
                raise CommitUnknownError(text, errno=error.errno) from error

    def _sync(self, folder: Folder, parts: Parts) -> None:
        """Sync a folder, once: after a failure a second sync succeeds, and what waited for the first is lost."""
        try:
            folder.sync()
        except OSError:
            if parts in self._waiting:
                self._lost.add(parts)
            raise
        self._waiting.discard(parts)

    def _refuse_lost(self, parts: Parts) -> None:
        for depth in range(len(parts) + 1):
            if parts[:depth] in self._lost:
                where = place(self.url, "/".join(parts[:depth]))
                raise StorageError(f"{where}: an earlier sync of this folder failed, and with it what was put there")


def _publish(folder: Folder, temporary: str, name: str, where: str) -> None:
    try:
        files.publish(folder, temporary, name)
    except FileExistsError:
        raise exists(where) from None


def _is_in_place(folder: Folder) -> bool:
    return folder.fd is None or files.is_named(folder.path, folder.fd)


@final
class _LocalClaim:
    """A folder under its descriptor: what is put there goes where the folder goes, even into the trash."""

    def __init__(self, folder: Folder, where: str, put: Callable[..., None], link: Callable[..., None]) -> None:
        self._folder, self._where, self._put, self._link = folder, where, put, link

    def put(self, name: str, data: Iterable[Buffer], *, flush: bool = True) -> None:
        with self._watched(name):
            self._put(name, data, flush=flush)

    def link(self, source_key: str, name: str, *, flush: bool = True) -> None:
        with self._watched(name):
            self._link(source_key, name, flush=flush)

    def close(self) -> None:
        self._folder.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _watched(self, name: str) -> Generator[None]:
        where = place(self._where, plain_name(name))
        self._check(where)
        try:
            yield
        except StorageError as error:
            if error.errno in ABSENT:  # nothing can be made in a folder that was deleted
                self._check(where)
            raise
        self._check(where)

    def _check(self, where: str) -> None:
        with failing(f"cannot write {where}"):
            if not _is_in_place(self._folder):
                raise fenced(where)


# Locks of this process. A child made by fork closes its copies: flock belongs to the open file, so the lock of a dead
# parent would otherwise be held for as long as any child lives.
_held: set[_FileHold] = set()
_forking = threading.RLock()


@final
class _FileHold:
    """An open file, locked."""

    def __init__(self, opened: Callable[[], int]) -> None:
        _watch_forks()
        self.supported = False
        with _forking:  # no fork between opening and noting it
            self.fd = opened()
            _held.add(self)

    def lock(self, where: str, url: str, *, exclusive: bool) -> None:
        try:
            self.supported = files.lock(self.fd, exclusive=exclusive)
        except BlockingIOError:
            raise busy(where) from None
        if not self.supported:
            files.warn_once("%s: this file system has no locks; nothing keeps two writers apart but epochs", url)

    def close(self) -> None:
        with _forking:
            if self in _held:
                _held.remove(self)
                with suppress(OSError):  # nothing was written through it, so there is nothing to lose
                    os.close(self.fd)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_let_go)


def _let_go() -> None:
    for hold in _held:
        os.close(hold.fd)
    _held.clear()
    _forking.release()
