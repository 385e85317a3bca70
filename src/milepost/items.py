# SPDX-License-Identifier: Apache-2.0
"""The work items of a session: where each has its root, and how far it is. Reads only, and needs no session."""

from __future__ import annotations

import datetime as dt
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from milepost.catalog import open_catalog
from milepost.errors import NotFoundError
from milepost.model.value import value_type
from milepost.stores import open_store

_FOLDER = "items"
_LABEL = re.compile(r"(u?int|float|bool|str|date|datetime|datetime64|timedelta64)\d*(\[\w+\])?")


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One work item of a session.

    Attributes:
        labels: which item.
        done: whether it is finished.
        marks: how many marks it had when it was last saved.
        progress: what its last saved mark said.
    """

    labels: dict[str, Any]
    done: bool
    marks: int
    progress: dict[str, Any]


def item_where(where: str, labels: Mapping[str, Any]) -> str:
    """Return the root of an item: below the session's, named by its labels in order, percent-encoded."""
    if not labels:
        raise ValueError("an item needs labels, such as member=3")
    parts = [f"{name}={urllib.parse.quote(_label(value), safe='')}" for name, value in sorted(labels.items())]
    return os.path.join(where, _FOLDER, ",".join(parts))


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value
    if _LABEL.fullmatch(value_type(value) or "") is None:
        raise ValueError(f"a label is text, a number or a date, not a {type(value).__name__}: {value!r}")
    return value.isoformat() if isinstance(value, dt.date) else str(value)


def item_roots(where: str) -> Iterator[str]:
    """Yield the roots of the items that were begun below a session's root."""
    for found in open_store(where).list(f"{_FOLDER}/", delimiter="/"):
        if found.key.endswith("/"):
            yield os.path.join(where, found.key.rstrip("/"))


def item_row(where: str) -> ItemRow | None:
    """Return how far the item with this root is, None when it has no row yet.

    Raises:
        CorruptionError: its newest row is damaged.
    """
    try:
        latest = open_catalog(where).latest()
    except NotFoundError:
        return None  # being made
    if latest is None or "labels" not in latest.metadata:
        return None
    data = latest.metadata
    done = bool(data["done"])
    return ItemRow(dict(data["labels"]), done, latest.step - done, dict(data["progress"]))  # the end counts as a mark


def item_rows(where: str) -> list[ItemRow]:
    """Return all items that were begun, by their labels."""
    found = [row for root in item_roots(where) if (row := item_row(root)) is not None]
    return sorted(found, key=lambda row: label_order(row.labels))


def label_order(labels: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return what sorts numbers as numbers, and never compares what cannot be compared."""
    return [
        (name, type(value).__name__, value if isinstance(value, int | float) else _label(value))
        for name, value in sorted(labels.items())
    ]
