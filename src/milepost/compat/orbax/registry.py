# SPDX-License-Identifier: Apache-2.0
"""Which handler takes which item."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, cast

from milepost.compat.orbax import args as args_lib
from milepost.compat.orbax.args import CheckpointArgs

Entries = MutableMapping[tuple[str | None, type[CheckpointArgs]], Any]


class CheckpointHandlerRegistry(Protocol):
    """Handlers by item and class of arguments; the item None stands for all."""

    def add(self, item: str | None, args: Any, handler: Any = None, **kwargs: Any) -> None:
        """Add an entry."""
        ...

    def get(self, item: str | None, args: Any) -> Any:
        """Return a handler."""
        ...

    def has(self, item: str | None, args: Any) -> bool:
        """Return whether there is an entry."""
        ...

    def get_all_entries(self) -> Entries:
        """Return all entries."""
        ...


class AlreadyExistsError(ValueError):
    """There is such an entry already."""


class NoEntryError(KeyError):
    """There is no such entry."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DefaultCheckpointHandlerRegistry(CheckpointHandlerRegistry):
    """Handlers by item and class of arguments."""

    def __init__(self, other_registry: CheckpointHandlerRegistry | None = None) -> None:
        self._entries: Entries = {} if other_registry is None else dict(other_registry.get_all_entries())

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] as in Orbax
        """Add an entry; without a handler, the one that is registered with the class of arguments.

        Raises:
            AlreadyExistsError: there is such an entry.
            ValueError: no handler is registered, or it cannot be made without arguments.
        """
        kind = _class_of(args)
        if self.has(item, kind):
            raise AlreadyExistsError(f"there is a handler for {item!r} and {kind.__qualname__} already")
        handler = args_lib.get_registered_handler_cls(kind) if handler is None else handler
        self._entries[item, kind] = made(handler)

    def get(self, item: str | None, args: Any) -> Any:
        """Return a handler.

        Raises:
            NoEntryError: there is none.
        """
        kind = _class_of(args)
        if not self.has(item, kind):
            raise NoEntryError(f"there is no handler for {item!r} and {kind.__qualname__}")
        return self._entries[item, kind]

    def has(self, item: str | None, args: Any) -> bool:
        """Return whether there is an entry."""
        return (item, _class_of(args)) in self._entries

    def get_all_entries(self) -> Entries:
        """Return all entries."""
        return self._entries

    def __repr__(self) -> str:
        return f"DefaultCheckpointHandlerRegistry({self._entries})"


def create_default_handler_registry(**items_to_handlers: Any) -> CheckpointHandlerRegistry:
    """Return a registry with a handler for each item."""
    registry = DefaultCheckpointHandlerRegistry()
    for name, handler in items_to_handlers.items():
        for kind in args_lib.get_registered_args_cls(handler):
            if not registry.has(name, kind):
                registry.add(name, kind, handler)
    return registry


def made(handler: Any) -> Any:
    """Return a handler, made when a class was given.

    Raises:
        ValueError: it cannot be made without arguments.
    """
    if not inspect.isclass(handler):
        return handler
    try:
        return handler()
    except TypeError as error:
        raise ValueError(f"{handler.__qualname__} cannot be made without arguments: {error}") from error


def _class_of(args: Any) -> type[CheckpointArgs]:
    kind: Any = args if inspect.isclass(args) else cast("Any", type(args))
    return kind


class Handlers:
    """The handlers of one manager or checkpointer.

    Args:
        registry: those that were registered by hand.
        given: a handler for each item that has one of its own; None where the arguments tell it.
        closed: only items of `given` may be saved.
    """

    def __init__(
        self,
        registry: CheckpointHandlerRegistry | None = None,
        given: Mapping[str, Any] | None = None,
        *,
        closed: bool = False,
    ) -> None:
        self._registry = DefaultCheckpointHandlerRegistry(registry)
        self._given = dict(given or {})
        self._closed = closed

    def for_args(self, name: str, arguments: Any) -> Any:
        """Return the handler for an item's arguments.

        Raises:
            ValueError: there is none, or the item has a handler that takes others.
        """
        own = self._given.get(name)
        if own is not None and (not args_lib.has_registered_args(own) or type(own) in _handlers_of(arguments)):
            return own
        for item in (name, None):
            if self._registry.has(item, arguments):
                return self._registry.get(item, arguments)
        others = [kind for item, kind in self._registry.get_all_entries() if item == name]
        if own is not None or others or (self._closed and name not in self._given):
            known = [f"{item!r} with {kind.__qualname__}" for item, kind in self._registry.get_all_entries()]
            known += [f"{item!r}" for item in self._given]
            raise ValueError(
                f'Item "{name}" and args "{type(arguments).__qualname__}" does not match with any registered handler;'
                f" there are {', '.join(known)}"
            )
        return made(args_lib.get_registered_handler_cls(arguments))

    def for_saved(self, name: str, typestr: str) -> Any:
        """Return the handler for an item that is to be restored without arguments; None when it is unknown."""
        own = self._given.get(name)
        if own is not None:
            return own
        entries = self._registry.get_all_entries().items()
        registered = next((handler for (item, _), handler in entries if item == name), None)
        if registered is not None:
            return registered
        classes = [handler for _, handler in entries if typestr_of(handler) == typestr]
        if classes:
            return classes[0]
        found = next((cls for cls in args_lib.registered_handlers() if _is_of(cls, typestr)), None)
        return None if found is None else made(found)

    def named(self, name: str) -> Any:
        """Return the handler that an item of the deprecated interface has, or None."""
        return self._given.get(name)

    def close(self) -> None:
        """Close all handlers."""
        for handler in [*self._given.values(), *self._registry.get_all_entries().values()]:
            close = getattr(handler, "close", None)
            if close is not None and not inspect.isclass(handler):
                close()


def _handlers_of(arguments: Any) -> tuple[type, ...]:
    try:
        return (args_lib.get_registered_handler_cls(arguments),)
    except (TypeError, ValueError):
        return ()


def _is_of(handler: Any, typestr: str) -> bool:
    """Return whether a handler is the one of that name; of Orbax's own, ours stand in."""
    if typestr.startswith("orbax.checkpoint.") and handler.__module__.startswith("milepost."):
        return handler.__qualname__ == typestr.rpartition(".")[2]
    return typestr_of(handler) == typestr


def typestr_of(handler: Any) -> str:
    """Return the type of a handler as text."""
    cls: Any = handler if inspect.isclass(handler) else cast("Any", type(handler))
    return f"{cls.__module__}.{cls.__qualname__}"
