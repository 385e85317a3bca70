# SPDX-License-Identifier: Apache-2.0
"""What one operation costs: seconds, CPU seconds, memory, bytes and files; and what the machine is."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PACKAGES = (
    "milepost", "numpy", "ml-dtypes", "jax", "torch", "orbax-checkpoint", "safetensors", "tensorstore",
    "torchsnapshot", "zarr", "xxhash",
)  # fmt: skip


def measured(operation: Callable[[], Any], *, children: bool = False) -> tuple[dict[str, Any], Any]:
    """Run an operation; return its costs and its result.

    Costs: `seconds`; `cpu` of this process and its descendants; `machine_cpu`, of everybody, with the kernel's
    write-back threads; `memory`, how much the peak of resident memory lies above where it began.

    Args:
        operation: what is measured.
        children: also watch the memory of child processes, by sampling.
    """
    release_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
    before, cpu, machine = resident("VmRSS"), family_cpu(), machine_cpu()
    watch = _Watch() if children else None
    start = time.perf_counter()
    result = operation()
    seconds = time.perf_counter() - start
    grown = resident("VmHWM") - before + (watch.stop() if watch else 0)
    return {
        "seconds": seconds,
        "cpu": family_cpu() - cpu,
        "machine_cpu": machine_cpu() - machine,
        "memory": max(0, grown),
    }, result


def release_memory() -> None:
    """Give back to the system what nobody uses."""
    gc.collect()
    with suppress(AttributeError):
        _LIBC.malloc_trim(0)  # glibc alone has it


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def family_cpu() -> float:
    """Return the CPU seconds of this process and of all its descendants, those that have ended with them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) + sum(map(_ticks, descendants())) / _TICKS


def machine_cpu() -> float:
    """Return the busy seconds of all CPUs since the start of the machine."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / _TICKS


def descendants() -> Iterator[int]:
    """Yield the process ids of all live descendants."""
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                found = [int(child) for child in task.read_text().split()]
                yield from found
                waiting += found


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


class _Watch:
    """Samples the resident memory of child processes until it is stopped."""

    def __init__(self) -> None:
        self._peak = 0
        self._over = threading.Event()
        self._first = self._now()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return max(0, self._peak - self._first)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self._peak = max(self._peak, self._now())

    def _now(self) -> int:
        pages = 0
        for pid in descendants():
            with suppress(OSError, IndexError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Held:
    """What a folder holds; a file with several names counts once."""

    inodes: dict[int, int]

    @classmethod
    def of(cls, folder: Path) -> Held:
        """Look at every file below a folder."""
        inodes: dict[int, int] = {}
        for where, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(where, name))
                    inodes[status.st_ino] = status.st_size
        return cls(inodes)

    def beyond(self, before: Held) -> dict[str, int]:
        """Return how many bytes and files are there that were not."""
        new = {inode: size for inode, size in self.inodes.items() if before.inodes.get(inode) != size}
        return {"bytes": sum(new.values()), "files": len(new)}


def sync(folder: Path) -> None:
    """Make everything on the folder's file system durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        if _LIBC.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(fd)


def drop_page_cache(folder: Path) -> bool:
    """Forget what is cached of all files; return whether that was allowed."""
    sync(folder)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def back_memory(nbytes: int) -> None:
    """Touch free memory and give it back.

    A virtual machine returns free pages to its host; the first touch of such a page then costs more than anything that
    is measured here, and whoever runs first pays for it.
    """
    if not nbytes:
        return
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, nbytes, mmap.PAGESIZE):
        memory[offset] = 1
    memory.close()


def machine() -> dict[str, Any]:
    """Return what this machine is, and the versions of all packages that are compared."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "cpus": len(os.sched_getaffinity(0)), "processor": _processor(), "memory": memory,
        "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(),
        "versions": versions,
    }  # fmt: skip


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
