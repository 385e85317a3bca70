# SPDX-License-Identifier: Apache-2.0
"""Going on in a directory that Orbax wrote: its steps stay as they are, ours lie in a folder beside them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from milepost.errors import NotFoundError, StorageError
from milepost.interop.orbax import folders
from milepost.interop.orbax.directory import OrbaxDirectory, OrbaxStep

FOLDER = "milepost"
"""The folder that holds our root in a directory of Orbax: no name that Orbax takes for a step of its own."""

ROOT = "milepost.json"
_GONE = ".milepost-deleted-"


def home(directory: Path) -> Path:
    """Return where our root of a directory is, or would be: the directory itself, unless it was Orbax's first."""
    if (directory / ROOT).exists():
        return directory
    return directory / FOLDER if (directory / FOLDER / ROOT).exists() or _is_theirs(directory) else directory


def _is_theirs(directory: Path) -> bool:
    """Return whether Orbax has begun to write steps there."""
    if not directory.is_dir():
        return False
    if (directory / "metadata" / "_ROOT_METADATA").exists():
        return True
    for folder in directory.iterdir():
        stem = folder.name.partition(folders.TEMPORARY)[0]
        if folders.step_of(stem) is None or not folder.is_dir():
            continue
        if stem != folder.name or (folder / folders.METADATA).exists() or folders.is_checkpoint(folder):
            return True
    return False


def theirs(directory: Path, accepts: Callable[[str, int], bool] | None = None) -> dict[int, OrbaxStep]:
    """Return the finished steps that Orbax wrote in a directory, by step; none where there is no directory.

    Args:
        directory: of a manager.
        accepts: says of the name of a folder, and its step, whether it is meant; None: all are.
    """
    found: dict[int, OrbaxStep] = {}
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        said = folders.step_of(entry.name)
        if said is None or (accepts is not None and not accepts(entry.name, said[1])):
            continue
        if folders.is_checkpoint(entry):
            found.setdefault(said[1], OrbaxStep(said[1], entry))
    return dict(sorted(found.items()))


def root_metadata(directory: Path) -> dict[str, Any]:
    """Return the custom metadata that Orbax keeps for a whole directory, empty when there is none."""
    told = OrbaxDirectory(directory, {}).metadata
    return cast("dict[str, Any]", told) if isinstance(told, dict) else {"custom_metadata": told}


def at(path: Path) -> OrbaxStep | None:
    """Return the finished checkpoint that Orbax wrote at a path, None when it is none."""
    if not folders.is_checkpoint(path):
        return None
    said = folders.step_of(path.name)
    return OrbaxStep(0 if said is None else said[1], path)


def is_unfinished(path: Path) -> bool:
    """Return whether a save of Orbax to a path was begun and never finished."""
    return path.is_dir() and (path / folders.METADATA).exists() and not folders.is_checkpoint(path)


def delete(step: OrbaxStep, aside: Path | None = None) -> None:
    """Delete a step that Orbax wrote, or put it aside under its own name. No reader sees a part of it.

    Raises:
        NotFoundError: it is not there any more.
        StorageError: the system refuses.
    """
    directory = step.path.parent
    if not step.path.exists():
        raise NotFoundError(f"{step.path} is not there any more")
    target = directory / f"{_GONE}{step.path.name}-{secrets.token_hex(4)}" if aside is None else aside / step.path.name
    try:
        if aside is not None:
            aside.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
        step.path.rename(target)
        for left in directory.glob(f"{_GONE}*"):  # this one, and those of deletions that were killed
            shutil.rmtree(left)
    except FileNotFoundError:
        pass  # another process deletes the same
    except OSError as error:
        raise StorageError(f"{step.path} could not be deleted: {error.strerror}", errno=error.errno) from error
