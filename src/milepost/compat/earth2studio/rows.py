# SPDX-License-Identifier: Apache-2.0
"""The rows of one process: checkpoints of milepost in one root, their step a counter."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np

import milepost as mp
from milepost.compat.earth2studio.states import CheckpointError, translated
from milepost.policy import Saved
from milepost.state import load_value, stored

_log = logging.getLogger("milepost")
CheckpointLevel: TypeAlias = Literal[0, 1, 2]
_RECORD = "earth2studio"
_SMALL_NBYTES = 1024
_Row: TypeAlias = "tuple[CheckpointEntry, mp.Checkpoint]"


@dataclasses.dataclass(frozen=True)
class CheckpointEntry:
    """One committed row: whose it is, what the workflow wrote, when (UTC, ISO 8601), and which states are in it."""

    commit_id: str
    labels: dict[str, Any]
    metadata: dict[str, Any]
    metadata_keys: tuple[str, ...]
    write_count: int
    saved_at: str
    rank: int
    world_size: int
    state_ids: tuple[str, ...]

    @property
    def lead_time(self) -> Any:
        return self.metadata.get("lead_time")

    @property
    def artifacts(self) -> tuple[str, ...]:
        return self.metadata_keys


def table(entries: Sequence[CheckpointEntry]) -> list[str]:
    labels = sorted({name for entry in entries for name in entry.labels})
    names = sorted({name for entry in entries for name in entry.metadata})
    lines = [["id", *labels, *names, "write_count", "saved_at"]]
    for index, entry in enumerate(entries):
        cells = [*map(entry.labels.get, labels), *map(entry.metadata.get, names), entry.write_count, entry.saved_at]
        lines.append([str(index), *map(_shown, cells)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _shown(value: Any) -> str:
    if type(value) is np.timedelta64 and value.dtype.str[4:5] not in ("", "Y", "M"):
        hours = value.astype("m8[h]")
        return str(hours if hours == value else value)
    shape: Any = getattr(value, "shape", ())
    text = f"{value.dtype}{list(shape)}" if shape else "" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:31]}…"


def _is_small(value: Any) -> bool:
    """Return whether metadata lies in the record itself, where listing reads it; the rest is stored as leaves."""
    if value is None or type(value) in (bool, int, float, complex, str, bytes) or isinstance(value, np.generic):
        return True
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        return array.nbytes <= _SMALL_NBYTES and not array.dtype.hasobject
    if type(value) in (list, tuple):
        return len(value) <= _SMALL_NBYTES // 8 and all(map(_is_small, value))
    return type(value).__module__ == "datetime"


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata with arrays of one element as that element; NumPy scalars stay what they are."""
    return {name: _scalar(value) for name, value in metadata.items()}


def _scalar(value: Any) -> Any:
    if not hasattr(value, "__setitem__") or math.prod(getattr(value, "shape", (0,))) != 1:
        return value
    return value.reshape(-1)[0] if type(value).__module__ == "numpy" else value.item()


@dataclasses.dataclass(frozen=True)
class _EachLabel:
    """Keeps the newest rows of each work item."""

    n: int

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        groups: dict[str, list[int]] = {}
        for saved in history:
            labels = saved.metadata.get(_RECORD, {}).get("labels", {})
            groups.setdefault(repr(sorted(labels.items())), []).append(saved.step)
        return {step: str(self) for steps in groups.values() for step in steps[-self.n :]}

    def __str__(self) -> str:
        return f"last {self.n} of each label"


def record_of(row: mp.Checkpoint) -> dict[str, Any]:
    found = row.metadata.get(_RECORD)
    if found is None:
        raise CheckpointError(f"{row!r} was saved by another program\n  Give the run a path of its own.")
    return found


@final
class Rows:
    """What a checkpoint has on disk; nothing is read or written before it is asked for."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._identity = {"name": owner.name, "world_size": owner.world_size}
        self._saver: mp.Checkpointer | None = None
        self._users = 0

    def read(self, *, warn: bool = True) -> list[_Row]:
        """Return the rows in the order of their commits; a damaged one is left out, with a warning."""
        found: list[_Row] = []
        with translated():
            catalog = self._opened()
            for step in [] if catalog is None else sorted(catalog):
                try:
                    row = cast("mp.Catalog", catalog)[step]
                    found.append((self._entry(row), row))
                except mp.CorruptionError as error:
                    what = f"a row is left out: {error}".partition("\n")[0]
                    warnings.warn(what, RuntimeWarning, stacklevel=3) if warn else _log.warning(what)
                except mp.NotFoundError:
                    continue  # deleted since it was listed
        return found

    def _opened(self) -> mp.Catalog | None:
        try:
            catalog = mp.open(self._owner.rank_path)
        except mp.NotFoundError:
            return self._check_neighbours()
        if (there := catalog.metadata) != self._identity:
            raise CheckpointError(
                f"{self._owner.rank_path} belongs to another run: {there}; this is {self._identity}\n"
                "  Open it with the same name and the same number of processes, or give this run another path."
            )
        return catalog

    def _check_neighbours(self) -> None:
        """Refuse to begin anew beside rows that the user most likely means."""
        if (self._owner.rank_path / "catalog.json").exists() or (self._owner.rank_path / "commits").is_dir():
            raise CheckpointError(
                f"{self._owner.rank_path} was written by Earth2Studio itself\n"
                "  Give this run another path; the documentation of this door shows how to bring the rows along."
            )
        for other in [self._owner.path, *sorted(self._owner.path.glob("rank_*"))] if self._owner.path.is_dir() else []:
            with suppress(mp.NotFoundError):
                if (size := mp.open(other).metadata.get("world_size")) != self._owner.world_size:
                    raise CheckpointError(
                        f"{self._owner.path} was written by {size} processes, and this is one of"
                        f" {self._owner.world_size}\n  Use the same number, or give this run another path."
                    )

    def _entry(self, row: mp.Checkpoint) -> CheckpointEntry:
        record = record_of(row)
        found: dict[str, Any] = dict(record["metadata"])
        if record["leaves"]:
            found |= load_value(row.at("metadata"))
        metadata: dict[str, Any] = {name: found[name] for name in record["names"]}
        return CheckpointEntry(
            record["commit_id"], dict(record["labels"]), metadata, tuple(metadata), record["write_count"],
            row.created.isoformat(), record["rank"], record["world_size"], tuple(record["states"]),
        )  # fmt: skip

    @contextmanager
    def writing(self) -> Generator[None]:
        """Keep the writer's lock from the first commit within to the end, whoever else needs it too."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0 and self._saver is not None:
                self._saver.close()
                self._saver = None

    def commit(self, record: Mapping[str, Any], metadata: Mapping[str, Any], states: Mapping[str, Any]) -> _Row:
        """Make a row, durable when this returns."""
        small = {name: value for name, value in metadata.items() if _is_small(value)}
        large = {name: value for name, value in metadata.items() if name not in small}
        with self.writing(), translated():
            tree = {"states": dict(states), "metadata": stored(large, "metadata")}
            own = {"mode": self._owner.mode, "rank": self._owner.rank, "world_size": self._owner.world_size}
            full = {**record, **own, "metadata": small, "names": list(metadata), "leaves": bool(large)}
            while True:
                try:
                    saver, step = self._next_step()
                    row = saver.save(step, tree, metadata={_RECORD: full}).result()
                    return self._entry(row), row
                except mp.ConflictError as error:
                    if error.code not in ("exists", "behind"):
                        raise  # else another thread took that step: take the next

    def _next_step(self) -> tuple[mp.Checkpointer, int]:
        self._saver = self._saver or self._open()
        try:
            latest = self._saver.catalog.latest()
            return self._saver, 0 if latest is None else latest.step + 1
        except mp.CorruptionError:  # damaged rows are no longer in the line, and stay as they are
            self._saver.close()
        rows = self.read(warn=False)
        self._saver = self._open(rows[-1][1] if rows else "nothing")
        return self._saver, max(self._saver.catalog, default=-1) + 1

    def _open(self, start: mp.Checkpoint | Literal["nothing"] | None = None) -> mp.Checkpointer:
        self._opened()
        keep = "all" if self._owner.history_size is None else _EachLabel(self._owner.history_size)
        # The folder may hold those of single ranks, too.
        return mp.Checkpointer(
            self._owner.rank_path, save="first", keep=keep, metadata=self._identity, resume_from=start, shared=True
        )
