# SPDX-License-Identifier: Apache-2.0
"""A catalog as a table: one row for each step, as text or HTML."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `ls`: a checkpoint, or an attempt that is not committed.

    Attributes:
        step, slot: which.
        state: `committed`, `superseded`, `incomplete` or `damaged`.
        created: when it was committed, UTC.
        nbytes, new_nbytes: bytes of its arrays, and of the files that this save wrote.
        metrics: as given.
        saved_because, kept_because: reasons; the second is empty when nothing keeps it.
    """

    step: int
    slot: str
    state: Literal["committed", "superseded", "incomplete", "damaged"]
    created: dt.datetime | None = None
    nbytes: int = 0
    new_nbytes: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    saved_because: str = ""
    kept_because: str = ""


def text(found: Sequence[Row]) -> str:
    """Return the rows as aligned text: step, age, size, metrics, why saved, why kept."""
    table = cells(found)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    right = len(table[0]) - 2
    lines = [
        "  ".join(
            cell.rjust(width) if column < right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join(lines)


def html(found: Sequence[Row]) -> str:
    """Return the rows as an HTML table."""
    import html as markup

    head, *body = cells(found)
    lines = ["".join(f"<th>{markup.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{markup.escape(cell)}</td>" for cell in row) for row in body]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def cells(found: Sequence[Row]) -> list[list[str]]:
    """Return the head and the rows as cells of text, control characters made visible."""
    names = list(dict.fromkeys(name for row in found for name, value in row.metrics.items() if _is_number(value)))[:4]
    head = ["STEP", "AGE", "SIZE", "NEW", *names, "SAVED BECAUSE", "KEPT BECAUSE"]
    body = [
        [
            str(row.step),
            "–" if row.created is None else age(row.created),
            "–" if row.created is None else size(row.nbytes),
            "–" if row.created is None else size(row.new_nbytes),
            *(f"{row.metrics[name]:.6g}" if _is_number(row.metrics.get(name)) else "–" for name in names),
            row.saved_because or "–",
            row.kept_because if row.state == "committed" else _state(row),
        ]
        for row in found
    ]
    return [["".join(c if c.isprintable() else "·" for c in cell) for cell in row] for row in [head, *body]]


def _state(row: Row) -> str:
    if row.state == "incomplete":
        return "incomplete – ignored by resume"
    return " · ".join(filter(None, [row.state, row.kept_because if row.state == "superseded" else ""]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def age(created: dt.datetime) -> str:
    """Return the time since then in its largest unit: `2m`, `5h`, `3d`."""
    seconds = max(0.0, (dt.datetime.now(dt.UTC) - created).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(nbytes: float) -> str:
    """Return bytes in IEC units: `4.06 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"
