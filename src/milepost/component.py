# SPDX-License-Identifier: Apache-2.0
"""A component of a rollout: how much of its state is asked for, pulled and given back."""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import Any, cast

from milepost.checkpoint import Checkpoint
from milepost.errors import StructureError
from milepost.state import fields_of, restore_dict, restore_fields, stored_dict


class Level(IntEnum):
    """How much component state a session asks for."""

    PROGRESS = 0
    """Progress alone: an interrupted item starts again, with the components as the program makes them."""
    ITEM = 1
    """What an item needs to start again: random states as they were when it began."""
    ROLLOUT = 2
    """What a rollout needs to go on from its last mark."""


def pulled(state: Any, level: Level) -> Any:
    """Return the part of a component's state that a level asks for, as a tree."""
    if _has_fields(state):
        return fields_of(state, _asked_for(state, level))
    return stored_dict(cast("dict[Any, Any]", state)) if isinstance(state, dict) else state


def restore(state: Any, view: Checkpoint, level: Level) -> None:
    """Put a component's saved state into it, in place.

    Raises:
        StructureError: it has other fields now, or lacks what is to be restored in place.
    """
    if _has_fields(state):
        names, saved = _asked_for(state, level), list(view.tree)
        if set(saved) != set(names):
            raise StructureError(
                f"{view!r}: the saved {type(state).__name__} has other fields\n"
                f"  Saved: {', '.join(saved)}. Here: {', '.join(names)}."
            )
        restore_fields(state, view, names)
    elif isinstance(state, dict):
        restore_dict(cast("dict[Any, Any]", state), view)
    else:
        view.load_into(state)


def _has_fields(state: object) -> bool:
    return dataclasses.is_dataclass(state) and not isinstance(state, type)


def _asked_for(state: Any, level: Level) -> list[str]:
    fields = dataclasses.fields(state)
    return [field.name for field in fields if field.metadata.get("level", Level.PROGRESS) <= level]
