# SPDX-License-Identifier: Apache-2.0
"""Paths, and folders that are still to be made."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

PathLike: TypeAlias = str | os.PathLike[str]


class PathAwaitingCreation(Protocol):
    """A folder that may not be there yet."""

    def __truediv__(self, other: PathLike) -> PathAwaitingCreation: ...

    @property
    def path(self) -> Path:
        """Where it will be."""
        ...

    async def await_creation(self) -> Path:
        """Return the folder when it is there."""
        ...


@final
class Folder:
    """A folder that is made when it is first awaited."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, other: PathLike) -> Folder:
        return Folder(self.path / other)

    async def await_creation(self) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        return for_handlers(self.path)


def for_handlers(path: Path) -> Any:
    """Return a path as handlers of users expect it: of etils, when the program has loaded that."""
    etils: Any = sys.modules.get("etils.epath")
    return path if etils is None else etils.Path(path)
