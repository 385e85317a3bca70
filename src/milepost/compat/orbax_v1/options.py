# SPDX-License-Identifier: Apache-2.0
"""The options of a `Context`: the fields and defaults of Orbax. `docs/doors/orbax_v1.md` says what each does here."""

from __future__ import annotations

import contextvars
import dataclasses
import enum
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, dataclass_transform

from milepost.compat.orbax_v1.registry import CheckpointableHandlerRegistry, default_registry

FROZEN: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("milepost_orbax_v1_frozen", default=frozenset())
"""The identities of the contexts and options in the `with` blocks that are open."""

_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True)
def _namespace(cls: type[_T]) -> type[_T]:
    """Make a dataclass with keyword arguments, which does not change while a context that holds it is active."""

    def guarded(self: object, name: str, value: object) -> None:
        if id(self) in FROZEN.get():
            raise RuntimeError(
                f"{cls.__qualname__}.{name} cannot be set while its context is active\n"
                "  Set options before the `with` block, or make another `Context(parent)`."
            )
        object.__setattr__(self, name, value)

    made = dataclasses.dataclass(kw_only=True)(cls)
    made.__setattr__ = guarded  # pyright: ignore[reportAttributeAccessIssue]
    return made


class AtomicityMode(enum.StrEnum):
    """How a commit is made; here always by one create-only record."""

    AUTO = "auto"
    COMMIT_FILE = "commit_file"
    ATOMIC_RENAME = "atomic_rename"


class CheckpointLayout(enum.Enum):
    """The layout on disk; here always milepost's own, and `SAFETENSORS` for reading."""

    ORBAX = "orbax"
    SAFETENSORS = "safetensors"
    AUTO = "auto"


@_namespace
class AsyncOptions:
    """Saves in the background."""

    timeout_secs: int = 1200
    post_finalization_callback: Callable[[], None] | None = None
    create_directories_asynchronously: bool = True


@_namespace
class AtomicityOptions:
    """How a checkpoint is committed."""

    mode: AtomicityMode = AtomicityMode.AUTO
    allow_legacy_atomic_rename: bool = False


@_namespace
class MultiprocessingOptions:
    """Which processes save together."""

    primary_host: int | None = 0
    active_processes: set[int] | None = None
    barrier_sync_key_prefix: str | None = None


@_namespace
class FileOptions:
    """Files and paths."""

    path_permission_mode: int | None = None
    path_class: type[Any] = pathlib.Path
    skip_sync_file_validations: bool = False


@_namespace
class PyTreeMetadataOptions:
    """What is recorded of a tree's containers."""

    support_rich_types: bool = False


@_namespace
class _PyTreeSaving:
    pytree_metadata_options: PyTreeMetadataOptions = dataclasses.field(default_factory=PyTreeMetadataOptions)


@_namespace
class _PyTreeLoading:
    partial_load: bool = False


@_namespace
class PyTreeOptions:
    """Saving and loading of trees."""

    Saving = _PyTreeSaving
    Loading = _PyTreeLoading

    saving: _PyTreeSaving = dataclasses.field(default_factory=_PyTreeSaving)
    loading: _PyTreeLoading = dataclasses.field(default_factory=_PyTreeLoading)


@_namespace
class _StorageOptions:
    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] | None = None


class _ScopedStorageOptionsCreator(Protocol):
    def __call__(self, key: tuple[Any, ...], value: Any) -> _StorageOptions | None: ...


@_namespace
class _ArraySaving:
    StorageOptions = _StorageOptions
    ScopedStorageOptionsCreator = _ScopedStorageOptionsCreator

    storage_options: _StorageOptions = dataclasses.field(default_factory=_StorageOptions)
    use_ocdbt: bool = True
    use_zarr3: bool = True
    use_compression: bool = True
    ocdbt_target_data_file_size: int | None = None
    enable_pinned_host_transfer: bool | None = None
    enable_post_merge_validation: bool = True
    use_replica_parallel: bool | None = None
    min_slice_bytes_for_replica_parallel: int | None = None
    max_replicas_for_replica_parallel: int | None = None
    enable_replica_parallel_separate_folder: bool = False
    enable_write_sharding_file: bool = True
    array_metadata_store: Any = None
    scoped_storage_options_creator: _ScopedStorageOptionsCreator | None = None


@_namespace
class _LoadAndBroadcastOptions:
    replica_axis_index: int | None = 0
    primary_replica_id: int | None = 0
    broadcast_memory_limit_bytes: int | None = None
    broadcast_memory_scaling_factor: float | None = 0.75


@_namespace
class _ArrayLoading:
    LoadAndBroadcastOptions = _LoadAndBroadcastOptions

    enable_padding_and_truncation: bool = False
    raise_array_data_missing_error: bool = True
    use_load_and_broadcast: bool = False
    load_and_broadcast_options: _LoadAndBroadcastOptions = dataclasses.field(default_factory=_LoadAndBroadcastOptions)


@_namespace
class ArrayOptions:
    """Saving and loading of arrays."""

    Saving = _ArraySaving
    Loading = _ArrayLoading

    saving: _ArraySaving = dataclasses.field(default_factory=_ArraySaving)
    loading: _ArrayLoading = dataclasses.field(default_factory=_ArrayLoading)


@_namespace
class CheckpointablesOptions:
    """Which handler takes which object."""

    registry: CheckpointableHandlerRegistry = dataclasses.field(default_factory=default_registry)


@_namespace
class PathwaysOptions:
    """Pathways."""

    checkpointing_impl: Any = None


@_namespace
class _GcsDeletionOptions:
    todelete_full_path: str | None = None


@_namespace
class DeletionOptions:
    """Deletion."""

    GcsDeletionOptions = _GcsDeletionOptions

    gcs_deletion_options: _GcsDeletionOptions = dataclasses.field(default_factory=_GcsDeletionOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RegulatorOptions:
    max_memory_limit_gib: float
    profiler: Any
    target_ratio: float = 0.80
    min_memory_limit_gib: float = 10.0
    kp: float = 0.4
    ki: float = 0.05
    kd: float = 0.1


@_namespace
class MemoryOptions:
    """Memory for saving and loading."""

    RegulatorOptions = _RegulatorOptions

    write_concurrent_bytes: int | None = None
    read_concurrent_bytes: int | None = None
    transfer_concurrent_bytes: int | None = None
    regulator_options: _RegulatorOptions | None = None
    expected_surge_bytes: int | float | None = None
    is_prioritized_key_fn: Callable[[Any], bool] | None = None
    serialization_status_callback: Any = None
    deepcopy_host_arrays: bool = True


@_namespace
class SafetensorsOptions:
    """Reading of safetensors files."""

    max_over_read_ratio: float | None = None
    read_chunk_bytes: int | None = None
