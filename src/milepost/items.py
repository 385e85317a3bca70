# SPDX-License-Identifier: Apache-2.0
"""The work items of a session: where each has its root, how far it is, and what it goes on from. Reads only."""

from __future__ import annotations

import datetime as dt
import os
import re
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from milepost.catalog import open_catalog
from milepost.checkpoint import Checkpoint
from milepost.component import Level
from milepost.errors import CorruptionError, FormatError, NotFoundError, StorageError, StructureError
from milepost.line import START, level_of
from milepost.model.value import value_type
from milepost.rows import Which, newest_whole, row_at
from milepost.stores import open_store

_FOLDER, _DONE = "items", "done"
_LABEL = re.compile(r"(u?int|float|bool|str|date|datetime|datetime64|timedelta64)\d*(\[\w+\])?")


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One work item of a session.

    Attributes:
        labels: which item.
        done: whether it is finished.
        marks: how many marks it had when it was last saved.
        progress: what its last saved mark said.
        damaged: whether a newer row of it is damaged; `done` and the others then tell of the newest whole one.
    """

    labels: dict[str, Any]
    done: bool
    marks: int
    progress: dict[str, Any]
    damaged: bool = False


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


# Which items are done is said twice: by the last row of each, which is what counts; and beside them by a file each, so
# that thousands of finished items are told by two listings. The file is made after the row, and goes before the item is
# done again.


def done_items(where: str) -> frozenset[str]:
    """Return the roots of the items that are known to be done without a look at their rows. Cost: two listings."""
    store = open_store(where)
    there = {found.key.removeprefix(f"{_FOLDER}/") for found in store.list(f"{_FOLDER}/", delimiter="/")}
    done = {found.key.removeprefix(f"{_DONE}/") for found in store.list(f"{_DONE}/", delimiter="/")}
    return frozenset(os.path.join(where, _FOLDER, name.rstrip("/")) for name in there & done)


def say_done(where: str, root: str) -> None:
    """Say that an item of a session is done; its last row is there."""
    open_store(where).put(f"{_DONE}/{os.path.basename(root)}/done", [b""], mode="overwrite")


def say_begun(where: str, root: str) -> None:
    """Say no longer that an item is done."""
    store, folder = open_store(where), f"{_DONE}/{os.path.basename(root)}/"
    if any(True for _ in store.list(folder)):
        store.retire(folder)


def item_row(where: str) -> ItemRow | None:
    """Return how far the item with this root is, None when it has no row yet.

    Raises:
        CorruptionError: its newest row is damaged.
    """
    try:
        latest = open_catalog(where).latest()
    except NotFoundError:
        return None  # being made
    return _row_of(latest)


def whole_item_row(where: str) -> ItemRow | None:
    """Return how far an item is by its newest whole row, with a warning when that is not its newest one.

    When no row is whole, the labels are those of its folder, as text.
    """
    try:
        row, damaged = newest_whole(open_catalog(where))
    except NotFoundError:
        return None
    except (CorruptionError, FormatError, StorageError) as error:  # who enters it is told so as an error
        what = str(error).partition("\n")[0]
        warnings.warn(f"{what}; this item counts as not begun", RuntimeWarning, stacklevel=2)
        row, damaged = None, True
    if row is not None or not damaged:
        return _row_of(row, damaged=damaged)
    parts = (part.partition("=") for part in os.path.basename(where).split(","))
    return ItemRow({name: urllib.parse.unquote(value) for name, _, value in parts}, False, 0, {}, damaged=True)


def _row_of(row: Checkpoint | None, *, damaged: bool = False) -> ItemRow | None:
    if row is None or "labels" not in row.metadata:
        return None
    data = row.metadata
    done = bool(data["done"])  # the end counts as a mark
    return ItemRow(dict(data["labels"]), done, row.step - done, dict(data["progress"]), damaged)


@dataclass(frozen=True, slots=True)
class ItemStart:
    """What an item goes on from.

    Attributes:
        row: its row, None for its beginning.
        anew: whether it begins beside rows that are no use, as they are damaged.
        done: whether there is nothing left to do.
    """

    row: Checkpoint | None = None
    anew: bool = False
    done: bool = False


def item_start(where: str, labels: Mapping[str, Any], which: Which | None = None) -> ItemStart:
    """Return what an item goes on from, all of its bytes read.

    Args:
        where: the item's root.
        labels: which item it should be.
        which: the row that is asked for, instead of the newest whole one.

    Raises:
        StructureError: the root is another item's, or the row does not hold all that is needed.
        NotFoundError, CorruptionError: the row that is asked for is not there, or damaged.
    """
    try:
        catalog = open_catalog(where)
    except NotFoundError:
        if which is None:
            return ItemStart()
        raise
    row, damaged = newest_whole(catalog, deep=True) if which is None else (row_at(catalog, which), False)
    if row is None:
        return ItemStart(anew=damaged)
    if row.metadata["labels"] != dict(labels):
        raise StructureError(
            f"{where} belongs to the item {row.metadata['labels']}, not {dict(labels)}\n"
            "  Give each label one type: 3 and '3' have the same folder."
        )
    if which is not None:
        if level_of(row) != Level.ROLLOUT and row.step != START:
            raise StructureError(f"{row!r} was saved without all its state\n  Choose the item's row {START}.")
        return ItemStart(row)
    if row.metadata["done"]:
        return ItemStart(row, done=True)
    if level_of(row) == Level.ROLLOUT:
        return ItemStart(row)
    try:  # it starts again from its beginning
        first = catalog.get(START, row)
        first.verify()
    except CorruptionError as error:
        what = str(error).partition("\n")[0]
        warnings.warn(f"{what}; the item begins anew. Nothing was deleted", RuntimeWarning, stacklevel=3)
        return ItemStart(anew=True)
    return ItemStart(first)


def item_rows(where: str) -> list[ItemRow]:
    """Return all items that were begun, by their labels."""
    found = [row for root in item_roots(where) if (row := whole_item_row(root)) is not None]
    return sorted(found, key=lambda row: label_order(row.labels))


def label_order(labels: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return what sorts numbers as numbers, and never compares what cannot be compared."""
    return [
        (name, type(value).__name__, value if isinstance(value, int | float) else _label(value))
        for name, value in sorted(labels.items())
    ]
