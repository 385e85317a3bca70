# SPDX-License-Identifier: Apache-2.0
"""The processes that save together."""

from __future__ import annotations

from typing import Protocol, final


class Group(Protocol):
    """Processes with a channel of their own; both verbs are safe off the caller's thread."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def gather(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> list[bytes] | None:
        """Return what every process gave under this tag, by rank, on process 0; None elsewhere. All must call it."""
        ...

    def broadcast(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> bytes:
        """Return what process 0 gave under this tag. Every process must call this."""
        ...


@final
class Solo:
    """A process that saves alone."""

    rank = 0
    size = 1

    def gather(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> list[bytes]:
        return [data]

    def broadcast(self, tag: str, data: bytes, *, timeout_s: float | None = None) -> bytes:
        return data
