# SPDX-License-Identifier: Apache-2.0
"""What a manager tells of its saves and restores, and to whom."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_log = logging.getLogger("milepost.compat.orbax")


class AbstractLogger(Protocol):
    """Takes one entry for each save and each restore."""

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Take an entry: the fields of a SaveStepStatistics or RestoreStepStatistics, by name."""
        ...


class StandardLogger(AbstractLogger):
    """Writes entries to Python's logging."""

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        given = {name: value for name, value in msg.items() if value is not None} if isinstance(msg, Mapping) else msg  # pyright: ignore[reportUnknownVariableType]
        _log.info("%s", given)  # pyright: ignore[reportUnknownArgumentType]


class CompositeLogger(AbstractLogger):
    """Hands entries on to several others."""

    def __init__(self, *loggers: AbstractLogger) -> None:
        self._loggers: Sequence[AbstractLogger] = loggers

    def log_entry(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        for logger in self._loggers:
            logger.log_entry(msg, *args, **kwargs)


@dataclass
class SaveStepStatistics:
    """How a save went, as far as it is known when `save` returns; times are seconds since 1970."""

    step: int | None = None
    event_type: str | None = "save"
    directory: str | None = None
    reached_preemption: bool | None = False
    preemption_received_at: float | None = None
    synchronous: bool | None = False
    wait_for_prev_start_time: float | None = None
    wait_for_prev_duration_secs: float | None = None
    time_between_consecutive_saves_sec: float | None = None
    checkpointer_blocking_start_time: float | None = None
    checkpointer_blocking_duration_secs: float | None = None
    get_old_steps_start_time: float | None = None
    get_old_steps_duration_secs: float | None = None
    checkpoint_manager_blocking_start_time: float | None = None
    checkpoint_manager_blocking_duration_secs: float | None = None


@dataclass
class RestoreStepStatistics:
    """How a restore went; times are seconds since 1970."""

    step: int | None = None
    event_type: str | None = "restore"
    directory: str | None = None
    checkpointer_start_time: float | None = None
    checkpointer_duration_secs: float | None = None
    checkpoint_manager_start_time: float | None = None
    checkpoint_manager_duration_secs: float | None = None
