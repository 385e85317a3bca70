# SPDX-License-Identifier: Apache-2.0
"""The work items of a session as `milepost ls` shows them: labels, how far each is, what its last mark said."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from milepost.cli.output import NONE, columns, count, counted, plain
from milepost.errors import CorruptionError, FormatError
from milepost.items import ItemRow, item_roots, item_row, label_order

_BAR = 24


@dataclass(frozen=True, slots=True)
class Square:
    """One item: its row, or that it is damaged; then its labels are those of its folder, as text."""

    labels: Mapping[str, Any]
    row: ItemRow | None

    @property
    def state(self) -> str:
        """`done`, `begun` or `damaged`."""
        return "damaged" if self.row is None else "done" if self.row.done else "begun"


def squares(store: str) -> list[Square]:
    """Return the items of a session's root in the order of their labels; none for other roots."""
    return sorted(_squares(store), key=lambda square: label_order(square.labels))


def _squares(store: str) -> Iterator[Square]:
    for root in item_roots(store):
        try:
            row = item_row(root)
        except (CorruptionError, FormatError):
            parts = (part.partition("=") for part in os.path.basename(root).split(","))
            yield Square({name: urllib.parse.unquote(value) for name, _, value in parts}, None)
            continue
        if row is not None:
            yield Square(row.labels, row)


def squares_text(found: Sequence[Square]) -> list[str]:
    """Return the grid as lines: a row for each item, a bar as long as its marks beside those of the longest."""
    names = list(dict.fromkeys(name for square in found for name in square.labels))
    longest = max((square.row.marks for square in found if square.row is not None), default=0)
    head = [*(name.upper() for name in names), "MARKS", "", "STATE", "LAST MARK"]
    body = [_cells(square, names, longest) for square in found]

    def looks(line: int) -> Mapping[str, Any]:
        if not line:
            return {"bold": True}
        return {"fg": "red", "bold": True} if found[line - 1].state == "damaged" else {}

    done = sum(square.state == "done" for square in found)
    lines = columns([head, *body], right=range(len(names) + 1), style=looks, indent=" ")
    return [f" {counted(len(found), 'item')} · {count(done)} done", *lines]


def _cells(square: Square, names: Sequence[str], longest: int) -> list[str]:
    labels = [str(square.labels.get(name, NONE)) for name in names]
    if square.row is None:
        return [*labels, NONE, "", "DAMAGED", NONE]
    marks, width = square.row.marks, min(longest, _BAR)
    full = marks * width // longest if longest else 0
    said = ", ".join(f"{name} {value}" for name, value in square.row.progress.items())
    return [*labels, str(marks), f"{'#' * full}{'.' * (width - full)}", square.state, said or NONE]


def squares_json(found: Sequence[Square]) -> list[dict[str, Any]]:
    """Return the grid for JSON."""
    return [
        {
            "labels": plain(dict(square.labels)), "state": square.state,
            "marks": None if square.row is None else square.row.marks,
            "progress": None if square.row is None else plain(square.row.progress),
        }
        for square in found
    ]  # fmt: skip
