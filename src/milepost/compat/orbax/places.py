# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint lies at a path: one that was saved there alone, a step of a manager, or one item of it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePath
from typing import Any

import milepost as mp
from milepost.compat.orbax.record import ALONE, DEFAULT, Stored

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
    """Return the checkpoint at a path, or the item of one.

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
    if found is not None:
        return found
    refuse_orbax(where)
    raise FileNotFoundError(f"Checkpoint at {where} not found.")


def catalog_at(path: Path) -> mp.Catalog | None:
    """Return the catalog of a root, None where there is no root."""
    try:
        return mp.open(path)
    except _MISSING as error:
        if isinstance(error, mp.FormatError) and error.code == "newer":
            raise
        return None


def step_of(root: Path, step: int) -> Stored | None:
    """Return a step of a manager's directory, None when it is not there."""
    catalog = catalog_at(root)
    checkpoint = None if catalog is None else catalog.get(step)
    return None if checkpoint is None else Stored(checkpoint, root / checkpoint.info.slot.partition(".g")[0])


def _alone(where: Path) -> Stored | None:
    catalog = catalog_at(where)
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
    raise ValueError(
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
            return Stored(catalog[step], root / name)
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


def refuse_orbax(directory: Path) -> None:
    """Refuse a folder with checkpoints that Orbax itself wrote, rather than call it empty.

    Raises:
        FormatError: it has such.
    """
    if not directory.is_dir():
        return
    folders = [directory, *(child for child in directory.iterdir() if child.is_dir())]
    theirs = [folder for folder in folders if (folder / "_CHECKPOINT_METADATA").exists()]
    if theirs:
        raise mp.FormatError(
            f"{theirs[0]} was written by Orbax, which this door does not read\n"
            "  Restore it with Orbax and save it here under another directory."
        )


def is_alone(folder: Path) -> bool:
    """Return whether a folder holds one checkpoint of a checkpointer and nothing else.

    Raises:
        ValueError: it holds the steps of a manager.
    """
    catalog = catalog_at(folder)
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
