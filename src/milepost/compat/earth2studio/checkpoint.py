# SPDX-License-Identifier: Apache-2.0
"""The catalog of one run's rows, and the bind of a state to whatever is current."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from milepost.compat.earth2studio.entry import CheckpointEntry, CheckpointLevel, table
from milepost.compat.earth2studio.environment import default_checkpoint_path, environment, rank_and_size
from milepost.compat.earth2studio.errors import CheckpointStateCollision
from milepost.compat.earth2studio.rows import Rows
from milepost.compat.earth2studio.session import CheckpointSession, current_session, proxy_of
from milepost.compat.earth2studio.state import CheckpointState, PendingCheckpointState

T = TypeVar("T")
_current: ContextVar[Checkpoint | None] = ContextVar("milepost.earth2studio.checkpoint", default=None)


@final
class Checkpoint:
    """The restart rows of one inference run, and the current checkpoint of the context once it is made.

    Args:
        name: the run's; a path that holds another run is refused.
        path: the folder; by default one in the cache, by the name.
        mode: `overwrite` keeps the latest row, `append` several.
        flush_interval: writes between commits, counted over the whole run; None: only `flush` commits.
        history_size: how many rows `append` keeps, None for all.
        level: 0 saves what the workflow writes, 1 also what restarts a work item, 2 what goes on inside a rollout.
        rank, world_size: this process and how many there are; found out when None.
        device: where components stage what they want saved.
        on_schema: `lenient` restores a state with added fields that have a default, with a warning.

    Raises:
        ValueError: an argument is out of range, or only one of rank and world size is known.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str] | None = None,
        mode: Literal["overwrite", "append"] = "overwrite",
        flush_interval: int | None = 1,
        history_size: int | None = None,
        level: CheckpointLevel = 2,
        rank: int | None = None,
        world_size: int | None = None,
        device: Any = "cpu",
        *,
        on_schema: Literal["strict", "lenient"] = "strict",
    ) -> None:
        _check(mode, flush_interval, history_size, level)
        if on_schema not in ("strict", "lenient"):
            raise ValueError(f"on_schema={on_schema!r}: expected 'strict' or 'lenient'")
        self.name = name
        self.path = default_checkpoint_path(name) if path is None else Path(path)
        self.mode: Literal["overwrite", "append"] = mode
        self.flush_interval = flush_interval
        self.history_size = 1 if mode == "overwrite" else history_size
        self.level: CheckpointLevel = level
        self.rank, self.world_size = rank_and_size(rank, world_size, environment())
        self.on_schema: Literal["strict", "lenient"] = on_schema
        self._device = device
        self.pending: dict[str, PendingCheckpointState] = {}
        """States bound while no session was active, for the next one."""
        self.rows = Rows(
            self.path, self.rank_path, name=name, mode=mode, history_size=self.history_size, rank=self.rank,
            size=self.world_size,
        )  # fmt: skip
        """The rows of this process on disk."""
        self._entered: list[CheckpointSession] = []
        _current.set(self)

    @property
    def device(self) -> Any:
        """Where components stage what they want saved: a device of PyTorch when the program uses that."""
        torch: Any = sys.modules.get("torch")
        return self._device if torch is None else torch.device(self._device)

    @property
    def rank_path(self) -> Path:
        """The folder of this process's rows."""
        return self.path if self.world_size == 1 else self.path / f"rank_{self.rank:06d}"

    @property
    def catalog(self) -> tuple[CheckpointEntry, ...]:
        """The committed rows of this process, in their order; read anew each time."""
        return tuple(entry for entry, _ in self.rows.read())

    @property
    def active(self) -> CheckpointSession | None:
        """The session of the enclosing `with`, if it is one of this object."""
        session = current_session.get()
        return session if session is not None and session.catalog is self else None

    def refresh(self) -> None:
        """Do nothing: rows are read anew whenever they are asked for."""

    def select(self, row: int) -> CheckpointSession:
        """Return a session that goes on from a row.

        Args:
            row: its place in the catalog; negative ones count from the end.

        Raises:
            IndexError: there is no such row.
        """
        entries = self.catalog
        if not entries:
            raise IndexError("No checkpoint entries match this selection.")
        return CheckpointSession(self, entries[row])

    def __enter__(self) -> CheckpointSession:
        session = self.active
        if session is None:
            session = self.select(-1) if self.catalog else CheckpointSession(self)
        self._entered.append(session)
        try:
            return session.__enter__()
        except BaseException:
            self._entered.pop()
            raise

    def __exit__(self, *error: object) -> None:
        session: AbstractContextManager[Any] = self._entered.pop()
        session.__exit__(None, None, None)

    def __repr__(self) -> str:
        lines = [
            f'Checkpoint("{self.name}")',
            f"path: {self.path}",
            f"mode: {self.mode}",
            f"level: {self.level}",
            f"rank: {self.rank}/{self.world_size}",
        ]
        entries = self.catalog
        if not entries:
            return "\n".join([*lines, "catalog: empty"])
        return "\n".join([*lines, "", *table(entries)])


def bind_checkpoint_state(state: T, *, name: str | None = None) -> CheckpointState[T]:
    """Bind a component's state to the active session, else to the current checkpoint, else to nothing.

    Args:
        state: a dataclass, which is restored in place when there is something to restore.
        name: saves the state under this name instead of its class's: two of one class need it.

    Raises:
        TypeError: it is no dataclass instance.
        CheckpointStateCollision: another state has the same name.
    """
    session = current_session.get()
    if session is not None:
        return session.bind(state, name=name)
    proxy = proxy_of(state, name)
    checkpoint = _current.get()
    if checkpoint is None:
        return proxy
    there = checkpoint.pending.get(proxy.checkpoint_state_id)
    if there is not None and there.state.checkpoint_dataclass is proxy.checkpoint_dataclass:
        return there.state
    if there is not None and not there.reusable:
        raise CheckpointStateCollision(
            f"a {there.state_id} waits for its session already\n"
            "  Bind the second one with a name: bind_checkpoint_state(state, name=...)."
        )
    proxy.checkpoint_attach(checkpoint, None)
    checkpoint.pending[proxy.checkpoint_state_id] = PendingCheckpointState(checkpoint, proxy.checkpoint_state_id, proxy)
    return proxy


def _check(mode: str, flush_interval: int | None, history_size: int | None, level: int) -> None:
    if mode not in ("overwrite", "append"):
        raise ValueError(f"mode={mode!r}: expected 'overwrite' or 'append'")
    if flush_interval is not None and flush_interval < 1:
        raise ValueError(f"flush_interval={flush_interval}: expected at least 1, or None")
    if history_size is not None and history_size < 1:
        raise ValueError(f"history_size={history_size}: expected at least 1, or None")
    if isinstance(level, bool) or level not in (0, 1, 2):
        raise ValueError(f"level={level!r}: expected 0, 1 or 2")
