# SPDX-License-Identifier: Apache-2.0
"""A session that saves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from typing import Any, final

from milepost.component import Level

current: ContextVar[Any] = ContextVar("milepost.session", default=None)
"""The session of the enclosing `with`, this one too: what is bound within belongs to it."""


@final
class NullSession:
    """The verbs of a session, doing nothing."""

    catalog = None
    level = Level.PROGRESS
    resumed_from = None
    stopping = False

    def __init__(self) -> None:
        self.progress: dict[str, Any] = {}
        self.marks = 0
        self._tokens: list[Token[Any]] = []

    def bind(self, name: str, state: Any, *, level: Level | int = Level.ROLLOUT) -> Any:
        return state

    def restored(self, name: str) -> bool:
        return False

    def mark(self, **progress: Any) -> bool:
        self.progress = dict(progress)
        self.marks += 1
        return False

    def commit(self, *, reason: str | None = None) -> None:
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
        self._tokens.append(current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        current.reset(self._tokens.pop())


@final
class _NullItem:
    done = False
    resumed_from = None

    def __init__(self, labels: Mapping[str, Any]) -> None:
        self.labels = dict(labels)
        self.progress: dict[str, Any] = {}

    def from_row(self, which: Any) -> _NullItem:
        return self

    def __enter__(self) -> _NullItem:
        return self

    def __exit__(self, *_: object) -> None:
        pass
