# SPDX-License-Identifier: Apache-2.0
"""Items of a checkpoint by name: from their arguments to the native tree, and back."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

import milepost as mp
from milepost.compat.orbax import args as args_lib
from milepost.compat.orbax import places
from milepost.compat.orbax.native_handlers import AsyncCheckpointHandler, NativeHandler, StandardCheckpointHandler
from milepost.compat.orbax.record import Encoded, Stored, StoredItem
from milepost.compat.orbax.registry import Handlers, typestr_of


class Call(args_lib.CheckpointArgs):
    """Arguments of a handler that has no class of arguments of its own: as they were given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def encoded(handlers: Handlers, items: Mapping[str, Any]) -> dict[str, Encoded]:
    """Return what is stored for each item, given its arguments.

    Raises:
        ValueError: no handler takes one of them.
    """
    result: dict[str, Encoded] = {}
    for name, arguments in items.items():
        if not name or "/" in name:
            raise ValueError(f"an item cannot be called {name!r}")
        if arguments is None:
            raise ValueError(f'"{name}" is to be saved, but there are no arguments for it')
        result[name] = _encoded(handlers, name, arguments)
    return result


def _encoded(handlers: Handlers, name: str, arguments: Any) -> Encoded:
    item = getattr(arguments, "item", None)
    if not isinstance(arguments, args_lib.CheckpointArgs) and _has_state(item):
        return Encoded("state", mp.PerProcess(item), typestr_of(type(arguments)))
    handler = handlers.for_args(name, arguments)
    return handler.encode(arguments) if _is_native(handler) else _files(handler, arguments)


def restored(handlers: Handlers, stored: Stored, items: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return items by name: those with arguments, or all.

    Raises:
        KeyError: one is not there.
        ValueError: it cannot be restored like that.
    """
    wanted: Mapping[str, Any] = items or dict.fromkeys(stored.names)
    found = {name: stored.item(name) for name in sorted(wanted)}  # all names first
    return {name: _restored(handlers, item, wanted[name]) for name, item in found.items()}


def _restored(handlers: Handlers, item: StoredItem, arguments: Any) -> Any:
    target = getattr(arguments, "item", None)
    if item.kind == "state" and _has_state(target):
        item.view.load_into(target)
        start: Any = getattr(target, "start_prefetch", None)
        if callable(start):
            start()
        return target
    handler = handlers.for_saved(item.name, item.handler) if arguments is None else None
    if arguments is not None:
        handler = handlers.for_args(item.name, arguments)
    if handler is None:
        if item.kind != "files":
            return item.restoring().as_saved()
        raise ValueError(
            f'Item "{item.name}" was found in the checkpoint, but could not be restored: it was saved by'
            f" {item.handler}\n  Give a CheckpointHandlerRegistry with that handler, or arguments for it."
        )
    if _is_native(handler):
        if arguments is None and item.kind == "proto":
            raise ValueError(f'Item "{item.name}" is a message of protobuf: say its class with `args.ProtoRestore`')
        return handler.decode(item, arguments)
    return _from_files(handler, item, arguments)


def described(handlers: Handlers, stored: Stored) -> dict[str, Any]:
    """Return a description of each item; None for what has no arrays."""
    return {name: _described(handlers, stored.item(name)) for name in stored.names}


def _described(handlers: Handlers, item: StoredItem) -> Any:
    handler = handlers.for_saved(item.name, item.handler)
    if item.kind == "files":
        return None if handler is None else _in_folder(item, lambda folder: _metadata(handler, folder))
    if handler is None or item.kind != "tree":
        return StandardCheckpointHandler().describe(item) if item.kind == "tree" else None
    return handler.describe(item) if _is_native(handler) else None


def _metadata(handler: Any, folder: Any) -> Any:
    try:
        return handler.metadata(folder)
    except NotImplementedError:
        return None


# Handlers of the user: their files are the item.


def _is_native(handler: Any) -> bool:
    """Return whether a handler is one of milepost's, and not a subclass that writes files of its own."""
    if not isinstance(handler, NativeHandler):
        return False
    return type(handler).save is NativeHandler.save and type(handler).restore is NativeHandler.restore


def _files(handler: Any, arguments: Any) -> Encoded:
    with tempfile.TemporaryDirectory(prefix="milepost-") as temporary:
        folder = Path(temporary) / "item"
        folder.mkdir()
        _write(handler, places.for_handlers(folder), arguments)
        files = {
            file.relative_to(folder).as_posix(): np.frombuffer(file.read_bytes(), np.uint8)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
    return Encoded("files", files, typestr_of(handler))


def _write(handler: Any, folder: Any, arguments: Any) -> None:
    call = arguments if isinstance(arguments, Call) else Call(args=arguments)
    if isinstance(handler, AsyncCheckpointHandler) or inspect.iscoroutinefunction(getattr(handler, "async_save", None)):
        futures: list[Any] = list(_run(lambda: handler.async_save(folder, *call.args, **call.kwargs)) or [])
        for future in futures:
            future.result()
    else:
        handler.save(folder, *call.args, **call.kwargs)
    finalize = getattr(handler, "finalize", None)
    if finalize is not None:
        finalize(folder)


def _run(call: Callable[[], Any]) -> Any:
    """Run a coroutine to its end, on a thread of its own: this one may have a loop that is running."""
    result: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(call()))
        except BaseException as error:  # noqa: BLE001 raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="milepost-handler")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


def _from_files(handler: Any, item: StoredItem, arguments: Any) -> Any:
    if item.kind != "files":
        raise ValueError(f"{item.name!r} was saved by {item.handler or 'milepost'}, not by {typestr_of(handler)}")
    if arguments is None:
        call = Call()
        if args_lib.has_registered_args(handler):
            kind = args_lib.get_registered_args_cls(handler)[1]
            try:
                call = Call(args=kind())
            except TypeError as error:
                raise ValueError(f"{item.name!r} needs arguments: {kind.__qualname__}: {error}") from error
    else:
        call = arguments if isinstance(arguments, Call) else Call(args=arguments)
    return _in_folder(item, lambda folder: handler.restore(folder, *call.args, **call.kwargs))


def _in_folder(item: StoredItem, use: Callable[[Any], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="milepost-") as temporary:
        folder = Path(temporary) / item.name
        folder.mkdir()
        files = cast("dict[str, Any]", item.view.load())
        for relative, data in files.items():
            file = folder / relative
            if not file.resolve().is_relative_to(folder.resolve()):  # a stored name must not lead anywhere else
                raise ValueError(f"{item.name!r} holds a file with the name {relative!r}, outside of its folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data.tobytes())
        return use(places.for_handlers(folder))


def _has_state(value: Any) -> bool:
    kind = cast("type[object]", type(value))
    pairs = (("get_state", "set_state"), ("state_dict", "load_state_dict"))
    return any(all(callable(getattr(kind, name, None)) for name in pair) for pair in pairs)
