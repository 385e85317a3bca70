# SPDX-License-Identifier: Apache-2.0
"""Record what a program asks of the file system, in order; make any of it fail."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final


@dataclass(frozen=True, slots=True)
class Call:
    """One system call on a file or folder.

    Attributes:
        name: create (an open that made a file), open (any other), write, truncate, fsync, chmod, link, rename, unlink,
            mkdir or rmdir.
        path: what it was done to, relative to the recorder's folder, which is `.`; a folder's path ends with `/`.
        target: the new name of a link or rename.
        inode: the file's or folder's number.
        offset: where a write began, or the size that a file was cut to.
        data: what it wrote.
    """

    name: str
    path: str
    target: str = ""
    inode: int = 0
    offset: int = 0
    data: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.name} {self.path} -> {self.target}" if self.target else f"{self.name} {self.path}"


@final
class Recorder:
    """Stands between this process's `os` functions and the system while it is entered as a context.

    What lies outside its folder, and what is not called through `os`, is neither recorded nor disturbed.

    Args:
        folder: what to watch.
        before: called before each call is made (it has no inode yet if it makes a file); what it raises is what the
            program gets instead. What it asks of the system itself is not recorded.
        largest_write: at most so many bytes are taken by one write.

    Attributes:
        calls: what was done, in order; a call that failed is not in it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        before: Callable[[Call], None] | None = None,
        largest_write: int | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self._folder = os.path.realpath(folder)
        self._before = before
        self._largest = largest_write
        self._paths: dict[int, str] = {}
        self._real: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    def __enter__(self) -> Recorder:
        ours: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "close": self._close,
            "write": self._write,
            "pwrite": self._pwrite,
            "ftruncate": self._ftruncate,
            "fsync": self._fsync,
            "fchmod": self._fchmod,
            "link": self._link,
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
            "mkdir": self._mkdir,
            "rmdir": self._rmdir,
        }
        for name, function in ours.items():
            self._real[name] = getattr(os, name)
            setattr(os, name, function)
        return self

    def __exit__(self, *error: object) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)

    def story(self, *leave_out: str) -> list[str]:
        """Return the calls as text, without those of some names; the random part of temporary names is cut off."""
        return [_without_random(str(call)) for call in self.calls if call.name not in ("open", *leave_out)]

    def _did(self, call: Call, function: Callable[[], Any], made: str | None = None) -> Any:
        if call.path.startswith("..") or self._thread.__dict__.get("in_before"):
            return function()
        if self._before is not None:
            self._thread.in_before = True
            try:
                self._before(call)
            finally:
                self._thread.in_before = False
        with self._lock:
            result = function()
            if made is not None:
                call = Call(call.name, call.path, call.target, os.stat(made).st_ino)
            self.calls.append(call)
        return result

    def _full(self, path: Any, dir_fd: int | None) -> str:
        if isinstance(path, int):
            return self._paths.get(path, "/")
        folder = self._paths.get(dir_fd, "/") if dir_fd is not None else os.getcwd()
        return os.path.normpath(os.path.join(folder, os.fsdecode(path)))

    def _call(self, name: str, full: str, *, target: str = "", folder: bool = False) -> Call:
        inode = os.lstat(full).st_ino if os.path.lexists(full) else 0
        return Call(name, self._relative(full, folder), target and self._relative(target, folder), inode)

    def _relative(self, full: str, folder: bool) -> str:
        path = os.path.relpath(full, self._folder)
        return f"{path}/" if folder and path != "." else path

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        full = self._full(path, dir_fd)
        new = bool(flags & os.O_CREAT) and not os.path.lexists(full)
        call = self._call("create" if new else "open", full, folder=os.path.isdir(full))
        fd = self._did(call, lambda: self._real["open"](path, flags, mode, dir_fd=dir_fd), full if new else None)
        self._paths[fd] = full
        return fd

    def _close(self, fd: int) -> None:
        self._paths.pop(fd, None)
        self._real["close"](fd)

    def _write(self, fd: int, data: Any) -> int:
        return self._written(fd, data, lambda view: self._real["write"](fd, view), None)

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._written(fd, data, lambda view: self._real["pwrite"](fd, view, offset), offset)

    def _written(self, fd: int, data: Any, function: Callable[[memoryview], int], offset: int | None) -> int:
        if fd not in self._paths:
            return function(memoryview(data))
        view = memoryview(data)[: self._largest]
        start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
        call = Call("write", self._relative(self._paths[fd], False), "", os.fstat(fd).st_ino, start, bytes(view))
        return self._did(call, lambda: function(view))

    def _ftruncate(self, fd: int, nbytes: int) -> None:
        call = Call("truncate", self._relative(self._full(fd, None), False), "", os.fstat(fd).st_ino, nbytes)
        self._did(call, lambda: self._real["ftruncate"](fd, nbytes))

    def _fsync(self, fd: int) -> None:
        full = self._full(fd, None)
        call = Call("fsync", self._relative(full, os.path.isdir(full)), inode=os.fstat(fd).st_ino)
        self._did(call, lambda: self._real["fsync"](fd))

    def _fchmod(self, fd: int, mode: int) -> None:
        self._did(self._call("chmod", self._full(fd, None)), lambda: self._real["fchmod"](fd, mode))

    def _link(
        self, src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, **rest: Any
    ) -> None:
        call = self._call("link", self._full(src, src_dir_fd), target=self._full(dst, dst_dir_fd))
        self._did(call, lambda: self._real["link"](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **rest))

    def _rename(self, src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        full = self._full(src, src_dir_fd)
        call = self._call("rename", full, target=self._full(dst, dst_dir_fd), folder=os.path.isdir(full))
        self._did(call, lambda: self._real["replace"](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        call = self._call("unlink", self._full(path, dir_fd))
        self._did(call, lambda: self._real["unlink"](path, dir_fd=dir_fd))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        full = self._full(path, dir_fd)
        call = Call("mkdir", self._relative(full, True))
        self._did(call, lambda: self._real["mkdir"](path, mode, dir_fd=dir_fd), full)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        call = self._call("rmdir", self._full(path, dir_fd), folder=True)
        self._did(call, lambda: self._real["rmdir"](path, dir_fd=dir_fd))


def _without_random(text: str) -> str:
    return re.sub(r"\.(tmp|trash)-[0-9a-f]+", r".\1", text)
