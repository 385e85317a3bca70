# SPDX-License-Identifier: Apache-2.0
"""What an `async_save` returns: it is waited for before the item is taken over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Future(Protocol):
    """Something that is still being done."""

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it, and return what came of it, or raise."""
        ...

    def cancel(self) -> bool | None:
        """Do nothing: what was begun is finished."""


class NoopFuture(Future):
    """Nothing is to be waited for."""

    def result(self, timeout: float | None = None) -> Any:
        return None


class ChainedFuture(Future):
    """Several at once, and a function to call when all are done."""

    def __init__(self, futures: Sequence[Future], cb: Callable[[], None]) -> None:
        self._futures, self._cb = futures, cb

    def result(self, timeout: float | None = None) -> Any:
        for future in self._futures:
            future.result(timeout)
        self._cb()


class CommitFutureAwaitingContractedSignals(Future):
    """A coroutine that runs on a thread of its own. There are no signals to wait for: folders are there."""

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        send_signals: Sequence[Any] | None = None,
        timeout_secs: int | None = None,
        operation_id: str | None = None,
    ) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(coro,), name=name)
        self._thread.start()

    def _run(self, coro: Coroutine[Any, Any, Any]) -> None:
        try:
            self._result = asyncio.run(coro)
        except BaseException as error:  # noqa: BLE001 raised by `result`
            self._error = error

    def result(self, timeout: float | None = None) -> Any:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"not done after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._result
