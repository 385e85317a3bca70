# SPDX-License-Identifier: Apache-2.0
"""Whether a save is still wanted: it is given up or published, whichever comes first."""

from __future__ import annotations

import threading
from typing import final

from milepost.errors import SaveFailedError


@final
class Gate:
    """What every save goes through once, at the moment before it is published.

    Args:
        step: the step that is saved.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._cancelled = self._passed = False

    def cancel(self) -> bool:
        """Give the save up; False when it was published, or is being published."""
        with self._lock:
            self._cancelled = not self._passed
            return self._cancelled

    def check(self) -> None:
        """Raise SaveFailedError `cancelled` when the save was given up; asked between two long pieces of work."""
        if self._cancelled:
            raise SaveFailedError(f"the save of step {self._step} was cancelled", code="cancelled")

    def enter(self) -> None:
        """Do as `check`; from now on it is too late to give up."""
        with self._lock:
            self.check()
            self._passed = True
