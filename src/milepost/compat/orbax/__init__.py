# SPDX-License-Identifier: Apache-2.0
"""The names of `orbax.checkpoint` over milepost: change `import orbax.checkpoint as ocp`, and go on.

docs/doors/orbax.md lists every name, with what is the same, what is better, and what is not here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from milepost.compat.orbax import (
    abstract_checkpoint_manager,
    args,
    checkpoint_manager,
    checkpoint_managers,
    checkpoint_utils,
    checkpointers,
    future,
    handlers,
    metadata,
    options,
    path,
    step,
    transform_utils,
    tree,
)
from milepost.compat.orbax import args as checkpoint_args
from milepost.compat.orbax import everyday as utils
from milepost.compat.orbax import fresh_folders as test_utils
from milepost.compat.orbax import leaf_args as type_handlers
from milepost.compat.orbax import loggers as logging
from milepost.compat.orbax import processes as multihost
from milepost.compat.orbax import tree as arrays
from milepost.compat.orbax.abstract_checkpoint_manager import AbstractCheckpointManager
from milepost.compat.orbax.checkpoint_manager import CheckpointManager, StepAlreadyExistsError
from milepost.compat.orbax.checkpointers import (
    AbstractCheckpointer,
    AsyncCheckpointer,
    Checkpointer,
    CompositeCheckpointHandler,
    CompositeOptions,
    PyTreeCheckpointer,
    StandardCheckpointer,
)
from milepost.compat.orbax.future import Future
from milepost.compat.orbax.leaf_args import PLACEHOLDER, ArrayRestoreArgs, RestoreArgs, SaveArgs
from milepost.compat.orbax.manager_options import CheckpointManagerOptions
from milepost.compat.orbax.metadata import RootMetadata, StepMetadata
from milepost.compat.orbax.native_handlers import (
    ArrayCheckpointHandler,
    AsyncCheckpointHandler,
    CheckpointHandler,
    JaxRandomKeyCheckpointHandler,
    JsonCheckpointHandler,
    NumpyRandomKeyCheckpointHandler,
    ProtoCheckpointHandler,
    PyTreeCheckpointHandler,
    StandardCheckpointHandler,
)
from milepost.compat.orbax.options import AsyncOptions
from milepost.compat.orbax.registry import CheckpointHandlerRegistry, DefaultCheckpointHandlerRegistry
from milepost.compat.orbax.transform_utils import RestoreTransform, Transform, apply_transformations, merge_trees

__all__ = [
    "PLACEHOLDER", "AbstractCheckpointManager", "AbstractCheckpointer", "ArrayCheckpointHandler", "ArrayRestoreArgs",
    "AsyncCheckpointHandler", "AsyncCheckpointer", "AsyncOptions", "CheckpointHandler", "CheckpointHandlerRegistry",
    "CheckpointManager", "CheckpointManagerOptions", "Checkpointer", "CompositeCheckpointHandler", "CompositeOptions",
    "DefaultCheckpointHandlerRegistry", "Future", "JaxRandomKeyCheckpointHandler", "JsonCheckpointHandler",
    "NumpyRandomKeyCheckpointHandler", "ProtoCheckpointHandler", "PyTreeCheckpointHandler", "PyTreeCheckpointer",
    "RestoreArgs", "RestoreTransform", "RootMetadata", "SaveArgs", "StandardCheckpointHandler", "StandardCheckpointer",
    "StepAlreadyExistsError", "StepMetadata", "Transform", "abstract_checkpoint_manager", "apply_transformations",
    "args", "arrays", "checkpoint_args", "checkpoint_manager", "checkpoint_managers", "checkpoint_utils",
    "checkpointers", "future", "handlers", "logging", "merge_trees", "metadata", "multihost", "options", "path", "step",
    "test_utils", "transform_utils", "tree", "type_handlers", "utils",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "v1":
        return import_module("milepost.compat.orbax_v1")
    raise AttributeError(f"milepost.compat.orbax has no {name!r}: docs/doors/orbax.md says what is not here, and why")


def __dir__() -> list[str]:
    return [*globals(), "v1"]
