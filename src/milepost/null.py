# SPDX-License-Identifier: Apache-2.0
"""A session that saves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from milepost.component import Level


@final
class NullSession:
    """The verbs of a session, doing nothing."""

    catalog = None
    level = Level.PROGRESS
    resumed_from = None
    marks = 0
    stopping = False

    def __init__(self) -> None:
        self.progress: dict[str, Any] = {}

    def bind(self, name: str, state: Any, *, level: Level | int = Level.ROLLOUT) -> Any:
        return state

    def restored(self, name: str) -> bool:
        return False

    def mark(self, **progress: Any) -> bool:
        self.progress = dict(progress)
        return False

    def commit(self) -> None:
        pass

    def pending(self, items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(labels) for labels in items]

    def items(self) -> list[Any]:
        return []

    def item(self, **labels: Any) -> _NullItem:
        return _NullItem(labels)

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> NullSession:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@final
class _NullItem:
    done = False
    resumed_from = None

    def __init__(self, labels: Mapping[str, Any]) -> None:
        self.labels = dict(labels)
        self.progress: dict[str, Any] = {}

    def __enter__(self) -> _NullItem:
        return self

    def __exit__(self, *_: object) -> None:
        pass
