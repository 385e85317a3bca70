# SPDX-License-Identifier: Apache-2.0
"""`Checkpointer`: saves the steps of a training loop, and gives them back."""

from __future__ import annotations

import datetime as dt
import logging
import operator
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import milepost as mp
from milepost.compat.orbax_v1 import free, items, multihost, places
from milepost.compat.orbax_v1.context import Context, get_context
from milepost.compat.orbax_v1.described import CheckpointMetadata, RootMetadata, StepCheckpointMetadata, nanoseconds
from milepost.compat.orbax_v1.items import STATE
from milepost.compat.orbax_v1.path.step import NameFormat, standard_name_format, step_format
from milepost.compat.orbax_v1.path.types import PathLike
from milepost.compat.orbax_v1.response import AsyncResponse, Response, started
from milepost.compat.orbax_v1.training import preservation_policies, save_decision_policies
from milepost.compat.orbax_v1.training.errors import StepAlreadyExistsError, StepNotFoundError
from milepost.compat.orbax_v1.training.save_decision_policies import DecisionContext
from milepost.compat.orbax_v1.training.steps import Step, Steps, metrics_of, step_of

_log = logging.getLogger("milepost")


@final
class Checkpointer:
    """A sequence of checkpoints of one training loop.

    The root is made by the first save, and so is the lock that keeps other processes from saving there; reading needs
    none. Use it in a `with`, or call `close`; a save in flight is finished even when the program just ends.

    Args:
        directory: the root.
        context: options for all calls; an enclosing `with Context()` comes before it.
        save_decision_policy: when to save; by default the first time, then as soon as the last save is written, and
            on preemption.
        preservation_policy: which checkpoints stay; by default all.
        step_name_format: how steps are named; a root keeps the names that it was made with.
        custom_metadata: what JSON can hold, about the whole sequence; kept when the root is made.
        cleanup_tmp_directories: no effect: what was left unfinished is always removed by the next save.
        lightweight_initialize: no effect: a step's record is one small file.
        logger: has `log_entry(dict)`, called after each save and load.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        context: Context | None = None,
        save_decision_policy: save_decision_policies.SaveDecisionPolicy | None = None,
        preservation_policy: preservation_policies.PreservationPolicy | None = None,
        step_name_format: NameFormat[Any] | None = None,
        custom_metadata: Any = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
        logger: Any = None,
    ) -> None:
        self._context = Context(context or get_context())
        if self._context.deletion.gcs_deletion_options.todelete_full_path is not None:
            raise NotImplementedError("todelete_full_path: deleted steps are not moved elsewhere\n  Leave it out.")
        self._decide = save_decision_policy or save_decision_policies.AnySavePolicy([
            save_decision_policies.InitialSavePolicy(),
            save_decision_policies.ContinuousCheckpointingPolicy(),
            save_decision_policies.PreemptionCheckpointingPolicy(),
        ])  # fmt: skip
        self._preserve = preservation_policy or preservation_policies.PreserveAll()
        self._names = step_format(step_name_format or standard_name_format())
        self._custom = custom_metadata
        self._logger = logger
        self._root = Path(os.path.abspath(directory))
        self._root.mkdir(parents=True, exist_ok=True)
        self._steps = Steps(self._root)
        self._saver: mp.Checkpointer | None = None
        self._saving: Response[bool] | None = None
        self._saving_step: int | None = None
        self._deleting: Response[bool] | None = None
        self._why = _Because()
