# SPDX-License-Identifier: Apache-2.0
"""A component of a rollout: how much of its state is asked for, pulled and given back."""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import Any

from milepost.adapters import provider_of
from milepost.checkpoint import Checkpoint
from milepost.errors import StructureError
from milepost.model import keypath


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
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {
            field.name: getattr(state, field.name)
            for field in dataclasses.fields(state)
            if field.metadata.get("level", Level.PROGRESS) <= level
        }
    return state


def restore(state: Any, view: Checkpoint, level: Level) -> None:
    """Put a component's saved state into it, in place."""
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        _restore_fields(state, view, level)
    elif isinstance(state, dict):
        saved = view.load(frameworks="saved")
        state.clear()  # pyright: ignore[reportUnknownMemberType]
        state.update(saved)  # pyright: ignore[reportUnknownMemberType]
    else:
        view.load_into(state)


def _restore_fields(state: Any, view: Checkpoint, level: Level) -> None:
    names = [each.name for each in dataclasses.fields(state) if each.metadata.get("level", Level.PROGRESS) <= level]
    saved = list(view.tree)
    if set(saved) != set(names):
        raise StructureError(
            f"{view!r}: the saved {type(state).__name__} has other fields\n"
            f"  Saved: {', '.join(saved)}. Here: {', '.join(names)}."
        )
    for name in names:
        part, value = view.at(keypath.segment(name)), getattr(state, name)
        if provider_of(value) is not None:
            part.load_into(value)
        else:
            # A frozen dataclass too: the caller holds this very object, so it is this one that is restored.
            object.__setattr__(state, name, part.load(frameworks="saved"))
