# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in several calls: each adds leaves, `finalize` makes it one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import milepost as mp
from milepost.compat.orbax_v1 import free, items, places
from milepost.compat.orbax_v1.context import get_context
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.compat.orbax_v1.plain import Path as Names
from milepost.compat.orbax_v1.plain import plain
from milepost.compat.orbax_v1.response import AsyncResponse
from milepost.compat.orbax_v1.tree import merge

_SUFFIX = ".partial_save"


class PartialSaveReplacementError(ValueError):
    """A leaf was saved by an earlier call already."""


def save(path: PathLike, state: Any, *, custom_metadata: Any = None) -> None:
    """Add leaves to the checkpoint that `finalize` will make at a path.

    Raises:
        FileExistsError: it was made already.
        PartialSaveReplacementError: an earlier call saved one of the leaves.
    """
    save_async(path, state, custom_metadata=custom_metadata).result()


def save_async(path: PathLike, state: Any, *, custom_metadata: Any = None) -> AsyncResponse[None]:
    """Add leaves in the background. Arguments as in `save`."""
    where, parts = _places(path)
    if places.exists(where):
        raise FileExistsError(f"{where} was finalized already")
    context = get_context()
    tree, record = items.to_save({items.STATE: state}, context)
    before = _saved(parts)
    new = _leaf_paths(tree)
    again = sorted("/".join(names) for checkpoint in before for names in _leaf_paths(checkpoint.tree) & new)
    if again:
        raise PartialSaveReplacementError(f"saved by an earlier call already: {', '.join(again[:8])}")
    saver = mp.Checkpointer(parts, save="every step", keep="all", limits=places.limits(context))
    metadata = items.to_metadata(custom_metadata, record)
    return free.begun(saver, len(before), tree, metadata, f"the partial save at {where}", lambda: None)


def finalize(path: PathLike) -> None:
    """Make one checkpoint of all that was saved for a path.

    Raises:
        FileExistsError: it was made already.
        FileNotFoundError: nothing was saved.
    """
    where, parts = _places(path)
    if places.exists(where):
        raise FileExistsError(f"{where} was finalized already")
    saved = _saved(parts)
    if not saved:
        raise FileNotFoundError(f"nothing was saved for {where}: there is no {parts}")
    context = get_context()
    trees = [items.load_items(checkpoint, None, context) for checkpoint in saved]
    custom: dict[str, Any] = {}
    for checkpoint in saved:
        custom |= items.custom_metadata(checkpoint.metadata)
    tree, record = items.to_save(merge(*trees), context)
    free.write(where, tree, items.to_metadata(custom, record), context).result()
    shutil.rmtree(parts)


def _places(path: PathLike) -> tuple[Path, Path]:
    text = str(Path(path)).removesuffix(_SUFFIX)
    return Path(text), Path(text + _SUFFIX)


def _saved(parts: Path) -> list[mp.Checkpoint]:
    try:
        catalog = mp.open(parts)
    except mp.NotFoundError:
        return []
    return [catalog[step] for step in catalog]


def _leaf_paths(tree: Any) -> set[Names]:
    found: set[Names] = set()
    plain(tree, lambda names, _: found.add(names))
    return found
