# SPDX-License-Identifier: Apache-2.0
"""Handlers and their arguments under the names of `ocp.handlers`."""

from __future__ import annotations

from milepost.compat.orbax.args import ArrayRestore as ArrayRestoreArgs
from milepost.compat.orbax.args import ArraySave as ArraySaveArgs
from milepost.compat.orbax.args import Composite as CompositeArgs
from milepost.compat.orbax.args import JaxRandomKeyRestore as JaxRandomKeyRestoreArgs
from milepost.compat.orbax.args import JaxRandomKeySave as JaxRandomKeySaveArgs
from milepost.compat.orbax.args import JsonRestore as JsonRestoreArgs
from milepost.compat.orbax.args import JsonSave as JsonSaveArgs
from milepost.compat.orbax.args import NumpyRandomKeyRestore as NumpyRandomKeyRestoreArgs
from milepost.compat.orbax.args import NumpyRandomKeySave as NumpyRandomKeySaveArgs
from milepost.compat.orbax.args import ProtoRestore as ProtoRestoreArgs
from milepost.compat.orbax.args import ProtoSave as ProtoSaveArgs
from milepost.compat.orbax.args import PyTreeRestore as PyTreeRestoreArgs
from milepost.compat.orbax.args import PyTreeSave as PyTreeSaveArgs
from milepost.compat.orbax.args import StandardRestore as StandardRestoreArgs
from milepost.compat.orbax.args import StandardSave as StandardSaveArgs
from milepost.compat.orbax.checkpointers import CompositeCheckpointHandler, CompositeOptions
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
from milepost.compat.orbax.registry import (
    CheckpointHandlerRegistry,
    DefaultCheckpointHandlerRegistry,
    create_default_handler_registry,
)

CompositeResults = CompositeArgs

__all__ = [
    "ArrayCheckpointHandler", "ArrayRestoreArgs", "ArraySaveArgs", "AsyncCheckpointHandler", "CheckpointHandler",
    "CheckpointHandlerRegistry", "CompositeArgs", "CompositeCheckpointHandler", "CompositeOptions", "CompositeResults",
    "DefaultCheckpointHandlerRegistry", "JaxRandomKeyCheckpointHandler", "JaxRandomKeyRestoreArgs",
    "JaxRandomKeySaveArgs", "JsonCheckpointHandler", "JsonRestoreArgs", "JsonSaveArgs",
    "NumpyRandomKeyCheckpointHandler", "NumpyRandomKeyRestoreArgs", "NumpyRandomKeySaveArgs", "ProtoCheckpointHandler",
    "ProtoRestoreArgs", "ProtoSaveArgs", "PyTreeCheckpointHandler", "PyTreeRestoreArgs", "PyTreeSaveArgs",
    "StandardCheckpointHandler", "StandardRestoreArgs", "StandardSaveArgs", "create_default_handler_registry",
]  # fmt: skip
