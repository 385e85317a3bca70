# SPDX-License-Identifier: Apache-2.0
"""Many tiny steps: what a library's manager costs, with retention, and how long it takes to open what it left."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import drop_page_cache, measured

MANAGERS = {
    "floor-protocol": "managers:Protocol",
    "milepost": "managers:Milepost",
    "milepost-keeping-all": "managers:MilepostKeepingAll",
    "orbax-v0": "orbax_managers:OrbaxV0",
    "orbax-v1": "orbax_managers:OrbaxV1",
}
KEPT = 3
_EDGE = 100


class Manager:
    """One library's manager in one folder, keeping the last three steps."""

    def open(self, folder: Path) -> None:
        """Open the folder, and find out which step is the latest."""
        raise NotImplementedError

    def latest(self) -> int:
        """Return the latest step."""
        raise NotImplementedError

    def save(self, step: int) -> None:
        """Save 1 KiB, durable when this returns as far as the library goes."""
        raise NotImplementedError

    def close(self) -> None:
        """End what `open` began."""

    def fill(self, folder: Path, steps: int) -> None:
        """Put as many steps into a new folder, all of which stay."""
        raise NotImplementedError


def manager_class(name: str) -> type[Manager]:
    """Import a manager; ImportError when its library is not installed."""
    module, _, attribute = MANAGERS[name].partition(":")
    return getattr(import_module(f"benchmarks.{module}"), attribute)


class Protocol(Manager):
    """The bare files and syncs of a durable commit: data, index, record, each synced before the next is named.

    They are those of milepost: a new folder, two files, their names, then the record whose name makes the step exist;
    and the oldest step renamed, durably, before it is deleted.
    """

    def open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._data = bytes(1024)

    def latest(self) -> int:
        return max(int(entry.name) for entry in os.scandir(self._folder) if entry.name.isdigit())

    def save(self, step: int) -> None:
        slot = self._folder / str(step)
        slot.mkdir()
        _sync(self._folder)
        for name in ("data", "index"):
            self._write(slot / name)
        _sync(slot)
        self._write(slot / "record")
        _sync(slot)
        old = self._folder / str(step - KEPT)
        if old.exists():
            aside = old.with_name(f".old-{old.name}")
            old.rename(aside)
            _sync(self._folder)
            shutil.rmtree(aside)

    def _write(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(fd, self._data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def fill(self, folder: Path, steps: int) -> None:
        for step in range(steps):
            (folder / str(step)).mkdir(parents=True)


class Milepost(Manager):
    """`Checkpointer` with policies."""

    keep = f"last {KEPT}"

    def __init__(self) -> None:
        import milepost

        self._mp: Any = milepost
        self._saver: Any = None
        self._state = {"x": np.ones(256, np.float32)}

    def open(self, folder: Path) -> None:
        self._saver = self._mp.Checkpointer(folder, save="first, every 1 steps", keep=self.keep)

    def latest(self) -> int:
        return self._saver.catalog.latest().step

    def save(self, step: int) -> None:
        self._state["x"] += 1
        assert self._saver.due(step)
        self._saver.save(step, self._state).result()

    def close(self) -> None:
        self._saver.close()

    def fill(self, folder: Path, steps: int) -> None:
        with self._mp.Checkpointer(folder, save="first", keep="all") as saver:
            for step in range(steps):
                self._state["x"] += 1
                saver.save(step, self._state)


class MilepostKeepingAll(Milepost):
    """The same with a policy that is asked at each save and keeps every step: does the cost grow with the root?"""

    keep = f"last {KEPT}, every 1 steps"


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ManagerCell:
    """One manager; each public method is one operation that the suite asks for."""

    def __init__(self, name: str, *, quick: bool) -> None:
        self._class = manager_class(name)
        self._quick = quick
        self._folder = Path()

    def begin(self, folder: str) -> dict[str, Any]:
        """Begin in an empty folder; everything has been done once elsewhere."""
        self._folder = Path(folder)
        elsewhere = self._folder.with_name(self._folder.name + "-warm")
        warm = self._class()
        warm.open(elsewhere)
        for step in range(KEPT + 2):
            warm.save(step)
        warm.close()
        shutil.rmtree(elsewhere)
        return {}

    def end(self) -> dict[str, Any]:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)
        return {}

    def steps(self, count: int, seconds: float) -> dict[str, Any]:
        """Save many tiny steps, up to a number or a time; the time of a step early on and at the end."""
        manager = self._class()
        manager.open(self._folder)
        times: list[float] = []

        def operation() -> None:
            end = time.perf_counter() + seconds
            for step in range(count):
                start = time.perf_counter()
                manager.save(step)
                times.append(time.perf_counter() - start)
                if start > end:
                    break
            manager.close()

        costs, _ = measured(operation)
        edge = min(_EDGE, max(1, len(times) // 3))
        early = times[10 : 10 + edge] or times
        return costs | {
            "steps": len(times), "step": statistics.median(times), "early": statistics.median(early),
            "late": statistics.median(times[-edge:]), "slowest": max(times), "at_once": costs["seconds"] / len(times),
        }  # fmt: skip

    def fill(self, count: int) -> dict[str, Any]:
        """Make the folder that is opened."""
        self._class().fill(self._folder, count)
        return {}

    def opening(self, count: int) -> dict[str, Any]:
        """Open a folder that holds many steps, and ask for the latest: with a cold cache, then with a warm one."""
        cold = not self._quick and drop_page_cache(self._folder)
        first = self._opened(count)
        return {"cold": first if cold else None, "warm": self._opened(count), "steps": count}

    def _opened(self, count: int) -> float:
        start = time.perf_counter()
        manager = self._class()
        manager.open(self._folder)
        latest = manager.latest()
        seconds = time.perf_counter() - start
        assert latest == count - 1, latest
        manager.close()
        return seconds
