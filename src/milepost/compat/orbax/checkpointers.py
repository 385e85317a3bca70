# SPDX-License-Identifier: Apache-2.0
"""Checkpointers: each save is one checkpoint, at a path of its own."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from milepost.compat.orbax import args as args_lib
from milepost.compat.orbax import items, places, record
from milepost.compat.orbax.alone import Writing
from milepost.compat.orbax.args import Composite
from milepost.compat.orbax.metadata import StepMetadata
from milepost.compat.orbax.native_handlers import (
    AsyncCheckpointHandler,
    CheckpointHandler,
    NativeHandler,
    PyTreeCheckpointHandler,
    StandardCheckpointHandler,
)
from milepost.compat.orbax.options import AsyncOptions, AtomicityOptions, FileOptions, MultiprocessingOptions
from milepost.compat.orbax.record import DEFAULT, Stored
from milepost.compat.orbax.registry import CheckpointHandlerRegistry, Handlers


@dataclass
class CompositeOptions:
    """Options of a CompositeCheckpointHandler."""

    multiprocessing_options: MultiprocessingOptions = field(default_factory=MultiprocessingOptions)
    temporary_path_class: Any = None
    file_options: FileOptions | None = None
    atomicity_options: AtomicityOptions | None = None
    async_options: AsyncOptions | None = None


class CompositeCheckpointHandler(AsyncCheckpointHandler):
    """Saves and restores several items, each with a handler of its own."""

    def __init__(
        self,
        *item_names: str,
        composite_options: CompositeOptions | None = None,
        handler_registry: CheckpointHandlerRegistry | None = None,
        **items_and_handlers: Any,
    ) -> None:
        if handler_registry is not None and (item_names or items_and_handlers):
            raise ValueError("handler_registry says it all: leave out item names and handlers")
        given = {**dict.fromkeys(item_names), **items_and_handlers}
        self.handlers = Handlers(handler_registry, given, closed=bool(given))
        self.options = composite_options or CompositeOptions()

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        Checkpointer(self).save(directory, *args, **kwargs)

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        self.save(directory, *args, **kwargs)

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        return Checkpointer(self).restore(directory, *args, **kwargs)

    def metadata(self, directory: Any) -> StepMetadata:
        return Checkpointer(self).metadata(directory)

    def close(self) -> None:
        self.handlers.close()


args_lib.register_with_handler(CompositeCheckpointHandler, for_save=True, for_restore=True)(Composite)


class AbstractCheckpointer(abc.ABC):
    """Saves and restores objects at paths."""

    @abc.abstractmethod
    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save an object at a path."""

    @abc.abstractmethod
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the object at a path."""

    def metadata(self, directory: Any) -> Any:
        """Describe the object at a path."""
        raise NotImplementedError

    def structure(self, directory: Any) -> Any:
        """Return None: `metadata` tells the structure."""
        return None

    def close(self) -> None:  # noqa: B027 not every checkpointer holds something
        """Give back what is held."""


class Checkpointer(AbstractCheckpointer):
    """Saves objects of a handler, and returns when they are durable."""

    def __init__(
        self,
        handler: Any,
        *,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
    ) -> None:
        self._handler = handler
        composite = isinstance(handler, CompositeCheckpointHandler)
        self._handlers = handler.handlers if composite else Handlers(given={DEFAULT: handler})
        self._composite = composite
        self._options: AsyncOptions | None = None
        self._writing: Writing | None = None

    @property
    def handler(self) -> Any:
        """The handler."""
        return self._handler

    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        save_context: Any = None,
        **kwargs: Any,
    ) -> None:
        """Save an object at a path.

        Args:
            directory: the path; nothing is seen there before the checkpoint is whole.
            args: what to save, as `args=...` or by the fields of the handler's arguments.
            force: replace what is there, after the new one is durable.
            custom_metadata: anything to be found again by `metadata`.
            save_context: not looked at.
            kwargs: as `args`.

        Raises:
            ValueError: something is there already; or an object cannot be stored.
        """
        self._begin(directory, self._arguments(0, args, kwargs), force, custom_metadata)
        self._wait()

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the object at a path.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it does not fit what is asked for; or its save was never finished.
        """
        self._wait()
        stored = places.find(directory)
        asked = self._arguments(1, args, kwargs) if args or kwargs else None
        if self._composite:
            return Composite(**items.restored(self._handlers, stored, asked))
        name = places.only_item(stored)
        if name is None:
            raise ValueError(f"{directory} holds the items {', '.join(stored.names)}: restore them with a Composite")
        return items.restored(Handlers(given={name: self._handler}), stored, {name: asked})[name]

    def metadata(self, directory: Any) -> StepMetadata:
        """Describe the checkpoint at a path.

        Raises:
            FileNotFoundError: there is none.
        """
        self._wait()
        stored = places.find(directory)
        name = None if self._composite else places.only_item(stored)
        return step_metadata(stored, self._handlers if self._composite else Handlers(), name)

    def close(self) -> None:
        """Wait, and close the handler."""
        try:
            self._wait()
        finally:
            self._handlers.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arguments(self, which: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("args") is not None:
            return kwargs["args"]
        if self._composite:
            return args[0] if args else Composite(**kwargs)
        if isinstance(self._handler, NativeHandler):
            return self._handler.arguments(which, args, kwargs)
        if args_lib.has_registered_args(self._handler):
            return args_lib.get_registered_args_cls(self._handler)[which](*args, **kwargs)
        return items.Call(*args, **kwargs)

    def _begin(self, directory: Any, arguments: Any, force: bool, custom_metadata: Mapping[str, Any] | None) -> None:
        self._wait()
        path = places.absolute(directory)
        wanted: Any = arguments if self._composite else {DEFAULT: arguments}
        if not isinstance(wanted, Mapping):
            raise ValueError(f"items are saved with args.Composite, not {type(wanted).__qualname__}")
        made = items.encoded(self._handlers, cast("Mapping[str, Any]", wanted))
        tree = {name: item.tree for name, item in made.items()}
        self._writing = Writing(path, tree, record.native(made, custom_metadata), force=force, options=self._options)

    def _wait(self) -> None:
        writing = self._writing
        if writing is None:
            return
        try:
            writing.wait()
        finally:
            if writing.over:
                self._writing = None


class AsyncCheckpointer(Checkpointer):
    """Saves objects of a handler in the background: when `save` returns, the program may change them."""

    def __init__(
        self,
        handler: Any,
        timeout_secs: float | None = None,
        *,
        async_options: AsyncOptions | None = None,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
    ) -> None:
        super().__init__(handler)
        self._options = AsyncOptions(timeout_secs) if timeout_secs is not None else async_options or AsyncOptions()
        if self._options.timeout_secs <= 0:
            raise ValueError(f"timeout_secs: expected more than 0, found {self._options.timeout_secs}")

    def save(
        self,
        directory: Any,
        *args: Any,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
        save_context: Any = None,
        **kwargs: Any,
    ) -> None:
        """Save an object at a path, in the background; as `Checkpointer.save` else.

        A failure of the save before is raised here, once; this one is then not begun.
        """
        self._begin(directory, self._arguments(0, args, kwargs), force, custom_metadata)

    def wait_until_finished(self) -> None:
        """Wait until the save in flight is durable; raises what went wrong with it, once."""
        self._wait()

    def check_for_errors(self) -> None:
        """Raise what went wrong with a save that is over, once."""
        if self._writing is not None and self._writing.over:
            self._wait()

    def cancel(self) -> None:
        """Give up the save in flight, if it is not committed yet, and wait until nothing of it is left."""
        if self._writing is not None:
            self._writing.cancel()
        self._wait()


class StandardCheckpointer(AsyncCheckpointer):
    """Saves trees of arrays and values in the background."""

    def __init__(
        self,
        *,
        async_options: AsyncOptions | None = None,
        multiprocessing_options: MultiprocessingOptions | None = None,
        file_options: FileOptions | None = None,
        atomicity_options: AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(StandardCheckpointHandler(**kwargs), async_options=async_options)

    def save(  # pyright: ignore[reportIncompatibleMethodOverride] as in Orbax
        self,
        directory: Any,
        state: Any,
        *,
        save_args: Any = None,
        force: bool = False,
        custom_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Save a tree at a path, in the background."""
        arguments = args_lib.StandardSave(state, save_args)
        super().save(directory, args=arguments, force=force, custom_metadata=custom_metadata)

    def restore(  # pyright: ignore[reportIncompatibleMethodOverride] as in Orbax
        self, directory: Any, target: Any = None, *, strict: bool = True
    ) -> Any:
        """Return the tree at a path, like `target` when that is given."""
        return super().restore(directory, args=args_lib.StandardRestore(target, strict=strict))


class PyTreeCheckpointer(Checkpointer):
    """Saves trees of arrays and values, and returns when they are durable."""

    def __init__(
        self,
        primary_host: int | None = 0,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
    ) -> None:
        super().__init__(PyTreeCheckpointHandler())


def step_metadata(stored: Stored, handlers: Handlers, name: str | None) -> StepMetadata:
    """Return the metadata of a checkpoint: of one item alone, when it has a name, else of all."""
    described = items.described(handlers, stored)
    types = {each: stored.item(each).handler for each in stored.names}
    return StepMetadata(
        item_handlers=types if name is None else types[name],
        item_metadata=Composite(**described) if name is None else described[name],
        init_timestamp_nsecs=stored.begun_ns,
        commit_timestamp_nsecs=stored.committed_ns,
        custom_metadata=stored.custom_metadata,
    )


__all__ = [
    "AbstractCheckpointer", "AsyncCheckpointer", "CheckpointHandler", "Checkpointer", "CompositeCheckpointHandler",
    "CompositeOptions", "PyTreeCheckpointer", "StandardCheckpointer", "step_metadata",
]  # fmt: skip
