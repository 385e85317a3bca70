# SPDX-License-Identifier: Apache-2.0
"""What is told of a checkpoint without reading its arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from milepost.compat.orbax.loggers import SaveStepStatistics
from milepost.compat.orbax.sharding import NamedShardingMetadata, ShardingMetadata, SingleDeviceShardingMetadata
from milepost.compat.orbax.trees import jax

__all__ = [
    "ArrayMetadata", "Metadata", "NamedShardingMetadata", "RootMetadata", "ScalarMetadata", "ShardingMetadata",
    "SingleDeviceShardingMetadata", "StepMetadata", "StorageMetadata", "StringMetadata", "TreeMetadata",
]  # fmt: skip


@dataclass(frozen=True)
class StorageMetadata:
    """How an array is cut on disk."""

    chunk_shape: tuple[int, ...] | None
    write_shape: tuple[int, ...] | None = None
    zarr_metadata: Any = None


@dataclass
class Metadata:
    """A leaf.

    Attributes:
        name: the names on the way to it, joined by dots.
        directory: the folder of its item.
    """

    name: str
    directory: Path | None


@dataclass
class ArrayMetadata(Metadata):
    """An array."""

    shape: tuple[int, ...]
    sharding: ShardingMetadata | None
    dtype: Any
    storage: StorageMetadata | None = None

    @classmethod
    def from_shape_dtype_struct(cls, s: Any, name: str | None = None, directory: Path | None = None) -> ArrayMetadata:
        """Describe an array by its shape, dtype and sharding."""
        placed = getattr(s, "sharding", None)
        told = None
        if hasattr(placed, "spec"):
            told = NamedShardingMetadata.from_jax_sharding(placed)
        elif placed is not None:
            told = SingleDeviceShardingMetadata.from_jax_sharding(placed)
        return cls(name or "", directory, tuple(s.shape), told, s.dtype)


@dataclass
class ScalarMetadata(ArrayMetadata):
    """A number."""

    shape: tuple[int, ...] = ()
    sharding: ShardingMetadata | None = None
    dtype: Any = None


@dataclass
class StringMetadata(Metadata):
    """Text."""


@final
class TreeMetadata:
    """A saved tree with a description of each leaf; JAX's tree functions take it as a tree."""

    def __init__(self, *, tree: Any, custom_metadata: Any = None) -> None:
        self._tree, self._custom_metadata = tree, custom_metadata
        _register()

    @property
    def tree(self) -> Any:
        """The tree itself, in dicts and lists."""
        return self._tree

    @property
    def custom_metadata(self) -> Any:
        """What was given with the item when it was saved."""
        return self._custom_metadata

    def __getitem__(self, key: Any) -> Any:
        return self._tree[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a node of the top level, or the default."""
        return self._tree.get(key, default)

    def __repr__(self) -> str:
        return f"TreeMetadata(custom_metadata={self._custom_metadata!r}, tree={self._tree!r})"


_registered: set[int] = set()


def _register() -> None:
    """Let JAX look into TreeMetadata, once the program has loaded it."""
    module = jax()
    if module is None or id(module) in _registered or not hasattr(module, "tree_util"):
        return
    _registered.add(id(module))

    def opened(value: TreeMetadata) -> Any:
        return (value.tree,), value.custom_metadata

    def closed(custom: Any, children: Any) -> TreeMetadata:
        return TreeMetadata(tree=children[0], custom_metadata=custom)

    module.tree_util.register_pytree_node(TreeMetadata, opened, closed)


@dataclass
class StepMetadata:
    """A checkpoint.

    Attributes:
        item_handlers: the type of handler of each item, or of the only one.
        item_metadata: a description of each item, or of the only one.
        metrics: what it was saved with.
        performance_metrics: empty; `logger=` of the manager tells them when they arise.
        init_timestamp_nsecs, commit_timestamp_nsecs: when the save began, and when it was committed.
        custom_metadata: what was given at the save.
    """

    item_handlers: Any = None
    item_metadata: Any = None
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    performance_metrics: SaveStepStatistics = field(default_factory=SaveStepStatistics)
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class RootMetadata:
    """What all checkpoints of a directory share."""

    internal_metadata: dict[str, Any] | None = field(default_factory=dict[str, Any])
    custom_metadata: dict[str, Any] | None = field(default_factory=dict[str, Any])


_SCALARS = {"bool": np.bool_, "int": np.int64, "float": np.float64, "complex": np.complex128}


def of_leaf(ref: Any, name: str, directory: Path | None, sharding: ShardingMetadata | None) -> Metadata | None:
    """Return the description of a stored leaf; None for what is no array, number or text."""
    kind, spec = ref.spec.kind, ref.spec
    if kind == "value" and spec.dtype in _SCALARS:
        return ScalarMetadata(name, directory, dtype=np.dtype(_SCALARS[spec.dtype]))
    if kind == "value" and ref.dtype is None:
        return StringMetadata(name, directory) if spec.dtype == "str" else None
    return ArrayMetadata(
        name, directory, spec.shape, sharding if ref.origin == "jax" else None, ref.dtype, StorageMetadata(spec.shape)
    )
