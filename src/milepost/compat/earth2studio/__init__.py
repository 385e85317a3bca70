# SPDX-License-Identifier: Apache-2.0
"""The names of `earth2studio.utils.checkpoint`, on milepost's engine.

Change one import: `from milepost.compat.earth2studio import Checkpoint`.
"""

from __future__ import annotations

from milepost.compat.earth2studio.checkpoint import Checkpoint, bind_checkpoint_state
from milepost.compat.earth2studio.entry import CheckpointEntry, CheckpointLevel
from milepost.compat.earth2studio.environment import default_checkpoint_path
from milepost.compat.earth2studio.errors import (
    CheckpointError,
    CheckpointSerializationError,
    CheckpointStateCollision,
    CheckpointStateSchemaError,
)
from milepost.compat.earth2studio.null import NullCheckpoint
from milepost.compat.earth2studio.session import CheckpointSession
from milepost.compat.earth2studio.state import CheckpointState, LoadedState, PendingCheckpointState

__all__ = [
    "Checkpoint",
    "CheckpointEntry",
    "CheckpointError",
    "CheckpointLevel",
    "CheckpointSerializationError",
    "CheckpointSession",
    "CheckpointState",
    "CheckpointStateCollision",
    "CheckpointStateSchemaError",
    "LoadedState",
    "NullCheckpoint",
    "PendingCheckpointState",
    "bind_checkpoint_state",
    "default_checkpoint_path",
]
