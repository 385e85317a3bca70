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
_R = TypeVar("_R", covariant=True)


class AsyncResponse(Protocol[_R]):
    """An operation that goes on in the background."""

    def result(self, timeout: float | None = None) -> _R:
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
        self._told: Callable[[], None] | None = None

    def done(self) -> bool:
        return self._over.is_set()

    def result(self, timeout: float | None = None) -> _T:
        if not self._over.wait(timeout):
            raise TimeoutError(f"{self._what} is not over after {timeout:g} s")
        if self._error is not None:
            if self._told is not None:
                self._told()
            raise self._error
        return self._value[0]

    def on_complete(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._over.is_set():
                self._callbacks.append(callback)
                return
        self._call(callback)

    def on_told(self, callback: Callable[[], None]) -> None:
        """Call the function when the error is raised by `result`."""
        self._told = callback

    def finish(self, value: _T | None = None, error: BaseException | None = None) -> None:
        with self._lock:
            self._value, self._error = [value], error  # pyright: ignore[reportAttributeAccessIssue] None where T is
            callbacks, self._callbacks = self._callbacks, []
            self._over.set()
        for callback in callbacks:
            self._call(callback)

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
