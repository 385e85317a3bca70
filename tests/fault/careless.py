# SPDX-License-Identifier: Apache-2.0
"""Subjects that make the mistakes which the harnesses must find."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

from milepost.testing.faults.subject import TORN, Journal, Script, Things

BYTES = 5_000


class Careless:
    """Saves each step as one file; `mistake` says what it leaves out."""

    mistake: ClassVar[str] = ""
    fresh: ClassVar[Things] = {"9": "9"}

    def __init__(self) -> None:
        self.scripts: Mapping[str, Script] = {"save": Script(self.prepare, self.run)}

    def prepare(self, root: Path) -> None:
        root.mkdir()
        self.save(root, 1)

    def run(self, root: Path, journal: Journal) -> None:
        for step in (2, 3):
            with journal.doing({str(step): str(step)}):
                self.save(root, step)

    def save(self, root: Path, step: int) -> None:
        name = root / f"{step}.bin"
        temporary = name if self.mistake == "in place" else root / f".new-{step}"
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            data = memoryview(bytes([step]) * BYTES)
            while data:
                written = os.write(fd, data)
                data = data[len(data) if self.mistake == "short writes" else written :]
            self.sync(fd, "file")
        finally:
            os.close(fd)
        if temporary != name:
            os.rename(temporary, name)
        folder = os.open(root, os.O_RDONLY)
        try:
            self.sync(folder, "folder")
        finally:
            os.close(folder)

    def sync(self, fd: int, what: str) -> None:
        if self.mistake == f"no {what} sync":
            return
        try:
            os.fsync(fd)
        except OSError:
            if self.mistake != "sync again":
                raise
            os.fsync(fd)

    def read(self, root: Path) -> Things:
        found: dict[str, str] = {}
        for path in root.glob("*.bin"):
            step = int(path.stem)
            whole = path.read_bytes() == bytes([step]) * BYTES
            found[path.stem] = path.stem if whole else f"{TORN}: {path.stat().st_size} bytes"
        return found

    def again(self, root: Path) -> None:
        self.save(root, 9)

    def strays(self, root: Path) -> Collection[str]:
        return []

    def code_of(self, error: BaseException) -> str | None:
        return "unknown" if isinstance(error, OSError) else None


class Careful(Careless):
    """Makes none of them."""


class InPlace(Careless):
    mistake: ClassVar[str] = "in place"


class NoFileSync(Careless):
    mistake: ClassVar[str] = "no file sync"


class NoFolderSync(Careless):
    mistake: ClassVar[str] = "no folder sync"


class ShortWrites(Careless):
    mistake: ClassVar[str] = "short writes"


class SyncAgain(Careless):
    mistake: ClassVar[str] = "sync again"
