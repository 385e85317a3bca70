# SPDX-License-Identifier: Apache-2.0
"""File systems in a file, whose power can be cut.

A cut is the ioctl with which the kernel's own file system tests (xfstests, `godown`) stop a mounted file system at
once: what was not synced is gone after the next mount, names that the journal had not written too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Literal, TypeAlias, final

FileSystem: TypeAlias = Literal["ext4", "xfs"]

_MIB = {"ext4": 96, "xfs": 300}  # XFS makes none that is smaller
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard"], "xfs": ["mkfs.xfs", "-q", "-f", "-K"]}
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, linux/fs.h: _IOR('X', 125, __u32)
_KEEP_LOG, _DROP_LOG = 1, 2
_TRIES = 20


def why_not(kind: FileSystem) -> str:
    """Return why there can be no such disk here; empty when there can."""
    if sys.platform != "linux" or os.geteuid():
        return "mounting a file system in a file needs Linux and root"
    for tool in (_MAKE[kind][0], "mount", "umount"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    return "" if os.path.exists("/dev/loop-control") else "there are no loop devices"


@final
class Disk:
    """A file system of its own, mounted for the time of a `with`.

    Args:
        kind: of file system.
        folder: where its file and its mount point are made; on a tmpfs a cut takes a tenth of a second.
        options: for mount.
        mib: its size; the least that the file system can do with when None.

    Attributes:
        path: where it is mounted.
    """

    def __init__(
        self, kind: FileSystem, folder: str | os.PathLike[str], *, options: str = "", mib: int | None = None
    ) -> None:
        self.kind: FileSystem = kind
        self._image = Path(folder) / f"{kind}.image"
        self.path = Path(folder) / kind
        self._options = ",".join(filter(None, ["loop", options]))
        self._mib = mib or _MIB[kind]

    def __enter__(self) -> Disk:
        self.path.mkdir(parents=True)
        with open(self._image, "wb") as file:
            file.truncate(self._mib << 20)
        _run(*_MAKE[self.kind], self._image)
        self._mount()
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()
        self._image.unlink()
        self.path.rmdir()

    def sync(self) -> None:
        """Make all that it holds durable."""
        _run("sync", "-f", self.path)

    def cut(self, *, keep_log: bool = False) -> None:
        """Cut the power, and start again.

        Args:
            keep_log: what the journal has in memory is written first. Then names may be there whose bytes are not.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _KEEP_LOG if keep_log else _DROP_LOG))
        finally:
            os.close(fd)
        self._unmount()
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-t", self.kind, "-o", self._options, self._image, self.path)

    def _unmount(self) -> None:
        for _ in range(_TRIES):  # a process that was killed a moment ago may still be on its way out
            if not subprocess.run(["umount", self.path], check=False, stderr=subprocess.DEVNULL).returncode:  # noqa: S603, S607
                return
        _run("umount", self.path)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")
