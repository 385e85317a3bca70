# SPDX-License-Identifier: Apache-2.0
"""One row of a catalog, its record in the native checkpoint's metadata, and the table that shows many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np

CheckpointLevel: TypeAlias = Literal[0, 1, 2]


@dataclass(frozen=True)
class CheckpointEntry:
    """One committed row.

    Attributes:
        commit_id: the row's name, never used twice.
        labels: which work item the row belongs to.
        metadata: what the workflow wrote, with its types.
        metadata_keys: the names in `metadata`.
        write_count: how many writes there were when the row was committed.
        saved_at: when, UTC, ISO 8601.
        rank: the process that wrote it.
        world_size: of how many.
        state_ids: the component states in it.
    """

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
        """The lead time that the workflow wrote, None when it wrote none."""
        return self.metadata.get("lead_time")

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Another name of `metadata_keys`."""
        return self.metadata_keys


def table(entries: Sequence[CheckpointEntry]) -> list[str]:
    """Return the rows as lines of an aligned table."""
    labels = sorted({name for entry in entries for name in entry.labels})
    names = sorted({name for entry in entries for name in entry.metadata})
    lines = [["id", *labels, *names, "write_count", "saved_at"]]
    for index, entry in enumerate(entries):
        cells = [shown(entry.labels.get(name)) for name in labels] + [shown(entry.metadata.get(name)) for name in names]
        lines.append([str(index), *cells, str(entry.write_count), entry.saved_at])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def shown(value: Any) -> str:
    """Return a value for a table: lead times in the largest whole unit up to hours, arrays by dtype and shape."""
    if value is None:
        return ""
    if isinstance(value, np.timedelta64):
        return _span(cast("np.timedelta64[Any]", value))
    shape = getattr(value, "shape", ())
    if shape:
        return f"{value.dtype}{list(shape)}"
    text = str(value)
    return text if len(text) <= 32 else f"{text[:31]}…"


def _span(value: np.timedelta64[Any]) -> str:
    if np.isnat(value) or np.datetime_data(value.dtype)[0] in ("generic", "Y", "M"):
        return str(value)
    for unit in ("h", "m", "s", "ms", "us"):
        count = float(value / np.timedelta64(1, unit))
        if math.isclose(count, round(count), rel_tol=0, abs_tol=1e-9):
            return str(np.timedelta64(round(count), unit))
    return str(value)
