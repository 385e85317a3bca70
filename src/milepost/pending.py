# SPDX-License-Identifier: Apache-2.0
"""A save in flight."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import final

from milepost.checkpoint import Checkpoint
from milepost.engine.anatomy import Anatomy
from milepost.engine.gate import Gate
from milepost.errors import ConflictError, SaveFailedError

_log = logging.getLogger("milepost")


@final
class PendingSave:
    """A save in flight.

    Attributes:
        step: the step.
        anatomy: where its time and bytes go; what is known so far while it is in flight.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.anatomy = Anatomy()
        self.gate = Gate(step)
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._checkpoint: Checkpoint | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[PendingSave], None]] = []
        self.reported = False
        self.pid = os.getpid()

    def done(self) -> bool:
        """Return whether the save is over, well or not."""
        return self._done.is_set()

    def result(self, timeout_s: float | None = None) -> Checkpoint:
        """Wait, and return the checkpoint or raise what went wrong.

        Raises:
            TimeoutError: it is not over after `timeout_s` seconds; the save goes on.
            SaveFailedError: `cancelled`, by `cancel`.
            CheckpointError: the save failed.
        """
        if os.getpid() != self.pid:
            raise ConflictError(f"step {self.step} is being saved by the parent of this process", code="forked")
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"the save of step {self.step} is not over after {timeout_s:g} s")
        if self._error is not None:
            self.reported = True
            raise self._error
        assert self._checkpoint is not None
        return self._checkpoint

    def cancel(self) -> bool:
        """Give the save up, and return whether that came in time: nothing of the step is ever visible then.

        `result` raises once what was written is removed; nobody else is told, as it is no failure. When it is too late,
        as the checkpoint is there, is being published, or failed, nothing changes.
        """
        return not self.done() and self.gate.cancel()

    def add_done_callback(self, fn: Callable[[PendingSave], None]) -> None:
        """Call `fn(self)` when the save is over, on the thread that ended it; at once when it is over already."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(fn)
                return
        fn(self)

    def finish(self, checkpoint: Checkpoint | None, error: BaseException | None) -> None:
        """Say how it ended; the Checkpointer calls this."""
        with self._lock:
            self._checkpoint, self._error = checkpoint, error
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for fn in callbacks:
            try:
                fn(self)
            except Exception:  # noqa: BLE001 a callback's error is not the save's, and has nobody else to go to
                _log.exception("a callback of the save of step %d failed", self.step)

    def __repr__(self) -> str:
        state = "being written" if not self.done() else "failed" if self.failed else "committed"
        if self.cancelled:
            state = "cancelled"
        return f"<PendingSave of step {self.step}, {state}>"

    @property
    def failed(self) -> bool:
        """Whether it is over and failed, or was cancelled."""
        return self._error is not None

    @property
    def cancelled(self) -> bool:
        """Whether it is over because it was cancelled."""
        return isinstance(self._error, SaveFailedError) and self._error.code == "cancelled"
