# SPDX-License-Identifier: Apache-2.0
"""Handlers: how an object that is no tree of arrays is saved, as files in a folder of its own.

What a handler writes is kept with the checkpoint, digested like every other byte.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable
from importlib import import_module
from pathlib import Path
from typing import Any, final

from milepost.compat.orbax_v1 import free, plain
from milepost.compat.orbax_v1.path.types import PathAwaitingCreation
from milepost.compat.orbax_v1.registry import (
    AbstractCheckpointable,
    Checkpointable,
    CheckpointableHandler,
    CheckpointableHandlerRegistry,
    StatefulCheckpointable,
    global_registry,
    local_registry,
    register_handler,
)

__all__ = [
    "AbstractCheckpointable", "Checkpointable", "CheckpointableHandler", "CheckpointableHandlerRegistry", "JsonHandler",
    "ProtoHandler", "PyTreeHandler", "StatefulCheckpointable", "global_registry", "local_registry", "register_handler",
]  # fmt: skip


@final
class StatefulCheckpointableHandler:
    """For objects that save and load themselves."""

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        return await checkpointable.save(directory)

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        if abstract_checkpointable is None:
            raise ValueError(
                "an object that loads itself was saved there, so an instance is needed to load it into\n"
                "  Pass one as its abstract checkpointable."
            )
        loading = await abstract_checkpointable.load(directory)

        async def loaded() -> Any:
            await loading
            return abstract_checkpointable

        return loaded()

    async def metadata(self, directory: Path) -> Any:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, StatefulCheckpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return isinstance(abstract_checkpointable, StatefulCheckpointable)


@final
class JsonHandler:
    """For what JSON can hold."""

    def __init__(self, filename: str | None = None) -> None:
        self._names = [filename or "data.json", "data.json", "metadata"]

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        text = json.dumps(checkpointable)

        async def saved() -> None:
            (await directory.await_creation() / self._names[0]).write_text(text)

        return saved()

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        async def loaded() -> Any:
            for name in self._names:
                if (directory / name).exists():
                    return json.loads((directory / name).read_text())
            raise FileNotFoundError(f"{directory} holds none of {', '.join(self._names)}")

        return loaded()

    async def metadata(self, directory: Path) -> Any:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        try:
            json.dumps(checkpointable)
        except (TypeError, ValueError, RecursionError):
            return False
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return None


@final
class ProtoHandler:
    """For protocol buffer messages, as text."""

    def __init__(self, filename: str = "proto.pbtxt") -> None:
        self._name = filename

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        text = _text_format().MessageToString(checkpointable)

        async def saved() -> None:
            (await directory.await_creation() / self._name).write_text(text)

        return saved()

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        if abstract_checkpointable is None:
            raise ValueError("a message was saved there: pass its class as the abstract checkpointable")

        async def loaded() -> Any:
            return _text_format().Parse((directory / self._name).read_text(), abstract_checkpointable())

        return loaded()

    async def metadata(self, directory: Path) -> Any:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        message = sys.modules.get("google.protobuf.message")
        return message is not None and isinstance(checkpointable, message.Message)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        message = sys.modules.get("google.protobuf.message")
        kind = abstract_checkpointable
        return message is not None and isinstance(kind, type) and issubclass(kind, message.Message)


def _text_format() -> Any:
    return import_module("google.protobuf.text_format")


@final
class PyTreeHandler:
    """For trees of arrays and values. Trees are stored natively; this class is for handlers that hold a tree inside."""

    native = True

    def __init__(
        self,
        *,
        context: Any = None,
        array_metadata_validator: Any = None,
        leaf_handler_registry: Any = None,
        partial_save_mode: bool = False,
    ) -> None:
        self._context = context

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        response = free.save_async(await directory.await_creation() / "tree", checkpointable)

        async def saved() -> None:
            response.result()

        return saved()

    async def load(self, directory: Path, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        async def loaded() -> Any:
            return free.load(directory / "tree", abstract_checkpointable)

        return loaded()

    async def metadata(self, directory: Path) -> Any:
        return free.metadata(directory / "tree").metadata

    def is_handleable(self, checkpointable: Any) -> bool:
        return not isinstance(checkpointable, StatefulCheckpointable) and plain.is_tree(checkpointable)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return not isinstance(abstract_checkpointable, StatefulCheckpointable)


for _handler in (ProtoHandler, JsonHandler, StatefulCheckpointableHandler, PyTreeHandler):
    global_registry().add(_handler)
global_registry().add(PyTreeHandler, checkpointable_name="state")
