# SPDX-License-Identifier: Apache-2.0
"""Refuse what belongs to another run or model, by its metadata, with the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from milepost.errors import StructureError, folded, message
from milepost.model.value import encode, shown

_LINES = 12


def check_metadata(what: str, there: Mapping[str, Any], here: Mapping[str, Any], remedy: str) -> None:
    """Compare metadata that is there with what is here, value by value.

    Raises:
        StructureError: code `metadata`, they differ; the message has every difference.
    """
    lines = list(_differences("", there, here))
    if lines:
        more = [f"… and {len(lines) - _LINES} more"] * (len(lines) > _LINES)
        raise StructureError(message(what, remedy="\n  ".join([*lines[:_LINES], *more, remedy])), code="metadata")


def _differences(path: str, there: Any, here: Any) -> Iterator[str]:
    if _are(Mapping, there, here):
        for name in dict.fromkeys([*there, *here]):
            inner = f"{path}.{name}" if path else str(name)
            if name not in here:
                yield f"{inner}: there {shown(there[name])}, here nothing"
            elif name not in there:
                yield f"{inner}: there nothing, here {shown(here[name])}"
            else:
                yield from _differences(inner, there[name], here[name])
    elif encode(there) != encode(here):
        text = _uncommon(there, here) if _are(list, there, here) else ""
        yield f"{path}: {text or f'there {shown(there)}, here {shown(here)}'}"


def _are(kind: type, *values: object) -> bool:
    return all(isinstance(value, kind) for value in values)


def _uncommon(there: list[Any], here: list[Any]) -> str:
    """Return what only one of two lists has; nothing when they differ in order or number alone."""
    old, new = [encode(item) for item in there], [encode(item) for item in here]
    gone = [shown(item) for item, data in zip(there, old, strict=True) if data not in new]
    added = [shown(item) for item, data in zip(here, new, strict=True) if data not in old]
    sides = (("there", gone), ("here", added))
    return "; ".join(f"{side} alone {folded(items, 6)}" for side, items in sides if items)
