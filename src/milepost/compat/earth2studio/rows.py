# SPDX-License-Identifier: Apache-2.0
"""The rows of one process: native checkpoints of one root, their step a counter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np

import milepost as mp
from milepost.compat.earth2studio.codec import Decoder, Encoder
from milepost.compat.earth2studio.entry import CheckpointEntry
from milepost.compat.earth2studio.errors import CheckpointError, translated

_log = logging.getLogger("milepost")
_RECORD = "earth2studio"
_SMALL_NBYTES = 1024
_PLAIN = (bool, int, float, complex, str, bytes)
Row: TypeAlias = tuple[CheckpointEntry, mp.Checkpoint]
Mode: TypeAlias = Literal["overwrite", "append"]


@dataclass(frozen=True, slots=True)
class Commit:
    """What one row is made of.

    Attributes:
        commit_id: its name.
        labels, metadata, write_count: what the session says.
        states: key -> stored tree of a component's state.
        records: state id -> what identifies it: its key, schema and digest of the schema.
        finished: whether the row ends a work item.
        parent: the row that the session went on from.
    """

    commit_id: str
    labels: Mapping[str, Any]
    metadata: Mapping[str, Any]
    write_count: int
    states: Mapping[str, Any]
    records: Mapping[str, Any]
    finished: bool
    parent: str | None


def record_of(row: mp.Checkpoint) -> dict[str, Any]:
    """Return what this door keeps in a native checkpoint's metadata."""
    found = row.metadata.get(_RECORD)
    if found is None:
        raise CheckpointError(f"{row!r} was saved by another program\n  Give the run a path of its own.")
    return found


@final
class Rows:
    """Reads and writes the rows; nothing is read or written before it is asked for."""

    def __init__(
        self, path: Path, rank_path: Path, *, name: str, mode: Mode, history_size: int | None, rank: int, size: int
    ) -> None:
        self._path, self._rank_path = path, rank_path
        self._mode: Mode = mode
        self._history, self._rank, self._size = history_size, rank, size
        self._identity = {"name": name, "world_size": size}
        self._saver: mp.Checkpointer | None = None
        self._users = 0

    # --- reading

    def read(self, *, warn: bool = True) -> list[Row]:
        """Return the rows in the order of their commits; a damaged one is left out, with a warning."""
        with translated():
            catalog = self._opened()
            steps = [] if catalog is None else sorted(catalog)
            found: list[Row] = []
            for step in steps:
                assert catalog is not None
                try:
                    row = catalog[step]
                    found.append((self._entry(row), row))
                except mp.CorruptionError as error:
                    what = f"a row is left out: {error}".partition("\n")[0]
                    if warn:
                        warnings.warn(what, RuntimeWarning, stacklevel=3)
                    else:
                        _log.warning(what)
                except mp.NotFoundError:
                    continue  # deleted since it was listed
            return found

    def _opened(self) -> mp.Catalog | None:
        try:
            catalog = mp.open(self._rank_path)
        except mp.NotFoundError:
            self._check_neighbours()
            return None
        there = catalog.metadata
        if there != self._identity:
            raise CheckpointError(
                f"{self._rank_path} belongs to another run: {_told(there)}; this is {_told(self._identity)}\n"
                "  Open it with the same name and the same number of processes, or give this run another path."
            )
        return catalog

    def _check_neighbours(self) -> None:
        """Refuse to begin anew beside rows that the user most likely means."""
        if (self._rank_path / "catalog.json").exists() or (self._rank_path / "commits").is_dir():
            raise CheckpointError(
                f"{self._rank_path} was written by Earth2Studio itself\n"
                "  Give this run another path; the documentation of this door shows how to bring the rows along."
            )
        others = [self._path, *sorted(self._path.glob("rank_*"))] if self._path.is_dir() else []
        for other in others:
            with suppress(mp.NotFoundError):
                there = mp.open(other).metadata
                if there.get("world_size") != self._size:
                    raise CheckpointError(
                        f"{self._path} was written by {there.get('world_size')} processes, and this is one of"
                        f" {self._size}\n  Use the same number, or give this run another path."
                    )

    def _entry(self, row: mp.Checkpoint) -> CheckpointEntry:
        record = record_of(row)
        metadata = dict(record["metadata"])
        if record["leaves"]:
            metadata |= Decoder(None, {}).value(row.at("metadata").load(frameworks="saved"))
        metadata = {name: metadata[name] for name in record["names"]}
        return CheckpointEntry(
            record["commit_id"], dict(record["labels"]), metadata, tuple(metadata), record["write_count"],
            row.created.isoformat(), record["rank"], record["world_size"], tuple(record["states"]),
        )  # fmt: skip

    # --- writing

    def enter(self) -> None:
        """Keep the writer's lock from the first commit on, until as many calls of `leave`."""
        self._users += 1

    def leave(self) -> None:
        """Give the writer's lock back, if nobody else needs it."""
        self._users -= 1
        if self._users == 0 and self._saver is not None:
            self._saver.close()
            self._saver = None

    def commit(self, commit: Commit) -> Row:
        """Make a row, durable when this returns."""
        self.enter()
        try:
            with translated():
                row = self._saved(commit)
                entry = self._entry(row)
                if self._history is not None:
                    self._prune(self._history)
            return entry, row
        finally:
            self.leave()

    def _saved(self, commit: Commit) -> mp.Checkpoint:
        small = {name: value for name, value in commit.metadata.items() if _is_small(value)}
        encoder = Encoder({})
        large = {name: value for name, value in commit.metadata.items() if name not in small}
        leaves = encoder.tree(large, "metadata")
        if encoder.objects:
            raise mp.UnsupportedLeafError("metadata holds an object with a state of its own\n  Bind it as a state.")
        record = {
            "commit_id": commit.commit_id, "mode": self._mode, "rank": self._rank, "world_size": self._size,
            "labels": dict(commit.labels), "metadata": small, "names": list(commit.metadata), "leaves": bool(leaves),
            "write_count": commit.write_count, "states": dict(commit.records), "finished": commit.finished,
            "parent": commit.parent,
        }  # fmt: skip
        tree = {"states": dict(commit.states), "metadata": leaves}
        while True:
            saver, step = self._next_step()
            try:
                return saver.save(step, tree, metadata={_RECORD: record}).result()
            except mp.ConflictError as error:
                if error.code not in ("exists", "behind"):
                    raise  # else another thread took that step: take the next

    def _next_step(self) -> tuple[mp.Checkpointer, int]:
        if self._saver is None:
            self._saver = self._open()
        try:
            latest = self._saver.catalog.latest()
        except mp.CorruptionError:
            return self._past_damage()
        return self._saver, 0 if latest is None else latest.step + 1

    def _past_damage(self) -> tuple[mp.Checkpointer, int]:
        """Go on from the newest whole row: damaged ones after it are no longer in the line, and stay as they are."""
        assert self._saver is not None
        self._saver.close()
        rows = self.read(warn=False)
        self._saver = self._open(rows[-1][1] if rows else None)
        return self._saver, max(self._saver.catalog, default=-1) + 1

    def _open(self, start: mp.Checkpoint | None = None) -> mp.Checkpointer:
        self._opened()
        # Rows go by label here, which no keep policy sees. The folder may hold those of single ranks, too.
        return mp.Checkpointer(
            self._rank_path, save="first", keep="all", metadata=self._identity, resume_from=start, shared=True
        )

    def _prune(self, history_size: int) -> None:
        assert self._saver is not None
        groups: dict[str, list[mp.Checkpoint]] = {}
        for entry, row in self.read(warn=False):
            groups.setdefault(repr(sorted(entry.labels.items())), []).append(row)
        for rows in groups.values():
            for row in rows[:-history_size]:
                if row.info.pins:
                    continue
                try:
                    self._saver.catalog.delete(row.step)
                except mp.CheckpointError as error:  # the new row is there: a failed deletion must not say otherwise
                    _log.warning("a row is saved, but an older one stays: %s", error)


def _told(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('name')!r} of {identity.get('world_size')} processes"


def _is_small(value: Any) -> bool:
    """Return whether metadata lies in the record itself, where listing reads it; the rest is stored as leaves."""
    if value is None or type(value) in _PLAIN or isinstance(value, np.generic):
        return True
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        return array.nbytes <= _SMALL_NBYTES and not array.dtype.hasobject
    if type(value) in (list, tuple) and len(value) <= _SMALL_NBYTES // 8:
        items: Sequence[Any] = value
        return all(map(_is_small, items))
    return type(value).__module__ == "datetime"
