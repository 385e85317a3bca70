# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint lies at a path: one that was saved there alone, or a step of a Checkpointer."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

import milepost as mp
from milepost.compat.orbax_v1.context import Context
from milepost.compat.orbax_v1.errors import InvalidLayoutError
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.interop.orbax import beside

ALONE = {"orbax": "checkpoint"}
"""The metadata of a root that holds one checkpoint, saved by the free functions."""

_OURS = re.compile(r"milepost\.json|writer\.lock|writers|\d+(\.g\d+)?|\..*")
_MISSING = (mp.NotFoundError, mp.FormatError, NotADirectoryError)


def opened(path: PathLike) -> mp.Checkpoint:
    """Return the checkpoint at a path; also one that Orbax itself wrote.

    Raises:
        InvalidLayoutError: there is none.
    """
    where = os.fspath(path)
    try:
        catalog = mp.open(where)
        if catalog.metadata == ALONE or _is_slot(catalog, where):
            latest = catalog.latest()
            if latest is not None:
                return latest
        elif len(catalog):
            raise _of_many(where, list(catalog))
    except _MISSING as error:
        step = _replaced(where)
        if step is not None:
            return step
        if isinstance(error, mp.FormatError) and error.code == "newer":
            raise
        theirs = beside.at(Path(where))
        if theirs is not None:
            return theirs.checkpoint
        if steps := list(beside.theirs(Path(where))):
            raise _of_many(where, steps) from error
        if not beside.is_unfinished(Path(where)):
            raise InvalidLayoutError(f"there is no checkpoint at {where}\n  {error}") from error
    raise InvalidLayoutError(f"there is no checkpoint at {where}: its save was never finished")


def _of_many(where: str, steps: list[int]) -> InvalidLayoutError:
    return InvalidLayoutError(
        f"{where} holds steps ({', '.join(map(str, steps[:5]))}, ...), not one checkpoint\n"
        "  Use `training.Checkpointer`, or give the path of one step."
    )


def _is_slot(catalog: mp.Catalog, where: str) -> bool:
    """Return whether a path is a step's own folder."""
    return (Path(where) / "manifest.json").exists() and len(catalog) == 1


def _replaced(where: str) -> mp.Checkpoint | None:
    """Return the step that stood at a path before it was saved again, under a name of its own."""
    try:
        catalog = mp.open(beside.home(Path(where).parent))
    except _MISSING:
        return None
    name = Path(where).name
    for step in catalog:
        checkpoint = catalog[step]
        if checkpoint.info.slot.partition(".g")[0] == name:
            return checkpoint
    return None


def exists(path: PathLike) -> bool:
    """Return whether anything lies at a path; what an interrupted save has left there is nothing."""
    try:
        return bool(len(mp.open(os.fspath(path))))
    except _MISSING:
        return Path(path).exists() and not is_ours(Path(path))


def is_ours(path: Path) -> bool:
    """Return whether a folder holds what a save without an end, or a deletion, has left; nothing else."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return "milepost.json" in names and all(map(_OURS.fullmatch, names))


def saver_at(path: PathLike, context: Context, **options: Any) -> mp.Checkpointer:
    """Return what saves one checkpoint at a path.

    Raises:
        ValueError: the path is a name for a step of a Checkpointer.
    """
    where = Path(path)
    if _names_a_step(where):
        raise ValueError(
            f"{where.parent} belongs to a Checkpointer, which alone adds steps to it\n"
            "  Save with `training.Checkpointer`, or at a path of its own."
        )
    return mp.Checkpointer(where, save="every step", keep="all", metadata=ALONE, limits=limits(context), **options)


def _names_a_step(where: Path) -> bool:
    try:
        catalog = mp.open(beside.home(where.parent))
    except _MISSING:
        return False
    return catalog.metadata != ALONE and catalog.step_format.parse(where.name) is not None


def root_metadata(custom: Any) -> dict[str, Any] | None:
    """Return the native metadata of a Checkpointer's root."""
    return cast("Any", custom) if custom is None or isinstance(custom, dict) else {"custom_metadata": custom}


def custom_root_metadata(metadata: dict[str, Any]) -> Any:
    """Return the user's metadata of a Checkpointer's root."""
    custom: Any = metadata.get("custom_metadata")
    wrapped = len(metadata) == 1 and custom is not None and not isinstance(custom, dict)
    return cast("Any", custom) if wrapped else metadata


def limits(context: Context) -> mp.Limits:
    """Return the native limits for a context."""
    memory = context.memory
    budgets = [each for each in (memory.transfer_concurrent_bytes, memory.write_concurrent_bytes) if each is not None]
    return mp.Limits(memory_bytes=min(budgets, default=None), timeout_s=context.asynchronous.timeout_secs)


def removed(path: Path) -> None:
    """Remove a folder that a deletion has emptied of checkpoints."""
    if is_ours(path):
        shutil.rmtree(path)
