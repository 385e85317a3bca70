# SPDX-License-Identifier: Apache-2.0
"""A directory of Orbax checkpoints, read without Orbax."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast, final

from milepost import foreign
from milepost.checkpoint import Checkpoint
from milepost.errors import CorruptionError, NotFoundError
from milepost.interop.orbax import folders, items, records
from milepost.interop.orbax.items import Item
from milepost.model import keypath

_log = logging.getLogger("milepost.interop.orbax")
_T = TypeVar("_T")
_UNSET: Any = object()
_RECORD = "orbax"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@final
class OrbaxStep:
    """One finished checkpoint that Orbax wrote. Records are read when they are first asked for, arrays when read.

    Attributes:
        step: its number.
        path: its folder.
    """

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    @property
    def items(self) -> tuple[str, ...]:
        """The names of its items; `default` for an item without a name.

        Raises:
            NotFoundError: one that the step's record names is not there.
        """
        return tuple(self._found)

    @property
    def metrics(self) -> Any:
        """The metrics as they were given, None when there were none.

        Raises:
            CorruptionError: they are damaged.
        """
        file = self.path / "metrics" / "metrics"
        return records.read(file) if file.is_file() else None

    @property
    def metadata(self) -> Any:
        """The custom metadata of the step."""
        return self._record.get("custom_metadata") or {}

    @property
    def created(self) -> dt.datetime:
        """When it was committed; of a step of an old Orbax, which does not say it, when its folder last changed."""
        return _time(self.committed_ns)

    @property
    def committed_ns(self) -> int:
        """When it was committed, in nanoseconds since 1970."""
        said = self._record.get("commit_timestamp_nsecs") or self._record.get("init_timestamp_nsecs")
        return said if isinstance(said, int) else self.path.stat().st_mtime_ns

    @property
    def fingerprint(self) -> str:
        """What is equal for copies of one checkpoint: of names, sizes and the small records of its files."""
        return folders.fingerprint(self.path)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The step as a checkpoint: a tree with its items at the top, and metadata as the front doors write them.

        It cannot be verified: Orbax stores no digests of its arrays.
        """
        return foreign.checkpoint(self.step, str(self.path), self.path.name, lambda: self.contents)

    def tree(self, item: str | None = None) -> Any:
        """Return an item's tree in dicts and lists, with a `LeafRef` for each leaf: `read()`, or slices of it.

        Args:
            item: its name; not needed when there is one only.

        Raises:
            NotFoundError: there is no such item.
            CorruptionError: its records are damaged.
        """
        return self._view(item).tree

    def load(self, item: str | None = None, like: _T = _UNSET, **options: Any) -> _T:
        """Return an item's tree, read; with `like`, in its containers, frameworks and shardings.

        Args:
            item: its name; not needed when there is one only.
            like, options: as of `Checkpoint.load`.

        Raises:
            StructureError: the trees differ; all differences at once, before an array is read.
            CorruptionError: something is damaged, as far as Orbax's files tell.
        """
        view = self._view(item)
        return view.load(**options) if like is _UNSET else view.load(like, **options)

    def _view(self, item: str | None) -> Checkpoint:
        if item is None and len(self.items) == 1:
            item = self.items[0]
        if item not in self._found:
            there = ", ".join(map(repr, self.items)) or "none"
            raise NotFoundError(f"step {self.step} of {self.path.parent} has no item {item!r}\n  There are {there}.")
        return self.checkpoint.at(keypath.segment(item))

    @cached_property
    def _record(self) -> dict[str, Any]:
        file = self.path / folders.METADATA
        return records.read_object(file) if file.exists() else {}

    @cached_property
    def _found(self) -> dict[str, tuple[Path, str]]:
        return items.found(self.path, self._record.get("item_handlers"))

    @cached_property
    def contents(self) -> foreign.Contents:
        """What the checkpoint holds, its arrays not yet read; for whoever copies it."""
        where = f"step {self.step}"
        read = {
            name: items.read(folder, handler, f"{where}, {name}") for name, (folder, handler) in self._found.items()
        }
        try:
            metrics = self.metrics
        except CorruptionError as error:  # the state is there all the same; `metrics` says so to whoever asks
            _log.warning("%s", str(error).partition("\n")[0])
            metrics = None
        tree = {name: item.tree for name, item in read.items()}
        time = self.created.isoformat(timespec="microseconds")
        named = cast("dict[str, Any]", metrics) if isinstance(metrics, dict) else {"value": metrics}
        return foreign.Contents(tree, time, {} if metrics is None else named, self._metadata(read, metrics))

    def _metadata(self, read: Mapping[str, Item], metrics: Any) -> dict[str, Any]:
        """Return the metadata of the checkpoint: the user's names, and one record of what the front doors look at."""
        record: dict[str, Any] = {
            "init_timestamp_nsecs": self._record.get("init_timestamp_nsecs"),
            "commit_timestamp_nsecs": self.committed_ns,
            "items": {name: _about(item) for name, item in read.items()},
            "plain": True,
        }
        if metrics is not None and not isinstance(metrics, dict):
            # The front doors tell metrics without names apart each in its own way.
            handlers: Any = self._record.get("item_handlers")
            v1 = isinstance(handlers, dict) and ".v1." in str(cast("dict[str, Any]", handlers).get("metrics"))
            record["metrics"] = metrics if v1 else "bare"
        if files := {name: item.handler for name, item in read.items() if item.kind == "files"}:
            record["handlers"] = files
        shardings = {(name, *path): data for name, item in read.items() for path, data in item.shardings.items()}
        if shardings:
            record["shardings"] = _folded(shardings)
        custom = self.metadata
        if isinstance(custom, dict) and _RECORD not in custom:
            return {**cast("dict[str, Any]", custom), _RECORD: record}
        return {_RECORD: {**record, "custom_metadata": custom}}

    def __repr__(self) -> str:
        return f"<OrbaxStep {self.step} in {self.path}>"


@final
class OrbaxDirectory(Mapping[int, OrbaxStep]):
    """The finished checkpoints of a directory by step, as they were when it was opened.

    Attributes:
        path: the directory; of a checkpoint that was saved alone, its own folder.
    """

    def __init__(self, path: Path, found: Mapping[int, Path]) -> None:
        self.path, self._found = path, {step: OrbaxStep(step, folder) for step, folder in found.items()}

    @property
    def alone(self) -> bool:
        """Whether it is one checkpoint that was saved without a manager."""
        return any(step.path == self.path for step in self._found.values())

    @cached_property
    def metadata(self) -> Any:
        """The custom metadata of the whole directory."""
        file = self.path / "metadata" / "_ROOT_METADATA"
        return (records.read_object(file).get("custom_metadata") or {}) if file.is_file() else {}

    def __getitem__(self, step: int) -> OrbaxStep:
        return self._found[step]

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return f"<OrbaxDirectory {self.path}, {len(self)} steps>"


def open_directory(path: str | os.PathLike[str], *, prefix: str | None = None) -> OrbaxDirectory:
    """Return the finished checkpoints in a directory of Orbax: of a manager, or one that was saved alone.

    Args:
        path: a local directory.
        prefix: only steps named with it, as `step_prefix`; `""`: named by a number alone; None: any.

    Raises:
        NotFoundError: there is no such directory.
        ConflictError: two folders are the same step.
    """
    directory = folders.local(path)
    return OrbaxDirectory(directory, folders.steps(directory, prefix))


def _about(item: Item) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": item.kind, "handler": item.handler}
    if item.custom_metadata is not None:
        about["custom_metadata"] = item.custom_metadata
    return about


def _folded(shardings: Mapping[tuple[str, ...], dict[str, Any]]) -> dict[str, Any]:
    different: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for path, data in shardings.items():
        if data not in different:
            different.append(data)
        places[json.dumps(list(path))] = different.index(data)
    return {"all": different, "of": places}


def _time(nanoseconds: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=nanoseconds // 1000)
