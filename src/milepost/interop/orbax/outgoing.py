# SPDX-License-Identifier: Apache-2.0
"""The items that a checkpoint becomes in Orbax: which folders, written how, under the handlers that read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from milepost.checkpoint import Checkpoint
from milepost.engine.stored import Stored
from milepost.interop.orbax.entries import Entry, Names, Refusals, Tree
from milepost.interop.orbax.writing import ItemWriter, write_bytes, write_json
from milepost.model import keypath, structure
from milepost.model.keypath import KeyPath
from milepost.model.leaf import Box

RECORD = "orbax"
_HANDLERS = "orbax.checkpoint._src.handlers"
PYTREE = f"{_HANDLERS}.pytree_checkpoint_handler.PyTreeCheckpointHandler"
JSON = f"{_HANDLERS}.json_checkpoint_handler.JsonCheckpointHandler"
_ARRAY = f"{_HANDLERS}.array_checkpoint_handler.ArrayCheckpointHandler"
_STANDARD = f"{_HANDLERS}.standard_checkpoint_handler.StandardCheckpointHandler"
_JAX_KEY = f"{_HANDLERS}.random_key_checkpoint_handler.JaxRandomKeyCheckpointHandler"
_NUMPY_KEY = f"{_HANDLERS}.random_key_checkpoint_handler.NumpyRandomKeyCheckpointHandler"
_BY_CLASS = {handler.rpartition(".")[2]: handler for handler in (PYTREE, _STANDARD, _ARRAY, _JAX_KEY)}
# A handler of Orbax stores a single array as a tree with this one key.
_ONLY = (("checkpoint", False),)

Write = Callable[[Path, ItemWriter], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a step.

    Attributes:
        name: of the item.
        handler: the type of what reads it, as text.
        parts: its folders, relative to the step's, and what writes into each.
        leaves: how many there are.
    """

    name: str
    handler: str
    parts: tuple[tuple[str, Write], ...]
    leaves: int


def stored_of(checkpoint: Checkpoint) -> Stored:
    """Return the saved tree that a handle is of."""
    return checkpoint._stored  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def record_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return what a front door of Orbax, or an import, recorded of a checkpoint's items; None for any other."""
    record = checkpoint.metadata.get(RECORD)
    if stored_of(checkpoint).path or not isinstance(record, dict) or "init_timestamp_nsecs" not in record:
        return None
    return cast("dict[str, Any]", record)


def items_of(
    checkpoint: Checkpoint, name: str | None, skip: Callable[[KeyPath], bool], refusals: Refusals
) -> list[Item]:
    """Return the items of a checkpoint: those that it was saved with, else the whole tree as one of that name.

    Without a name there is one item, which is the checkpoint itself.

    Raises:
        ValueError: it cannot be.
    """
    record = record_of(checkpoint)
    stored = stored_of(checkpoint)
    if record is None:
        return [_whole(stored, name or "", skip, refusals)]
    _, body = structure.node_of(stored.node, stored.path, 0)
    names = [segment for segment in cast("dict[str, Any]", body) if not skip(segment)]
    found = [_item(checkpoint.at(segment), segment, record, skip, refusals) for segment in names]
    if not found:
        refusals.add(keypath.ROOT, "nothing of it is left")
    if name is None and found:
        if len(found) > 1 or len(found[0].parts) > 1:
            raise ValueError(
                f"item=None: step {checkpoint.step} has the items {', '.join(each.name for each in found)}\n"
                "  Export one of them (`checkpoint.at(...)`), or say a name."
            )
        return [replace(each, name="", parts=tuple(("", write) for _, write in each.parts)) for each in found]
    return found


def _whole(stored: Stored, name: str, skip: Callable[[KeyPath], bool], refusals: Refusals) -> Item:
    entries = Tree(stored, stored.path, skip, refusals).entries()
    return Item(name, PYTREE, ((name, _tree(stored, entries)),), len(entries))


def _item(
    view: Checkpoint, segment: str, record: Mapping[str, Any], skip: Callable[[KeyPath], bool], refusals: Refusals
) -> Item:
    name, stored = str(keypath.key(segment)), stored_of(view)
    about: dict[str, Any] = record.get("items", {}).get(name, {})
    handlers: dict[str, str] = record.get("handlers", {})
    kind = about.get("kind", "files" if name in handlers else "tree")
    if kind == "files":
        return _files(stored, name, about.get("handler") or handlers[name], refusals)
    if kind == "json":
        return Item(name, JSON, ((name, _json(view.load())),), 1)
    if kind not in ("tree", "value"):
        what = {"proto": "a message of protobuf", "state": "the state of an object"}.get(kind, f"of the kind {kind!r}")
        refusals.add(segment, f"it is {what}, which only its own handler can write")
        return Item(name, "", (), 0)
    hollow = frozenset(tuple(cast("list[str]", path)) for path in about.get("hollow", []))
    tree = Tree(stored, segment, skip, refusals, sharding=_shardings(record, name), hollow=hollow)
    entries = tree.entries()
    handler = _NUMPY_KEY if kind == "value" else _BY_CLASS.get(about.get("handler", "").rpartition(".")[2], PYTREE)
    return Item(name, handler, tuple(_parts(name, handler, stored, entries, about)), len(entries))


def _parts(
    name: str, handler: str, stored: Stored, entries: list[Entry], about: Mapping[str, Any]
) -> Iterator[tuple[str, Write]]:
    if handler == _ARRAY:
        yield name, _tree(stored, [replace(entry, keys=_ONLY) for entry in entries])
    elif handler == _JAX_KEY:
        typed = bool(entries and entries[0].generator)
        words = [replace(entry, keys=_ONLY, kind="np.ndarray", generator="") for entry in entries]
        yield f"{name}/jax_random_key", _tree(stored, words)
        yield f"{name}/jax_random_key_metadata", _json({"typed": typed})
    elif handler == _NUMPY_KEY:
        yield f"{name}/np_random_key", _tree(stored, entries)
        yield f"{name}/np_random_key_metadata", _json({"legacy": bool(entries and entries[0].keys[0][1])})
    else:
        yield name, _tree(stored, entries, about.get("custom_metadata"))


def _tree(stored: Stored, entries: list[Entry], custom_metadata: Any = None) -> Write:
    def write(folder: Path, writer: ItemWriter) -> None:
        writer.tree(folder, stored, entries, custom_metadata)

    return write


def _json(data: Any) -> Write:
    def write(folder: Path, _: ItemWriter) -> None:
        write_json(folder / "metadata", data)

    return write


def _files(stored: Stored, name: str, handler: str, refusals: Refusals) -> Item:
    """Return an item that was saved as the files of its handler: they become files again."""
    files: dict[str, KeyPath] = {}
    for path, there in stored.entries(None).items():
        relative = str(keypath.key(path))
        array = stored.table.arrays.get(there)
        if array is None or array.dtype != "uint8" or not _is_inside(relative):
            refusals.add(keypath.join(stored.path, path), "it is no file of the item's handler")
        files[relative] = there

    def write(folder: Path, _: ItemWriter) -> None:
        for relative, there in files.items():
            file = folder / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            data = stored.source.read(there, stored.table.arrays[there], Box.whole(stored.table.arrays[there].shape))
            write_bytes(file, [data.tobytes()])

    return Item(name, handler, ((name, write),), len(files))


def _is_inside(relative: str) -> bool:
    parts = PurePosixPath(relative).parts
    return bool(parts) and ".." not in parts and not relative.startswith("/")


def _shardings(record: Mapping[str, Any], name: str) -> Callable[[Names], Mapping[str, Any] | None]:
    folded: dict[str, Any] = record.get("shardings", {})
    places: dict[str, int] = folded.get("of", {})

    def of(path: Names) -> Mapping[str, Any] | None:
        place = places.get(json.dumps([name, *path]))
        return None if place is None else folded["all"][place]

    return of


def plain(value: Any, path: str, refusals: Refusals) -> Any:
    """Return metrics or metadata as JSON holds them: NumPy's numbers as Python's, tuples as lists."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {name: plain(item, f"{path}.{name}", refusals) for name, item in items}
    if isinstance(value, list | tuple):
        return [plain(item, path, refusals) for item in cast("list[Any]", value)]
    if isinstance(value, np.generic):
        value = cast("Any", value).item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = cast("type[object]", type(value)).__qualname__
    refusals.add(path, f"a {kind}, which JSON cannot hold; say it as text or numbers with `catalog.annotate`")
    return None
