# SPDX-License-Identifier: Apache-2.0
"""Handlers: what becomes of an item when it is saved, and how it comes back.

A handler of milepost makes a part of the native tree of its item. A handler of the user writes files into a folder,
as it does with Orbax; those files become the item.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from milepost.compat import orbax_shardings
from milepost.compat.orbax import alone, args, places, record, sharding, trees
from milepost.compat.orbax.metadata import TreeMetadata, of_leaf
from milepost.compat.orbax.options import MultiprocessingOptions
from milepost.compat.orbax.record import DEFAULT, Encoded, StoredItem
from milepost.compat.orbax.transform_utils import transformed


class CheckpointHandler(abc.ABC):
    """Saves and restores objects of one kind, as files in a folder."""

    @abc.abstractmethod
    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write an object into a folder, which is there."""

    @abc.abstractmethod
    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the object that was written into a folder."""

    def metadata(self, directory: Any) -> Any:
        """Describe the object."""
        raise NotImplementedError(f"{type(self).__qualname__} has no metadata")

    def finalize(self, directory: Any) -> None:  # noqa: B027 most have nothing to do
        """Do what is to be done when everything is written."""

    def close(self) -> None:  # noqa: B027 most hold nothing
        """Give back what the handler holds."""

    @classmethod
    def typestr(cls) -> str:
        """Return the type as text, by which the handler is found again."""
        return f"{cls.__module__}.{cls.__qualname__}"


class AsyncCheckpointHandler(CheckpointHandler):
    """A handler that writes in the background: `async_save` returns what is to be waited for."""

    @abc.abstractmethod
    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Begin to write, and return futures, or None."""


class NativeHandler(AsyncCheckpointHandler):
    """A handler of milepost: an item as a part of the native tree. Used alone, it saves a checkpoint at the path."""

    def encode(self, arguments: Any) -> Encoded:
        """Return what is stored for an item."""
        raise NotImplementedError

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        """Return the item as the arguments ask for it."""
        raise NotImplementedError

    def describe(self, item: StoredItem) -> Any:
        """Describe the item; None for what has no arrays."""
        return None

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        encoded = self.encode(self.arguments(0, args, kwargs))
        metadata = record.native({DEFAULT: encoded}, None)
        where = places.absolute(directory)
        empty = where.is_dir() and not any(where.iterdir())
        alone.Writing(where, {DEFAULT: encoded.tree}, metadata, force=empty).wait()

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        self.save(directory, *args, **kwargs)

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
        return self.decode(self._item(directory), self.arguments(1, args, kwargs))

    def metadata(self, directory: Any) -> Any:
        return self.describe(self._item(directory))

    def _item(self, directory: Any) -> StoredItem:
        stored = places.find(directory)
        return stored.item(places.only_item(stored) or DEFAULT)

    def arguments(self, which: int, values: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return arguments to save (0) or to restore (1) with, given as themselves or by their fields."""
        given = dict(kwargs)
        arguments = given.pop("args", None)
        if arguments is not None:
            return arguments
        registered = next(cls for cls in type(self).__mro__ if args.has_registered_args(cls))
        return args.get_registered_args_cls(registered)[which](*values, **given)


class StandardCheckpointHandler(NativeHandler):
    """Trees of arrays and values; what a target says is what comes back."""

    def __init__(
        self,
        *,
        save_concurrent_gb: int = 96,
        restore_concurrent_gb: int = 96,
        multiprocessing_options: MultiprocessingOptions | None = None,
        pytree_metadata_options: Any = None,
        use_ocdbt: bool = True,
    ) -> None:
        pass  # how files are laid out is milepost's own

    def encode(self, arguments: Any) -> Encoded:
        return _tree(self, arguments)

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        restoring = item.restoring()
        if arguments is None or arguments.item is None:
            return restoring.as_saved()
        return restoring.to_target(arguments.item, strict=arguments.strict, fallback=arguments.fallback_sharding)

    def describe(self, item: StoredItem) -> Any:
        return _description(item)


class PyTreeCheckpointHandler(NativeHandler):
    """Trees of arrays and values; what `restore_args` say is what comes back."""

    def __init__(
        self,
        aggregate_filename: str | None = None,
        *,
        save_concurrent_gb: int | None = None,
        restore_concurrent_gb: int | None = None,
        save_device_host_concurrent_gb: int | str | None = None,
        memory_limit_options: Any = None,
        use_ocdbt: bool = True,
        use_zarr3: bool = False,
        use_compression: bool = True,
        multiprocessing_options: MultiprocessingOptions | None = None,
        type_handler_registry: Any = None,
        handler_impl: Any = None,
        pytree_metadata_options: Any = None,
        array_metadata_validator: Any = None,
        enable_pinned_host_transfer: bool | None = None,
        is_prioritized_key_fn: Any = None,
    ) -> None:
        if type_handler_registry is not None or handler_impl is not None:
            raise NotImplementedError(
                "PyTreeCheckpointHandler: type handlers read and write Orbax's own files, which are not used here\n"
                "  Leave out type_handler_registry and handler_impl; dtypes of every kind are stored as they are."
            )

    def encode(self, arguments: Any) -> Encoded:
        return _tree(self, arguments)

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        restoring = item.restoring()
        if arguments is None:
            return restoring.as_saved()
        if arguments.legacy_transform_fn is not None:
            raise NotImplementedError(
                "legacy_transform_fn works on Orbax's own records of parameters\n"
                "  Restore without it and change the tree, or use `transforms`."
            )
        if arguments.transforms is not None:
            return transformed(restoring, arguments)
        return restoring.by_args(arguments.item, arguments.restore_args, partial=arguments.partial_restore)

    def describe(self, item: StoredItem) -> Any:
        return _description(item)


class ArrayCheckpointHandler(NativeHandler):
    """A single array or number."""

    def __init__(self, checkpoint_name: str | None = None) -> None:
        pass  # the name of a file that is not there

    def encode(self, arguments: Any) -> Encoded:
        if trees.opened(arguments.item) is not None:
            raise ValueError(f"ArraySave takes a single array or number, not a {type(arguments.item).__qualname__}")
        return _tree(self, arguments)

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        restore_args = None if arguments is None else arguments.restore_args
        return item.restoring().by_args(None, restore_args)


class JaxRandomKeyCheckpointHandler(NativeHandler):
    """A key of `jax.random`, typed or not."""

    def __init__(self, key_name: str | None = None) -> None:
        pass  # the name of a file that is not there

    def encode(self, arguments: Any) -> Encoded:
        return _tree(self, arguments)

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        restore_args = None if arguments is None else arguments.restore_args
        return item.restoring().by_args(None, restore_args)


class NumpyRandomKeyCheckpointHandler(NativeHandler):
    """What `np.random.get_state()` returns."""

    def __init__(self, key_name: str | None = None) -> None:
        pass  # the name of a file that is not there

    def encode(self, arguments: Any) -> Encoded:
        return Encoded("value", arguments.item, self.typestr())

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        return item.view.load()


class JsonCheckpointHandler(NativeHandler):
    """Objects that JSON can hold."""

    def __init__(
        self, filename: str | None = None, *, multiprocessing_options: MultiprocessingOptions | None = None
    ) -> None:
        pass  # the name of a file that is not there

    def encode(self, arguments: Any) -> Encoded:
        return Encoded("json", json.loads(json.dumps(arguments.item)), self.typestr())

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        if item.kind != "json":
            raise ValueError(f"{item.name!r} was saved by {item.handler or 'milepost'}, not as JSON")
        return item.view.load()


class ProtoCheckpointHandler(NativeHandler):
    """Messages of protobuf."""

    def __init__(
        self, filename: str = "proto.pbtxt", *, multiprocessing_options: MultiprocessingOptions | None = None
    ) -> None:
        pass  # the name of a file that is not there

    def encode(self, arguments: Any) -> Encoded:
        return Encoded("proto", arguments.item.SerializeToString(), self.typestr())

    def decode(self, item: StoredItem, arguments: Any) -> Any:
        if item.kind != "proto":
            raise ValueError(f"{item.name!r} was saved by {item.handler or 'milepost'}, not as a message of protobuf")
        return arguments.item.FromString(item.view.load())


for _handler, _save, _restore in (
    (StandardCheckpointHandler, args.StandardSave, args.StandardRestore),
    (PyTreeCheckpointHandler, args.PyTreeSave, args.PyTreeRestore),
    (ArrayCheckpointHandler, args.ArraySave, args.ArrayRestore),
    (JsonCheckpointHandler, args.JsonSave, args.JsonRestore),
    (ProtoCheckpointHandler, args.ProtoSave, args.ProtoRestore),
    (JaxRandomKeyCheckpointHandler, args.JaxRandomKeySave, args.JaxRandomKeyRestore),
    (NumpyRandomKeyCheckpointHandler, args.NumpyRandomKeySave, args.NumpyRandomKeyRestore),
):
    args.register_with_handler(_handler, for_save=True)(_save)
    args.register_with_handler(_handler, for_restore=True)(_restore)


def _tree(handler: NativeHandler, arguments: Any) -> Encoded:
    """Return a tree in dicts and lists, with the shardings of its arrays."""
    if arguments.item is None:
        raise ValueError("Must provide item to save.")
    save_args = getattr(arguments, "save_args", None)
    shardings: dict[trees.Path, dict[str, Any]] = {}

    def leaf(path: trees.Path, value: Any) -> Any:
        dtype = None if save_args is None else _dtype_of(save_args, path)
        if dtype is not None and hasattr(value, "astype"):
            value = value.astype(dtype)
        kind: Any = cast("Any", type(value))
        if issubclass(kind, np.generic) and not issubclass(kind, np.character | np.void):
            value = np.asarray(value)
        described = orbax_shardings.described(value)
        if described is not None:
            shardings[path] = described
        return value

    tree = trees.plain(arguments.item, leaf)
    hollow = tuple(trees.hollow(arguments.item))
    return Encoded("tree", tree, handler.typestr(), getattr(arguments, "custom_metadata", None), shardings, hollow)


def _dtype_of(save_args: Any, path: trees.Path) -> Any:
    found = save_args if hasattr(save_args, "chunk_byte_size") else trees.at(save_args, path)
    return getattr(found, "dtype", None)


def _description(item: StoredItem) -> TreeMetadata | None:
    if item.kind == "files":
        return None
    shardings, hollow = item.shardings, item.hollow

    def described(node: Any, path: trees.Path) -> Any:
        if path in hollow:
            return None
        if isinstance(node, dict):
            items = cast("Mapping[Any, Any]", node).items()
            return {str(name): described(child, (*path, str(name))) for name, child in items}
        if isinstance(node, list | tuple):
            return [described(child, (*path, str(i))) for i, child in enumerate(cast("list[Any]", node))]
        return of_leaf(node, ".".join(path), item.directory, sharding.metadata_of(shardings(path)))

    return TreeMetadata(tree=described(item.view.tree, ()), custom_metadata=item.custom_metadata)
