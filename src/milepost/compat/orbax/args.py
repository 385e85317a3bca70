# SPDX-License-Identifier: Apache-2.0
"""What to save or restore, and how: one class for each kind of object, each registered with its handler."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final


@dataclass
class CheckpointArgs:
    """Base of all arguments; a class of your own is registered with its handler by `register_with_handler`."""


_C = TypeVar("_C", bound=type[CheckpointArgs])
_save_handlers: dict[type, type] = {}
_restore_handlers: dict[type, type] = {}


def register_with_handler(handler_cls: type, for_save: bool = False, for_restore: bool = False) -> Callable[[_C], _C]:
    """Return the decorator that registers a class of arguments with the handler that takes them.

    Raises:
        ValueError: neither for saving nor for restoring.
        TypeError: the class is no CheckpointArgs.
    """
    if not for_save and not for_restore:
        raise ValueError("register_with_handler: for_save, for_restore, or both")

    def registered(cls: _C) -> _C:
        if not issubclass(cls, CheckpointArgs):
            raise TypeError(f"{cls.__qualname__} is no subclass of CheckpointArgs")
        if for_save:
            _save_handlers[cls] = handler_cls
        if for_restore:
            _restore_handlers[cls] = handler_cls
        return cls

    return registered


def get_registered_handler_cls(arg: Any) -> type:
    """Return the handler that takes these arguments.

    Raises:
        TypeError: they are no CheckpointArgs.
        ValueError: their class is not registered.
    """
    cls: Any = arg if inspect.isclass(arg) else cast("Any", type(arg))
    found = _save_handlers.get(cls) or _restore_handlers.get(cls) or _foreign_handler(cls)
    if found is not None:
        return found
    if not issubclass(cls, CheckpointArgs):
        raise TypeError(f"{cls.__qualname__} is no subclass of CheckpointArgs")
    raise ValueError(f"no handler is registered for {cls.__qualname__}\n  Use `register_with_handler`.")


def _foreign_handler(cls: type) -> type | None:
    """Return the handler that a library registered with Orbax itself (Grain does, when it finds it)."""
    orbax: Any = sys.modules.get("orbax.checkpoint")
    if orbax is None or not hasattr(orbax, "args") or not issubclass(cls, orbax.args.CheckpointArgs):
        return None
    return orbax.args.get_registered_handler_cls(cls)


def get_registered_args_cls(handler: Any) -> tuple[type[CheckpointArgs], type[CheckpointArgs]]:
    """Return the classes of arguments for saving and for restoring with a handler.

    Raises:
        ValueError: one is missing.
    """
    cls: Any = handler if inspect.isclass(handler) else cast("Any", type(handler))
    found: list[Any] = []
    for registry in (_save_handlers, _restore_handlers):
        match = next((args for args, registered in registry.items() if registered is cls), None)
        if match is None:
            what = "save" if registry is _save_handlers else "restore"
            raise ValueError(f"no CheckpointArgs to {what} are registered for {cls.__qualname__}")
        found.append(match)
    return found[0], found[1]


def has_registered_args(handler: Any) -> bool:
    """Return whether a handler has arguments for both ways."""
    try:
        get_registered_args_cls(handler)
    except ValueError:
        return False
    return True


def registered_handlers() -> list[type]:
    """Return all handlers that arguments are registered with."""
    return list(dict.fromkeys([*_save_handlers.values(), *_restore_handlers.values()]))


def is_args(value: Any) -> bool:
    """Return whether a value is an instance of CheckpointArgs, of ours or of Orbax."""
    if isinstance(value, CheckpointArgs):
        return True
    orbax: Any = sys.modules.get("orbax.checkpoint")
    return orbax is not None and hasattr(orbax, "args") and isinstance(value, orbax.args.CheckpointArgs)


@final
class Composite(CheckpointArgs, Mapping[str, Any]):
    """Several items by name: arguments for each, or what was restored for each. It does not change."""

    def __init__(self, **items: Any) -> None:
        if bad := [name for name in items if name.startswith("__")]:
            raise ValueError(f"a name of a Composite cannot begin with two underscores: {', '.join(bad)}")
        object.__setattr__(self, "_items", dict(items))

    def __getitem__(self, key: str) -> Any:
        items: dict[str, Any] = object.__getattribute__(self, "_items")
        if key not in items:
            raise KeyError(f"there is no {key!r}; there are {list(items)}")
        return items[key]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # asked for by copy and pickle, which need an AttributeError
            raise AttributeError(key)
        return self[key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise ValueError("a Composite does not change")

    def __iter__(self) -> Iterator[str]:
        return iter(object.__getattribute__(self, "_items"))

    def __len__(self) -> int:
        return len(object.__getattribute__(self, "_items"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return an item, or the default."""
        items: dict[str, Any] = object.__getattribute__(self, "_items")
        return items.get(key, default)

    def items(self) -> ItemsView[str, Any]:
        """Return names and items."""
        return ItemsView(self)

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return KeysView(self)

    def values(self) -> ValuesView[Any]:
        """Return the items."""
        return ValuesView(self)

    def __repr__(self) -> str:
        return f"Composite({dict(self)!r})"


@dataclass
class StandardSave(CheckpointArgs):
    """A tree of arrays and values."""

    item: Any
    save_args: Any = None
    custom_metadata: Any = None


@dataclass
class StandardRestore(CheckpointArgs):
    """A tree; `item` says shapes, dtypes, shardings and containers. What differs in shape is an error if `strict`."""

    item: Any = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: Any = None


@dataclass
class PyTreeSave(CheckpointArgs):
    """A tree of arrays and values."""

    item: Any
    save_args: Any = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: Any = None


@dataclass
class PyTreeRestore(CheckpointArgs):
    """A tree; `item` says its structure, `restore_args` what each leaf becomes."""

    item: Any = None
    restore_args: Any = None
    transforms: Any = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Any = None
    partial_restore: bool = False


@dataclass
class ArraySave(CheckpointArgs):
    """A single array or number."""

    item: Any
    save_args: Any = None


@dataclass
class ArrayRestore(CheckpointArgs):
    """A single array or number."""

    item: Any = None
    restore_args: Any = None


@dataclass
class JsonSave(CheckpointArgs):
    """An object that JSON can hold."""

    item: Any


@dataclass
class JsonRestore(CheckpointArgs):
    """An object that JSON can hold."""

    item: Any = None


@dataclass
class ProtoSave(CheckpointArgs):
    """A message of protobuf."""

    item: Any


@dataclass
class ProtoRestore(CheckpointArgs):
    """A message of protobuf; `item` is its class."""

    item: Any


@dataclass
class JaxRandomKeySave(CheckpointArgs):
    """A key of `jax.random`, typed or not."""

    item: Any
    save_args: Any = None


@dataclass
class JaxRandomKeyRestore(CheckpointArgs):
    """A key of `jax.random`."""

    restore_args: Any = None


@dataclass
class NumpyRandomKeySave(CheckpointArgs):
    """What `np.random.get_state()` returns."""

    item: Any


@dataclass
class NumpyRandomKeyRestore(CheckpointArgs):
    """What `np.random.set_state` takes."""
