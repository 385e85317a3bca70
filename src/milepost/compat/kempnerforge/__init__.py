# SPDX-License-Identifier: Apache-2.0
"""KempnerForge's checkpointing, on milepost: the same names, another engine."""

from milepost.compat.kempnerforge.async_checkpointer import AsyncCheckpointer
from milepost.compat.kempnerforge.checkpoint_manager import CheckpointManager, resolve_resume_path
from milepost.compat.kempnerforge.config import (
    AsyncCheckpointMode,
    CheckpointConfig,
    DynamicCheckpointWindow,
    registry,
)
from milepost.compat.kempnerforge.shutdown import ShutdownHandler
from milepost.compat.kempnerforge.train_state import (
    build_train_state,
    get_rng_state,
    restore_train_state,
    set_rng_state,
)

__all__ = [
    "AsyncCheckpointMode", "AsyncCheckpointer", "CheckpointConfig", "CheckpointManager", "DynamicCheckpointWindow",
    "ShutdownHandler", "build_train_state", "get_rng_state", "registry", "resolve_resume_path", "restore_train_state",
    "set_rng_state",
]  # fmt: skip
