# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint lies at a path: one that was saved there alone, a step of a manager, or one item of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import milepost as mp
from milepost.compat.orbax.record import ALONE, DEFAULT, Stored
from milepost.interop.orbax import OrbaxStep, beside

_OURS = re.compile(r"milepost\.json|writer\.lock|writers|0(\.g\d+)?|\.trash-.*")
_MISSING = (mp.NotFoundError, mp.FormatError, NotADirectoryError)


def absolute(path: Any) -> Path:
    """Return a path that a later `chdir` does not move; a kind of path of its own (etils) stays one.

    Raises:
        NotImplementedError: it is the address of an object store.
    """
    if "://" in os.fspath(path):
        raise NotImplementedError(f"{os.fspath(path)}: checkpoints go to local directories only, so far")
    found: Any = path if isinstance(path, PurePath) else Path(path)
    return found if found.is_absolute() else type(found)(os.path.abspath(found))


def for_handlers(path: Path) -> Any:
    """Return a path as handlers of users expect it: of etils, when the program has loaded it."""
    etils: Any = sys.modules.get("etils.epath")
    return path if etils is None else etils.Path(path)


def find(path: Any) -> Stored:
    """Return the checkpoint at a path, or the item of one; also of those that Orbax itself wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its save was never finished, or the path is that of many steps.
    """
    where = absolute(path)
    found = _alone(where)
    if found is None:
        found = _step(where.parent, where.name)
    if found is None:
        found = _item(where)
    if found is None:
        found = _of_orbax(where)
    if found is not None:
        return found
    raise FileNotFoundError(f"Checkpoint at {where} not found.")


def catalog_at(directory: Path) -> mp.Catalog | None:
    """Return the catalog of a directory, which in one of Orbax lies in a folder of its own; None without a root."""
    return _catalog(beside.home(directory))


def _catalog(path: Path) -> mp.Catalog | None:
    try:
        return mp.open(path)
    except _MISSING as error:
        if isinstance(error, mp.FormatError) and error.code == "newer":
            raise
        return None


def step_of(root: Path, step: int, accepts: Callable[[str, int], bool] | None = None) -> Stored | None:
    """Return a step of a manager's directory, ours or one that Orbax wrote; None when it is not there."""
    catalog = catalog_at(root)
    checkpoint = None if catalog is None else catalog.get(step)
    if checkpoint is not None:
        return Stored(checkpoint, beside.home(root) / checkpoint.info.slot.partition(".g")[0])
    theirs = beside.theirs(root, accepts).get(step)
    return None if theirs is None else of_orbax(theirs)


def of_orbax(step: OrbaxStep) -> Stored:
    """Return a checkpoint that Orbax wrote."""
    return Stored(step.checkpoint, step.path)


def _of_orbax(where: Path) -> Stored | None:
    step = beside.at(where)
    if step is not None:
        return of_orbax(step)
    whole = beside.at(where.parent)
    if whole is not None and where.name in whole.items and where.is_dir():
        return Stored(whole.checkpoint, where.parent, only=where.name)
    if beside.is_unfinished(where):
        raise ValueError(f"Found incomplete checkpoint at {where}.")
    if theirs := list(beside.theirs(where)):
        raise _of_many(where, theirs)
    return None


def _alone(where: Path) -> Stored | None:
    catalog = _catalog(where)
    if catalog is None:
        return None
    steps = list(catalog)
    if catalog.metadata == ALONE or (where / "manifest.json").exists():
        if not steps:
            raise ValueError(f"Found incomplete checkpoint at {where}.")
        checkpoint = catalog.latest()
        assert checkpoint is not None
        return Stored(checkpoint, where)
    if len(steps) == 1 and 0 in steps:
        return Stored(catalog[0], where)  # of `milepost.save`
    raise _of_many(where, steps)


def _of_many(where: Path, steps: list[int]) -> ValueError:
    return ValueError(
        f"{where} holds the steps of a CheckpointManager, {', '.join(map(str, steps[:5])) or 'none yet'}\n"
        "  Use a CheckpointManager, or give the path of one step."
    )


def _step(root: Path, name: str) -> Stored | None:
    """Return a step by the name of its folder; one that was saved again stands in a folder of its own."""
    catalog = catalog_at(root)
    if catalog is None or catalog.metadata == ALONE:
        return None
    for step in catalog:
        slot = catalog[step].info.slot
        if slot == name or slot.partition(".g")[0] == name:
            return Stored(catalog[step], beside.home(root) / name)
    return None


def _item(where: Path) -> Stored | None:
    for whole in (_alone_quietly(where.parent), _step(where.parent.parent, where.parent.name)):
        if whole is not None and where.name in whole.names:
            return Stored(whole.checkpoint, where.parent, only=where.name)
    return None


def _alone_quietly(where: Path) -> Stored | None:
    try:
        return _alone(where)
    except ValueError:
        return None


def is_alone(folder: Path) -> bool:
    """Return whether a folder holds one checkpoint of a checkpointer and nothing else.

    Raises:
        ValueError: it holds the steps of a manager.
    """
    catalog = _catalog(folder)
    if catalog is None or not (folder / "milepost.json").exists():
        return False
    if catalog.metadata != ALONE:
        raise ValueError(f"{folder} holds the steps of a CheckpointManager\n  Give the checkpoint a path of its own.")
    return all(_OURS.fullmatch(entry.name) for entry in folder.iterdir())


def only_item(stored: Stored) -> str | None:
    """Return the name of the item that a path named, or of the only one; None where there are several."""
    if stored.only is not None:
        return stored.only
    names = stored.names
    return DEFAULT if DEFAULT in names else names[0] if len(names) == 1 else None
