# SPDX-License-Identifier: Apache-2.0
"""Named checkpointables as one native tree, and back.

A top-level key of the tree is a checkpointable: a tree of the user in dicts and lists, or the files that its handler
wrote, as arrays of bytes by name. What else is to be known goes into the step's metadata, under `orbax`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

import milepost as mp
from milepost.compat import orbax_shardings
from milepost.compat.orbax_v1 import leaves
from milepost.compat.orbax_v1.context import Context
from milepost.compat.orbax_v1.described import nanoseconds
from milepost.compat.orbax_v1.errors import InvalidLayoutError, UnsupportedLeafError
from milepost.compat.orbax_v1.path.types import Folder, for_handlers
from milepost.compat.orbax_v1.plain import Path as Names
from milepost.compat.orbax_v1.plain import jax, mapped, plain
from milepost.compat.orbax_v1.registry import completed, handler_for_load, handler_for_save, typestr

RECORD = "orbax"
STATE = "state"
AUTO = "AUTO"
RESERVED = frozenset({"metrics", AUTO, "_CHECKPOINT_DELETION"})


def check_names(checkpointables: Any, what: str) -> None:
    """Refuse names that cannot be, before anything is done.

    Raises:
        ValueError: it is no dict, or a name is empty or reserved.
    """
    if not isinstance(checkpointables, dict):
        raise ValueError(f"{what}: expected a dict of names, found {type(checkpointables).__qualname__}")
    for name in cast("dict[Any, Any]", checkpointables):
        check_name(name, what)


def check_name(name: Any, what: str) -> None:
    """Refuse one name."""
    if not isinstance(name, str) or not name or name in RESERVED:
        raise ValueError(
            f"{what}: {name!r} cannot be the name of a checkpointable\n"
            f"  Give it text that is neither empty nor one of {', '.join(sorted(RESERVED))}."
        )


def check_saved(checkpointables: Any) -> None:
    """Refuse what cannot be saved by its names, before anything is done.

    Raises:
        ValueError: there is nothing, an object is None, or a name cannot be.
    """
    check_names(checkpointables, "checkpointables")
    if not checkpointables:
        raise ValueError("checkpointables: expected one or more, found none")
    for name, value in checkpointables.items():
        if value is None:
            raise ValueError(f"{name!r} is None, which is no checkpointable")


def to_save(checkpointables: dict[str, Any], context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the native tree of named checkpointables, and the record of what is to be known of it.

    Raises:
        ValueError: there is none, or one is None or empty.
    """
    check_saved(checkpointables)
    tree: dict[str, Any] = {}
    record: dict[str, Any] = {"init_timestamp_nsecs": time.time_ns()}
    shardings: dict[Names, dict[str, Any]] = {}
    handlers: dict[str, str] = {}
    for name, value in checkpointables.items():
        handler = handler_for_save(context.checkpointables.registry, value, name)
        if getattr(handler, "native", False):
            tree[name] = _native(name, value, context, shardings)
        else:
            handlers[name] = typestr(type(handler))
            tree[name] = _files(handler, value)
    if handlers:
        record["handlers"] = handlers
    if shardings:
        record["shardings"] = orbax_shardings.folded(shardings)
    if not context.pytree.saving.pytree_metadata_options.support_rich_types:
        record["plain"] = True  # dicts with text keys and lists only
    return tree, record


def _native(name: str, value: Any, context: Context, shardings: dict[Names, dict[str, Any]]) -> Any:
    if isinstance(value, dict | list | tuple) and not value:
        raise ValueError(f"{name!r} is empty: there is nothing to save")
    value = _in_storage_dtypes(value, context)

    def leaf(path: Names, item: Any) -> Any:
        data = orbax_shardings.described(item)
        if data is not None:
            shardings[name, *path] = data
        return item

    rich = context.pytree.saving.pytree_metadata_options.support_rich_types
    return mapped(value, leaf) if rich else plain(value, leaf)


def _in_storage_dtypes(value: Any, context: Context) -> Any:
    """Return the tree with its arrays in the dtypes that the storage options ask for."""
    saving = context.array.saving
    creator, default = saving.scoped_storage_options_creator, saving.storage_options
    if creator is not None and jax() is not None:

        def scoped(key: tuple[Any, ...], item: Any) -> Any:
            options = creator(key, item)
            return _cast(item, (default if options is None else options).dtype)

        return jax().tree_util.tree_map_with_path(scoped, value)
    return value if default.dtype is None else mapped(value, lambda _, item: _cast(item, default.dtype))


def _cast(item: Any, dtype: Any) -> Any:
    is_array = hasattr(item, "astype") and not issubclass(type(item), np.generic)
    return item.astype(dtype) if dtype is not None and is_array else item


def _files(handler: Any, value: Any) -> dict[str, Any]:
    """Return what a handler writes, by name."""
    with tempfile.TemporaryDirectory(prefix="milepost-") as temporary:
        folder = Path(temporary) / "item"
        folder.mkdir()
        completed(lambda: handler.save(Folder(folder), value))
        return {
            file.relative_to(folder).as_posix(): np.frombuffer(file.read_bytes(), np.uint8)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }


# Reading.


def record_of(checkpoint: mp.Checkpoint) -> dict[str, Any]:
    """Return the record of a checkpoint, empty when the native API saved it."""
    record = checkpoint.metadata.get(RECORD)
    return cast("dict[str, Any]", record) if isinstance(record, dict) else {}


def committed_ns(checkpoint: mp.Checkpoint) -> int:
    """Return when a checkpoint was committed, in nanoseconds since 1970; of what was imported, when Orbax did."""
    said: int | None = record_of(checkpoint).get("commit_timestamp_nsecs")
    return nanoseconds(checkpoint.created) if said is None else said


def saved_tree(checkpoint: mp.Checkpoint) -> dict[str, Any]:
    """Return the saved checkpointables by name, nothing of them read.

    Raises:
        InvalidLayoutError: the checkpoint is a single array or list.
    """
    tree = checkpoint.tree
    if not isinstance(tree, dict):
        raise InvalidLayoutError(
            f"{checkpoint!r} has no names at its top\n  Read it with `milepost.load`, as it was not saved through here."
        )
    return {str(name): item for name, item in cast("dict[Any, Any]", tree).items()}


def auto_name(checkpoint: mp.Checkpoint) -> str:
    """Return the name that holds the tree when none was given: `state`, else the first by name.

    Raises:
        InvalidLayoutError: there is none.
    """
    handlers = record_of(checkpoint).get("handlers", {})
    names = sorted(name for name in saved_tree(checkpoint) if name not in handlers)
    if not names:
        raise InvalidLayoutError(f"{checkpoint!r} holds no tree, only objects with handlers of their own")
    return STATE if STATE in names else names[0]


def load_items(checkpoint: mp.Checkpoint, abstract: Mapping[str, Any] | None, context: Context) -> dict[str, Any]:
    """Return checkpointables by name, all of them when `abstract` is None.

    Everything is compared before a byte is read.

    Raises:
        KeyError: a name is not there.
        ValueError: an abstract tree does not fit what was saved.
    """
    saved, record = saved_tree(checkpoint), record_of(checkpoint)
    rich = not record.get("plain", False)
    wanted: Mapping[str, Any] = dict.fromkeys(saved) if abstract is None else abstract
    missing = [name for name in wanted if name not in saved]
    if missing:
        there = ", ".join(map(repr, saved))
        raise KeyError(f"{checkpoint!r} has no {', '.join(map(repr, missing))}; there are {there}")
    handlers: dict[str, str] = record.get("handlers", {})
    parts: dict[str, leaves.Wanted] = {}
    like: dict[str, Any] = dict.fromkeys(saved, mp.SKIP)
    for name, value in wanted.items():
        of = _shardings(record, name)
        if name in handlers or value is None:
            like[name] = leaves.as_saved(saved[name], of)
        else:
            pad = context.array.loading.enable_padding_and_truncation
            parts[name] = leaves.Wanted(value, saved[name], of, rich, pad)
            like[name] = parts[name].like
    try:
        loaded = checkpoint.load(
            like=like, dtype="cast", unexpected="ignore" if context.pytree.loading.partial_load else "error"
        )
    except mp.StructureError as error:
        error.add_note(
            "`like` is the abstract tree here. To load a part of what was saved: `...` at leaves that are to stay"
            " unread, or `context.pytree.loading.partial_load = True`."
        )
        raise
    result: dict[str, Any] = {}
    for name, value in wanted.items():
        if name in handlers:
            result[name] = _with_handler(name, value, loaded[name], handlers[name], context)
        elif name in parts:
            result[name] = parts[name].result(loaded[name])
        else:
            result[name] = loaded[name]
    return result


def _with_handler(name: str, abstract: Any, files: dict[str, Any], recorded: str, context: Context) -> Any:
    handler = handler_for_load(context.checkpointables.registry, abstract, name, recorded)
    with tempfile.TemporaryDirectory(prefix="milepost-") as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        for relative, data in files.items():
            file = folder / relative
            if not file.resolve().is_relative_to(folder.resolve()):
                raise InvalidLayoutError(
                    f"{name!r} holds a file that would lie outside of its folder: {relative[:80]!r}"
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data.tobytes())
        return completed(lambda: handler.load(for_handlers(folder), abstract))


def without(checkpoint: mp.Checkpoint, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tree and metadata of a checkpoint without one of its names.

    Raises:
        ValueError: it is the only one.
    """
    saved, record = saved_tree(checkpoint), record_of(checkpoint)
    if len(saved) == 1:
        raise ValueError(f"{name!r} is all that {checkpoint!r} holds\n  Delete the whole checkpoint instead.")
    like = {
        each: mp.SKIP if each == name else leaves.as_saved(tree, _shardings(record, each))
        for each, tree in saved.items()
    }
    tree = {each: part for each, part in checkpoint.load(like=like).items() if each != name}
    handlers = {each: handler for each, handler in record.get("handlers", {}).items() if each != name}
    metadata = checkpoint.metadata
    if record:
        metadata[RECORD] = {**record, "handlers": handlers}
    return tree, metadata


def describe_items(checkpoint: mp.Checkpoint, names: list[str] | None = None) -> dict[str, Any]:
    """Return the description of each checkpointable; None for those of handlers."""
    saved, record = saved_tree(checkpoint), record_of(checkpoint)
    handlers = record.get("handlers", {})
    return {
        name: None if name in handlers else leaves.described_tree(saved[name], _shardings(record, name))
        for name in (saved if names is None else names)
    }


def _shardings(record: dict[str, Any], name: str) -> leaves.Shardings:
    """Return what tells the sharding of a leaf, made anew for this machine."""
    folded: dict[str, Any] = record.get("shardings", {"all": [], "of": {}})
    made: list[Any] = []

    def of(path: Names) -> Any:
        place = folded["of"].get(json.dumps([name, *path]))
        if place is None:
            return None
        if not made:
            made.extend(orbax_shardings.restored(data) for data in folded["all"])
        return made[place]

    return of


# Metadata of the user beside ours.


def to_metadata(custom: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Return the step's native metadata: the user's names at the top, so that `catalog.find` sees them."""
    if isinstance(custom, Mapping) and RECORD not in custom:
        return {**cast("Mapping[str, Any]", custom), RECORD: record}
    return {RECORD: record if custom is None else {**record, "custom_metadata": custom}}


def custom_metadata(metadata: Mapping[str, Any]) -> Any:
    """Return the user's part of native metadata."""
    record = metadata.get(RECORD)
    if isinstance(record, dict) and "custom_metadata" in record:
        return cast("dict[str, Any]", record)["custom_metadata"]
    return {name: value for name, value in metadata.items() if name != RECORD}


def refused(error: mp.UnsupportedLeafError) -> UnsupportedLeafError:
    """Return the error for a leaf that cannot be stored as the type that users of Orbax catch."""
    return UnsupportedLeafError(str(error), code=error.code)
