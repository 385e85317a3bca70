# SPDX-License-Identifier: Apache-2.0
"""Which row of a root a rollout goes on from: the newest whole one, or one that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

from milepost.catalog import Catalog
from milepost.checkpoint import Checkpoint
from milepost.errors import CorruptionError, NotFoundError
from milepost.model.value import encode, shown

Which: TypeAlias = int | Mapping[str, Any] | Checkpoint
"""A row: its place in the line as in a list, what its mark said, or the row itself (`catalog[step]`)."""


def row_at(catalog: Catalog, which: Which) -> Checkpoint:
    """Return a row of the line that `latest` follows, or any row that is given as such.

    Args:
        catalog: the rows.
        which: its place, negative ones from the newest backwards; or some of what its mark said, where the newest row
            whose mark said so counts.

    Raises:
        NotFoundError: there is no such row.
        CorruptionError: it is damaged.
    """
    if isinstance(which, Checkpoint):
        return which
    if isinstance(which, Mapping):
        wanted = {name: encode(value) for name, value in which.items()}
        for row in _line(catalog, reversed(catalog)):
            if isinstance(row, Checkpoint) and _says(row.metadata["progress"], wanted):
                return row
        raise NotFoundError(f"{catalog!r} has no row whose mark said {shown(dict(which))}")
    steps, place = (catalog, which) if which >= 0 else (reversed(catalog), -which - 1)
    row = next(islice(_line(catalog, steps), place, None), None)
    if row is None:
        raise NotFoundError(f"{catalog!r} has no row {which}\n  Rows are counted as in a list: -1 is the newest.")
    if isinstance(row, CorruptionError):
        raise row
    return row


def newest_whole(catalog: Catalog, *, deep: bool = False) -> tuple[Checkpoint | None, bool]:
    """Return the newest whole row, None when there is none, and whether a newer one is damaged; a warning says so.

    Args:
        catalog: the rows; listed anew.
        deep: read all bytes of the row too, unless it is the end of an item.
    """
    try:
        latest = catalog.latest()
        return None if latest is None else _checked(latest, deep), False
    except CorruptionError as error:
        damage = str(error).partition("\n")[0]
    found = None
    for row in _line(catalog, reversed(catalog)):
        try:
            found = _checked(row, deep)
            break
        except CorruptionError:
            continue
    then = "no row is whole, so it begins anew" if found is None else f"it goes on from its row {found.step}"
    warnings.warn(f"{damage}; {then}. Nothing was deleted", RuntimeWarning, stacklevel=2)
    return found, True


def _line(catalog: Catalog, steps: Iterable[int]) -> Iterator[Checkpoint | CorruptionError]:
    """Yield the rows in the line, a damaged one as its error, as only what can be read says that it is out of it."""
    for step in steps:
        try:
            row = catalog[step]
            if not row.info.superseded:
                yield row
        except CorruptionError as error:
            yield error
        except NotFoundError:
            continue  # retired since it was listed


def _checked(row: Checkpoint | CorruptionError, deep: bool) -> Checkpoint:
    if isinstance(row, CorruptionError):
        raise row
    ended = row.metadata.get("done")  # the notes are read, so that a damaged one is found here
    if deep and not ended:
        row.verify()
    return row


def _says(progress: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in progress and encode(progress[name]) == value for name, value in wanted.items())
