# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run to save: they only set a flag, which the loop reads at its next step.

| signal | meaning |
|---|---|
| SIGTERM | save and stop (the scheduler takes the machine) |
| SIGUSR1 | save and go on |
| SIGUSR2 | save and stop |
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, final

_log = logging.getLogger("milepost")
_STOP = ("SIGTERM", "SIGUSR2")
_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2")


@final
class Signals:
    """The handlers of one Checkpointer. Handlers that were there before still run, and are put back by `close`."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Install the handlers; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            _log.warning("OnPreemption: not on the main thread, so no signal is heard; make the Checkpointer there")
            return
        for name in _NAMES:
            if (number := getattr(signal, name, None)) is not None:
                self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._received not in _STOP:  # a request to stop is not taken back by one to go on
            self._received = name
        before = self._before.get(number)
        if callable(before):
            before(number, frame)

    @property
    def received(self) -> str | None:
        """The name of the signal that asks for a save, None when there is none."""
        return self._received

    @property
    def stop(self) -> bool:
        """Whether the run is asked to stop after the save."""
        return self._received in _STOP

    def saved(self) -> None:
        """Say that a save was begun: a request to save and go on is done with."""
        if not self.stop:
            self._received = None

    def close(self) -> None:
        """Put the handlers back that were there before, unless somebody replaced ours."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before.clear()
