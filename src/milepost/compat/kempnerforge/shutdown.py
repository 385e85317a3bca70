# SPDX-License-Identifier: Apache-2.0
"""Requests to stop."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, final


@final
class ShutdownHandler:
    """Hears SIGTERM and SIGUSR1 from `register` on: sets a flag, ends the process after `timeout_sec` (0: never)."""

    def __init__(self, timeout_sec: float = 600) -> None:
        self._timeout_s = timeout_sec
        self.signal_received: signal.Signals | None = None
        self._timer: threading.Timer | None = None
        self._before: dict[int, Any] = {}

    @property
    def shutdown_requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self.signal_received is not None

    def should_shutdown(self) -> bool:
        """Return whether the process was asked to stop; ask after each step."""
        return self.shutdown_requested

    def register(self) -> None:
        """Install the handlers; only the main thread can. Twice is once."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            if number not in self._before:
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, _: Any) -> None:
        self.signal_received = signal.Signals(number)
        if self._timer is None and self._timeout_s > 0:
            self._timer = threading.Timer(self._timeout_s, os._exit, [1])
            self._timer.daemon = True
            self._timer.start()

    def finish(self) -> None:
        """Say that all is saved: no forced end any more, and the handlers of before are back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()

    def unregister(self) -> None:
        """As `finish`."""
        self.finish()
