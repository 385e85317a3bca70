# SPDX-License-Identifier: Apache-2.0
"""Folders to begin in: what tutorials call as `ocp.test_utils`."""

from __future__ import annotations

import shutil
from typing import Any

from milepost.compat.orbax import places


def erase_and_create_empty(directory: Any) -> Any:
    """Return a folder that is there and empty, whatever it held before."""
    folder = places.absolute(directory)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return places.for_handlers(folder)


def empty_directory(directory: Any) -> None:
    """Remove everything in a folder."""
    for entry in places.absolute(directory).iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
