# SPDX-License-Identifier: Apache-2.0
"""What runs in the background, and what is known of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Generic, Protocol, TypeVar, final

_log = logging.getLogger("milepost")
_T = TypeVar("_T")
_R_co = TypeVar("_R_co", covariant=True)


class AsyncResponse(Protocol[_R_co]):
    """An operation that goes on in the background."""

    def result(self, timeout: float | None = None) -> _R_co:
        """Wait, and return what it gave or raise what went wrong; TimeoutError when it is not over in time."""
        ...

    def on_complete(self, callback: Callable[[Any], None]) -> None:
        """Call the function with the result when it is over, at once when it is over already; not when it failed."""
        ...


@final
class Response(Generic[_T]):
    """An operation that somebody finishes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._value: list[_T] = []
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._finisher: threading.Thread | None = None
        self.told = False
        """Whether `result` has raised the error."""

    def done(self) -> bool:
        return self._over.is_set()

    def result(self, timeout: float | None = None) -> _T:
        inside = self._finisher is threading.current_thread()  # a callback asks
        if not inside and not self._over.wait(timeout):
            raise TimeoutError(f"{self._what} is not over after {timeout:g} s")
        if self._error is not None:
            self.told = True
            raise self._error
        return self._value[0]

    def on_complete(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if self._finisher is None:
                self._callbacks.append(callback)
                return
        self._call(callback)

    def finish(self, value: _T | None = None, error: BaseException | None = None) -> None:
        """Say how it ended. The callbacks have run when `result` returns."""
        with self._lock:
            self._value, self._error = [value], error  # pyright: ignore[reportAttributeAccessIssue] None where T is
            self._finisher = threading.current_thread()
        for callback in self._callbacks:
            self._call(callback)
        self._over.set()

    def _call(self, callback: Callable[[Any], None]) -> None:
        if self._error is not None:
            return
        try:
            callback(self._value[0])
        except Exception:  # noqa: BLE001 a callback's error is not the operation's, and has nobody else to go to
            _log.exception("a callback of %s failed", self._what)


def started(what: str, run: Callable[[], _T]) -> Response[_T]:
    """Run a function on a thread of its own, in the caller's context. The interpreter waits for it at its exit."""
    response = Response[_T](what)

    def finished() -> None:
        try:
            value = run()
        except BaseException as error:  # noqa: BLE001 handed to whoever asks for the result
            response.finish(error=error)
        else:
            response.finish(value)

    threading.Thread(target=copy_context().run, args=(finished,), name=what).start()
    return response
