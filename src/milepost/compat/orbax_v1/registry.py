# SPDX-License-Identifier: Apache-2.0
"""Which handler takes which object: the protocols of handlers, their registries, and the choice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from milepost.compat.orbax_v1.path.types import PathAwaitingCreation

_T = TypeVar("_T")
_C = TypeVar("_C")
_A = TypeVar("_A")


class Checkpointable:
    """Anything that can be saved under a name."""


class AbstractCheckpointable:
    """What says how a checkpointable is to be loaded."""


@runtime_checkable
class StatefulCheckpointable(Protocol):
    """An object that saves and loads itself, as files."""

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """Take the state, and return what writes it into `await directory.await_creation()`."""
        ...

    async def load(self, directory: Path) -> Awaitable[None]:
        """Return what reads the state from the folder."""
        ...


class CheckpointableHandler(Protocol[_C, _A]):
    """Saves and loads objects of one type, as files."""

    async def save(self, directory: PathAwaitingCreation, checkpointable: _C) -> Awaitable[None]:
        """Take what is to be saved, and return what writes it into `await directory.await_creation()`."""
        ...

    async def load(self, directory: Path, abstract_checkpointable: _A | None = None) -> Awaitable[_C]:
        """Return what reads the object from the folder."""
        ...

    async def metadata(self, directory: Path) -> _A:
        """Describe what is in the folder."""
        ...

    def is_handleable(self, checkpointable: Any) -> bool:
        """Return whether it takes that object."""
        ...

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Return whether it loads what that abstract object stands for; None when it does not matter."""
        ...


Handler = type[CheckpointableHandler[Any, Any]]
RegistryEntry = tuple[Handler, str | None]
_H = TypeVar("_H", bound=Handler)


class AlreadyExistsError(ValueError):
    """A handler, or a name, is registered already."""


class NoEntryError(KeyError):
    """No registered handler takes an object."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CheckpointableHandlerRegistry(Protocol):
    """Handlers in the order in which they were added; the one added last is asked first."""

    def add(
        self,
        handler_type: Handler,
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry: ...
    def get(self, checkpointable_name: str) -> Handler: ...
    def has(self, checkpointable_name: str) -> bool: ...
    def get_all_entries(self) -> Sequence[RegistryEntry]: ...
    def get_secondary_typestrs(self, handler_type: Handler) -> Sequence[str]: ...


@final
class _Registry:
    def __init__(self, *others: CheckpointableHandlerRegistry, read_only: bool = False) -> None:
        self._entries: list[RegistryEntry] = []
        self._typestrs: dict[Handler, Sequence[str]] = {}
        self._read_only = False
        for other in others:
            for handler, name in other.get_all_entries():
                typestrs = other.get_secondary_typestrs(handler)
                self.add(handler, checkpointable_name=name, secondary_typestrs=typestrs)
        self._read_only = read_only

    def add(
        self,
        handler_type: Handler,
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        if self._read_only:
            raise NotImplementedError(
                "a context's default registry takes no handlers\n"
                "  Set `context.checkpointables.registry = local_registry()` first, or use `register_handler`."
            )
        if not isinstance(handler_type, type):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"expected a handler class, found {handler_type!r}")
        if checkpointable_name and self.has(checkpointable_name):
            raise AlreadyExistsError(f"a handler for {checkpointable_name!r} is registered already")
        if not checkpointable_name and any(handler is handler_type for handler, _ in self._entries):
            raise AlreadyExistsError(f"{handler_type.__qualname__} is registered already")
        self._entries.append((handler_type, checkpointable_name))
        if secondary_typestrs is not None:
            self._typestrs[handler_type] = secondary_typestrs
        return self

    def get(self, checkpointable_name: str) -> Handler:
        for handler, name in self._entries:
            if name == checkpointable_name:
                return handler
        raise NoEntryError(f"no handler is registered for {checkpointable_name!r}")

    def has(self, checkpointable_name: str) -> bool:
        return any(name == checkpointable_name for _, name in self._entries)

    def get_all_entries(self) -> Sequence[RegistryEntry]:
        return self._entries

    def get_secondary_typestrs(self, handler_type: Handler) -> Sequence[str]:
        return self._typestrs.get(handler_type, [])

    def __repr__(self) -> str:
        return f"<registry of {[(handler.__qualname__, name) for handler, name in self._entries]}>"


_GLOBAL = _Registry()


def global_registry() -> CheckpointableHandlerRegistry:
    """Return the registry that every context starts from."""
    return _GLOBAL


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None, *, include_global_registry: bool = True
) -> CheckpointableHandlerRegistry:
    """Return a new registry with the handlers of the global one, then those of another."""
    others = [_GLOBAL] if include_global_registry else []
    return _Registry(*others, *([other_registry] if other_registry is not None else []))


def default_registry() -> CheckpointableHandlerRegistry:
    """Return what a context has until it is given another: the global handlers, to which none can be added."""
    return _Registry(_GLOBAL, read_only=True)


def register_handler(
    cls: _H, *, checkpointable_name: str | None = None, secondary_typestrs: Sequence[str] | None = None
) -> _H:
    """Add a handler to the global registry; as a decorator too."""
    _GLOBAL.add(cls, checkpointable_name=checkpointable_name, secondary_typestrs=secondary_typestrs)
    return cls


# Which handler takes which object.


def typestr(handler: Handler) -> str:
    """Return the name under which a handler is recorded."""
    return f"{handler.__module__}.{handler.__qualname__}"


def handler_for_save(registry: CheckpointableHandlerRegistry, value: Any, name: str) -> CheckpointableHandler[Any, Any]:
    """Return the handler that saves an object: itself, then by name, then the last added that takes it.

    Raises:
        NoEntryError: none takes it.
    """
    made = [(_made(handler), named) for handler, named in registry.get_all_entries()]
    able = [handler for handler, named in made if named is None and handler.is_handleable(value)]
    if isinstance(value, StatefulCheckpointable) and able:
        return able[-1]
    if registry.has(name):
        return _made(registry.get(name))
    if able:
        return able[-1]
    known = ", ".join(handler.__qualname__ for handler, _ in registry.get_all_entries())
    raise NoEntryError(
        f"no handler takes {name!r}, a {type(value).__qualname__}; there are {known}\n"
        "  Register one with `register_handler`, or give the object `save` and `load` (StatefulCheckpointable)."
    )


def handler_for_load(
    registry: CheckpointableHandlerRegistry, abstract: Any, name: str, recorded: str
) -> CheckpointableHandler[Any, Any]:
    """Return the handler that loads what the handler `recorded` has saved.

    Raises:
        NoEntryError: it is not registered, and none takes the abstract object.
    """
    named = _made(registry.get(name)) if registry.has(name) else None
    same = next(
        (
            _made(handler)
            for handler, _ in reversed(registry.get_all_entries())
            if recorded == typestr(handler) or recorded in registry.get_secondary_typestrs(handler)
        ),
        None,
    )
    stateful = isinstance(abstract, StatefulCheckpointable)
    for handler in (same, named) if stateful else (named, same):
        if handler is not None and (abstract is None or handler.is_abstract_handleable(abstract)):
            return handler
    if abstract is not None:
        for kind, only in reversed(registry.get_all_entries()):
            if only is None and (handler := _made(kind)).is_abstract_handleable(abstract):
                return handler
    if named is not None or same is not None:
        return named or same  # pyright: ignore[reportReturnType]
    raise NoEntryError(
        f"{name!r} was saved by {recorded}, which is not registered\n"
        "  Register it with `register_handler`, or in the context's `checkpointables.registry`."
    )


def _made(handler: Handler) -> CheckpointableHandler[Any, Any]:
    try:
        return handler()
    except TypeError as error:
        raise ValueError(f"{handler.__qualname__} cannot be made without arguments, as a handler must be") from error


def completed(call: Callable[[], Coroutine[Any, Any, Awaitable[_T]]]) -> _T:
    """Run both parts of a handler's coroutine, whether or not this thread has a running event loop."""
    outcome: list[_T] = []
    errors: list[BaseException] = []

    async def both() -> _T:
        return await (await call())

    def run() -> None:
        try:
            outcome.append(asyncio.run(both()))
        except BaseException as error:  # noqa: BLE001 raised again on the caller's thread
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="milepost-handler")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
