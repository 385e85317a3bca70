# SPDX-License-Identifier: Apache-2.0
"""The names of `earth2studio.utils.checkpoint`, on milepost's engine.

Change one import: `from milepost.compat.earth2studio import Checkpoint`. A run's rows are checkpoints of milepost, one
root for each process, their step a counter. `docs/doors/earth2studio.md` says what is the same, and what is better.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from milepost.compat.earth2studio.rows import CheckpointEntry, CheckpointLevel, Rows, table
from milepost.compat.earth2studio.session import CheckpointSession, current_session, open_sessions
from milepost.compat.earth2studio.states import (
    CheckpointError,
    CheckpointSerializationError,
    CheckpointState,
    CheckpointStateCollision,
    CheckpointStateSchemaError,
    LoadedState,
    NullCheckpoint,
    PendingCheckpointState,
    collision,
    proxy_of,
    torch_device,
)
from milepost.group import launched, rank_and_size

__all__ = [
    "Checkpoint", "CheckpointEntry", "CheckpointError", "CheckpointLevel", "CheckpointSerializationError",
    "CheckpointSession", "CheckpointState", "CheckpointStateCollision", "CheckpointStateSchemaError", "LoadedState",
    "NullCheckpoint", "PendingCheckpointState", "bind_checkpoint_state", "default_checkpoint_path",
]  # fmt: skip

T = TypeVar("T")
_current: ContextVar[Checkpoint | None] = ContextVar("milepost.earth2studio.checkpoint", default=None)


def default_checkpoint_path(name: str) -> Path:
    """Return `$EARTH2STUDIO_CACHE/checkpoints/<name>`, or `~/.cache/earth2studio/checkpoints/<name>`."""
    cache = os.environ.get("EARTH2STUDIO_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "earth2studio") / "checkpoints" / name


def _detected() -> tuple[int | None, int | None]:
    """Return rank and size as PhysicsNeMo says, when the program has initialised it for several, else the launcher."""
    manager: Any = getattr(sys.modules.get("physicsnemo.distributed"), "DistributedManager", None)
    if manager is not None and manager.is_initialized() and (manager().world_size > 1 or manager().distributed):
        return int(manager().rank), int(manager().world_size)
    return launched(os.environ)


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
        _check(mode in ("overwrite", "append"), f"mode={mode!r}: expected 'overwrite' or 'append'")
        for told, count in (("flush_interval", flush_interval), ("history_size", history_size)):
            _check(count is None or count >= 1, f"{told}={count}: expected at least 1, or None")
        _check(type(level) is int and level in (0, 1, 2), f"level={level!r}: expected 0, 1 or 2")
        _check(on_schema in ("strict", "lenient"), f"on_schema={on_schema!r}: expected 'strict' or 'lenient'")
        if rank is None or world_size is None:
            found = _detected()
            rank, world_size = (found[0] if rank is None else rank), (found[1] if world_size is None else world_size)
        self.name, self.mode, self.level, self.on_schema = name, mode, level, on_schema
        self.path = default_checkpoint_path(name) if path is None else Path(path)
        self.flush_interval, self.history_size = flush_interval, 1 if mode == "overwrite" else history_size
        self.rank, self.world_size = rank_and_size(rank, world_size)
        self.pending: dict[str, PendingCheckpointState] = {}
        """States bound while no session was active, for the next one."""
        self._device = device
        self.rows = Rows(self)
        self._entered: list[CheckpointSession] = []
        _current.set(self)

    @property
    def device(self) -> Any:
        return torch_device(self._device)

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
        """Return a session that goes on from a row, by its place in the catalog.

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
            self._warn_of_others()
        entered = session.__enter__()
        self._entered.append(session)
        return entered

    def _warn_of_others(self) -> None:
        other = _current.get()
        waiting = [name for name, each in other.pending.items() if not each.reusable] if other is not None else []
        if other is not None and other is not self and waiting:
            warnings.warn(
                f"{', '.join(waiting)}: bound to {other.name!r}, the checkpoint that was made last, and not saved by"
                f" {self.name!r}\n  Make components inside the `with` of their checkpoint.",
                RuntimeWarning,
                stacklevel=3,
            )

    def __exit__(self, *error: object) -> None:
        self._entered.pop().__exit__(*error)

    def __repr__(self) -> str:
        told = {"path": self.path, "mode": self.mode, "level": self.level, "rank": f"{self.rank}/{self.world_size}"}
        head = [f'Checkpoint("{self.name}")', *(f"{name}: {value}" for name, value in told.items())]
        entries = self.catalog
        return "\n".join([*head, "", *table(entries)] if entries else [*head, "catalog: empty"])


def bind_checkpoint_state(state: T, *, name: str | None = None) -> CheckpointState[T]:
    """Bind a component's state to the active session, else to the current checkpoint, else to nothing.

    A thread, which starts without either, binds to the only session that is open.

    Args:
        state: a dataclass, which is restored in place when there is something to restore.
        name: saves the state under this name instead of its class's: two of one class need it.

    Raises:
        TypeError: it is no dataclass instance.
        CheckpointStateCollision: another state has the same name.
    """
    session, checkpoint = current_session.get(), _current.get()
    if session is None and checkpoint is None and len(open_sessions) == 1:
        session = open_sessions[0]
    if session is not None:
        return session.bind(state, name=name)
    proxy = proxy_of(state, name)
    if checkpoint is None:
        return proxy
    state_id = proxy.checkpoint_state_id
    there = checkpoint.pending.get(state_id)
    if there is not None and there.state.checkpoint_dataclass is proxy.checkpoint_dataclass:
        return there.state
    if there is not None and not there.reusable:
        raise collision(state_id)
    proxy.checkpoint_attach(checkpoint, None)
    checkpoint.pending[state_id] = PendingCheckpointState(checkpoint, state_id, proxy)
    return proxy


def _check(fine: bool, problem: str) -> None:
    if not fine:
        raise ValueError(problem)
