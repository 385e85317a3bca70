# SPDX-License-Identifier: Apache-2.0
"""A sequence of checkpoints in a training loop."""

from milepost.compat.orbax_v1.described import RootMetadata
from milepost.compat.orbax_v1.described import StepCheckpointMetadata as CheckpointMetadata
from milepost.compat.orbax_v1.training import errors, preservation_policies, save_decision_policies
from milepost.compat.orbax_v1.training.checkpointer import Checkpointer

__all__ = [
    "CheckpointMetadata", "Checkpointer", "RootMetadata", "errors", "preservation_policies", "save_decision_policies",
]  # fmt: skip
