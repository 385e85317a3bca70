# SPDX-License-Identifier: Apache-2.0
"""Items as one native tree, and what else is to be known of them.

A key at the top of the tree is an item. Beside the user's own names, the metadata of a step has one entry, `orbax`,
with the kind, the handler and the shardings of each item.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

import milepost as mp
from milepost.compat import orbax_shardings
from milepost.compat.orbax import trees
from milepost.compat.orbax.restoring import Restoring, Shardings

RECORD = "orbax"
DEFAULT = "default"
ALONE = {RECORD: "checkpoint"}
"""The metadata of a root that holds one checkpoint, not the steps of a manager."""

_SPECIAL = re.compile(r"[%/@*?\[\]{}\x00-\x1f\x7f-\x9f]")


class UnsupportedTypeError(mp.UnsupportedLeafError, ValueError):
    """A value cannot be stored; in Orbax this is a ValueError, so it is one here too."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item ready to be saved.

    Attributes:
        kind: `tree`, `json`, `value`, `proto`, `state` or `files`.
        tree: what is stored.
        handler: the type of its handler, as text.
        custom_metadata: what the user gave with it.
        shardings: of its arrays, by path.
        hollow: paths of nodes without children that come back as None.
    """

    kind: str
    tree: Any
    handler: str
    custom_metadata: Any = None
    shardings: Mapping[trees.Path, dict[str, Any]] = field(default_factory=dict[trees.Path, dict[str, Any]])
    hollow: tuple[trees.Path, ...] = ()

    def about(self) -> dict[str, Any]:
        """Return what the record says of it."""
        about: dict[str, Any] = {"kind": self.kind, "handler": self.handler}
        if self.custom_metadata is not None:
            about["custom_metadata"] = self.custom_metadata
        if self.hollow:
            about["hollow"] = [list(path) for path in self.hollow]
        return about


def native(items: Mapping[str, Encoded], custom: Any, *, begun_ns: int | None = None) -> dict[str, Any]:
    """Return the metadata of a step: the user's names, and the record of its items."""
    record: dict[str, Any] = {
        "init_timestamp_nsecs": time.time_ns() if begun_ns is None else begun_ns,
        "items": {name: item.about() for name, item in items.items()},
    }
    shardings = {(name, *path): data for name, item in items.items() for path, data in item.shardings.items()}
    if shardings:
        record["shardings"] = orbax_shardings.folded(shardings)
    if handlers := {name: item.handler for name, item in items.items() if item.kind == "files"}:
        record["handlers"] = handlers
    if isinstance(custom, Mapping) and RECORD not in custom:
        return {**cast("Mapping[str, Any]", custom), RECORD: record}
    return {RECORD: record if custom is None else {**record, "custom_metadata": custom}}


@final
class StoredItem:
    """One item of a checkpoint."""

    def __init__(self, checkpoint: mp.Checkpoint, name: str, record: Mapping[str, Any], directory: Path | None) -> None:
        self.checkpoint, self.name, self.directory = checkpoint, name, directory
        self._record = record
        about: dict[str, Any] = record.get("items", {}).get(name, {})
        self.kind: str = about.get("kind", "files" if name in record.get("handlers", {}) else "tree")
        self.handler: str = about.get("handler", record.get("handlers", {}).get(name, ""))
        self.custom_metadata: Any = about.get("custom_metadata")
        self.hollow = frozenset(tuple(cast("list[str]", path)) for path in about.get("hollow", []))

    @property
    def view(self) -> mp.Checkpoint:
        """The part of the checkpoint that is this item."""
        return self.checkpoint.at(_segment(self.name))

    @property
    def shardings(self) -> Shardings:
        """What tells how each of its leaves was sharded."""
        return orbax_shardings.lookup(self._record.get("shardings", {}), self.name)

    def restoring(self) -> Restoring:
        """Begin to restore it as a tree."""
        if self.kind == "files":
            raise ValueError(
                f"{self.name!r} was saved by {self.handler}, as files of its own\n  Restore it with that handler."
            )
        return Restoring(self.view, self.shardings, self.hollow)


@final
class Stored:
    """A checkpoint as items."""

    def __init__(self, checkpoint: mp.Checkpoint, directory: Path | None = None, *, only: str | None = None) -> None:
        record = checkpoint.metadata.get(RECORD)
        self.checkpoint, self.directory, self.only = checkpoint, directory, only
        self.record: dict[str, Any] = cast("dict[str, Any]", record) if isinstance(record, dict) else {}

    @property
    def names(self) -> list[str]:
        """The names of its items."""
        items: dict[str, Any] = self.record.get("items", {})
        if items:
            return list(items)
        tree = self.checkpoint.tree
        return [str(name) for name in cast("dict[Any, Any]", tree)] if isinstance(tree, dict) else []

    def item(self, name: str) -> StoredItem:
        """Return one item.

        Raises:
            KeyError: there is none of that name.
        """
        if name not in self.names:
            raise KeyError(f'Item "{name}" was not found in the checkpoint. Available items: {self.names}')
        directory = None if self.directory is None else self.directory / name
        return StoredItem(self.checkpoint, name, self.record, directory)

    @property
    def custom_metadata(self) -> Any:
        """What the user gave at the save."""
        if "custom_metadata" in self.record:
            return self.record["custom_metadata"]
        return {name: value for name, value in self.checkpoint.metadata.items() if name != RECORD}

    @property
    def begun_ns(self) -> int | None:
        """When the save began, in nanoseconds since 1970."""
        return self.record.get("init_timestamp_nsecs")

    @property
    def committed_ns(self) -> int:
        """When it was committed, in nanoseconds since 1970; of what was imported, when Orbax committed it."""
        said: int | None = self.record.get("commit_timestamp_nsecs")
        return round(self.checkpoint.created.timestamp() * 1_000_000) * 1_000 if said is None else said


def _segment(name: str) -> str:
    return _SPECIAL.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name)
