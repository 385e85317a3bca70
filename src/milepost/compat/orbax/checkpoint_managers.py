# SPDX-License-Identifier: Apache-2.0
"""Managers and their policies."""

from __future__ import annotations

from milepost.compat.orbax import preservation_policy, save_decision_policy
from milepost.compat.orbax.abstract_checkpoint_manager import AbstractCheckpointManager
from milepost.compat.orbax.checkpoint_manager import CheckpointManager, StepAlreadyExistsError
from milepost.compat.orbax.manager_options import CheckpointManagerOptions
from milepost.compat.orbax.preservation_policy import (
    AnyPreservationPolicy,
    BestN,
    CustomSteps,
    EveryNSeconds,
    EveryNSteps,
    EveryNStepsClosest,
    LatestDuration,
    LatestN,
    PreservationContext,
    PreservationPolicy,
    PreserveAll,
)
from milepost.compat.orbax.save_decision_policy import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    DecisionContext,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PolicyCheckpointInfo,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
    SpecificStepsPolicy,
)

__all__ = [
    "AbstractCheckpointManager", "AnyPreservationPolicy", "AnySavePolicy", "BestN", "CheckpointManager",
    "CheckpointManagerOptions", "ContinuousCheckpointingPolicy", "CustomSteps", "DecisionContext", "EveryNSeconds",
    "EveryNSteps", "EveryNStepsClosest", "FixedIntervalPolicy", "InitialSavePolicy", "LatestDuration", "LatestN",
    "PolicyCheckpointInfo", "PreemptionCheckpointingPolicy", "PreservationContext", "PreservationPolicy", "PreserveAll",
    "SaveDecisionPolicy", "SpecificStepsPolicy", "StepAlreadyExistsError", "preservation_policy",
    "save_decision_policy",
]  # fmt: skip
