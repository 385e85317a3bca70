# SPDX-License-Identifier: Apache-2.0
"""milepost keeps the state of long-running numerical programs: training runs, and inference rollouts."""

from milepost import policy
from milepost.adapters import is_stateful
from milepost.catalog import Catalog, Pruning, Restored
from milepost.catalog import open_catalog as open  # noqa: A004 always written `milepost.open`, as in `gzip.open`
from milepost.checkpoint import Checkpoint, Report
from milepost.checkpointer import Checkpointer
from milepost.component import Level
from milepost.diff import Diff
from milepost.engine.transfer import Limits
from milepost.errors import (
    CheckpointError,
    CommitUnknownError,
    ConflictError,
    CorruptionError,
    FormatError,
    NotFoundError,
    SaveFailedError,
    StorageError,
    StructureError,
    UnsupportedLeafError,
)
from milepost.leafref import LeafRef
from milepost.model.format import StepFormat
from milepost.model.leaf import Box, LeafSpec
from milepost.model.tree import SKIP, PerProcess
from milepost.once import load, save
from milepost.pending import PendingSave
from milepost.policy import (
    All,
    Best,
    Continuous,
    Every,
    EveryNSteps,
    First,
    Latest,
    OnPreemption,
    OnSteps,
    Spaced,
    Window,
    Within,
    register_strategy,
)
from milepost.session import Item, Session, bind

__version__ = "0.1.0.dev0"

__all__ = [
    "SKIP", "All", "Best", "Box", "Catalog", "Checkpoint", "CheckpointError", "Checkpointer", "CommitUnknownError",
    "ConflictError", "Continuous", "CorruptionError", "Diff", "Every", "EveryNSteps", "First", "FormatError", "Item",
    "Latest", "LeafRef", "LeafSpec", "Level", "Limits", "NotFoundError", "OnPreemption", "OnSteps", "PendingSave",
    "PerProcess", "Pruning", "Report", "Restored", "SaveFailedError", "Session", "Spaced", "StepFormat",
    "StorageError", "StructureError", "UnsupportedLeafError", "Window", "Within", "bind", "is_stateful",
    "load", "open", "policy", "register_strategy", "save",
]  # fmt: skip
