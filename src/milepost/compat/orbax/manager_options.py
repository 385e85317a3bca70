# SPDX-License-Identifier: Apache-2.0
"""The options of a CheckpointManager, and the policies that they amount to."""

from __future__ import annotations

import datetime as dt
import logging
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import milepost as mp
from milepost.compat.orbax import preservation_policy as preserving
from milepost.compat.orbax import save_decision_policy as deciding
from milepost.compat.orbax import step as steps
from milepost.compat.orbax.options import AsyncOptions, AtomicityOptions, FileOptions, MultiprocessingOptions
from milepost.compat.orbax.preservation_policy import PreservationPolicy
from milepost.compat.orbax.save_decision_policy import DecisionContext, PolicyCheckpointInfo, SaveDecisionPolicy

_log = logging.getLogger("milepost.compat.orbax")


@dataclass
class CheckpointManagerOptions:
    """What a CheckpointManager does by itself. docs/doors/orbax.md says of each field what it does here."""

    save_interval_steps: int = 1
    max_to_keep: int | None = None
    keep_time_interval: dt.timedelta | None = None
    keep_period: int | None = None
    best_fn: Callable[[Any], Any] | None = None
    best_mode: str = "max"
    keep_checkpoints_without_metrics: bool = True
    step_prefix: str | None = None
    step_format_fixed_length: int | None = None
    step_name_format: steps.NameFormat | None = None
    create: bool = True
    cleanup_tmp_directories: bool = False
    save_on_steps: Container[int] | None = None
    single_host_load_and_broadcast: bool = False
    todelete_subdir: str | None = None
    todelete_full_path: str | None = None
    enable_background_delete: bool = False
    num_deletion_threads: int | None = None
    read_only: bool = False
    enable_async_checkpointing: bool = True
    async_options: AsyncOptions | None = None
    multiprocessing_options: MultiprocessingOptions = field(default_factory=MultiprocessingOptions)
    should_save_fn: Callable[[int, int | None], bool] | None = None
    file_options: FileOptions = field(default_factory=FileOptions)
    atomicity_options: AtomicityOptions | None = None
    save_root_metadata: bool = True
    temporary_path_class: Any = None
    save_decision_policy: SaveDecisionPolicy | None = None
    preservation_policy: PreservationPolicy | None = None
    prevent_write_metrics: bool = False
    enable_should_save_is_saving_in_progress_check: bool = True
    enable_per_process_directory_creation: bool = False
    lightweight_initialize: bool = False

    def __post_init__(self) -> None:
        of_format = getattr(self.step_name_format, "single_host_load_and_broadcast", False)
        if self.step_name_format is not None and of_format != self.single_host_load_and_broadcast:
            raise ValueError("single_host_load_and_broadcast: the options and step_name_format say different things")
        if self.best_mode not in ("min", "max"):
            raise ValueError(f"best_mode: expected 'min' or 'max', found {self.best_mode!r}")
        if self.preservation_policy is None and self.max_to_keep is not None and self.max_to_keep < 0:
            raise ValueError("Setting of `max_to_keep` must be None or non-negative.")
        if self.read_only:
            self._write_nothing()
        if self.todelete_subdir is not None and self.todelete_full_path is not None:
            raise ValueError("todelete_subdir and todelete_full_path: give one of them")
        if self.enable_per_process_directory_creation and self.multiprocessing_options.primary_host is not None:
            raise ValueError("enable_per_process_directory_creation needs primary_host=None")
        self.save_on_steps = self.save_on_steps or frozenset[int]()

    def _write_nothing(self) -> None:
        nothing: dict[str, Any] = {
            "save_interval_steps": 0, "max_to_keep": None, "keep_time_interval": None, "keep_period": None,
            "create": False, "cleanup_tmp_directories": False, "save_on_steps": None, "todelete_subdir": None,
            "todelete_full_path": None, "should_save_fn": None,
        }  # fmt: skip
        for name, value in nothing.items():
            if getattr(self, name) != value:
                _log.info("read_only=True, so %s=%r", name, value)
                setattr(self, name, value)


@dataclass
class _ShouldSave(SaveDecisionPolicy):
    """What `should_save_fn` says."""

    should_save_fn: Callable[[int, int | None], bool]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return self.should_save_fn(step.step, previous_steps[-1].step if previous_steps else None)


def save_policy(options: CheckpointManagerOptions) -> SaveDecisionPolicy:
    """Return the policy that decides when to save."""
    if options.save_decision_policy is not None:
        return options.save_decision_policy
    if options.should_save_fn is not None:
        own = _ShouldSave(options.should_save_fn)
        return deciding.AnySavePolicy([own, deciding.PreemptionCheckpointingPolicy()])
    assert options.save_on_steps is not None
    return deciding.AnySavePolicy(
        [
            deciding.FixedIntervalPolicy(options.save_interval_steps),
            deciding.SpecificStepsPolicy(options.save_on_steps),
            deciding.PreemptionCheckpointingPolicy(),
            deciding.InitialSavePolicy(),
        ]
    )


def keep_policy(options: CheckpointManagerOptions) -> PreservationPolicy:
    """Return the policy that decides what to keep.

    Raises:
        ValueError: there is a policy beside options that say the same.
    """
    if options.preservation_policy is not None:
        if options.keep_time_interval or options.max_to_keep or options.keep_period:
            raise ValueError("preservation_policy says it all: leave out max_to_keep, keep_period, keep_time_interval")
        return options.preservation_policy
    policies: list[PreservationPolicy] = []
    if options.keep_period is not None:
        policies.append(preserving.EveryNSteps(options.keep_period))
    if options.keep_time_interval is not None:
        policies.append(preserving.EveryNSeconds(options.keep_time_interval.total_seconds()))
    if options.best_fn is None:
        policies.append(preserving.LatestN(options.max_to_keep))
    else:
        policies.append(
            preserving.BestN(
                get_metric_fn=options.best_fn,
                reverse=options.best_mode == "min",
                n=options.max_to_keep,
                keep_checkpoints_without_metrics=options.keep_checkpoints_without_metrics,
            )
        )
    return preserving.AnyPreservationPolicy(policies)


def names(options: CheckpointManagerOptions) -> steps.NameFormat:
    """Return how the steps of a manager are named."""
    return options.step_name_format or steps.standard_name_format(
        step_prefix=options.step_prefix, step_format_fixed_length=options.step_format_fixed_length
    )


def step_format(options: CheckpointManagerOptions, there: mp.Catalog | None) -> mp.StepFormat | None:
    """Return how a new root names its steps; None when nobody says, so that a root that is there keeps its own.

    Raises:
        ValueError: names are not a prefix and the number.
    """
    if (options.step_name_format, options.step_prefix, options.step_format_fixed_length) == (None, None, None):
        return None
    chosen = names(options)
    read: Sequence[steps.NameFormat] = getattr(chosen, "read_name_formats", ())
    if there is not None and any(steps.native(each) == there.step_format for each in read):
        return None  # a composite format goes on in the names that are there
    return steps.native(chosen)


def check(options: CheckpointManagerOptions) -> None:
    """Refuse what cannot be done.

    Raises:
        ValueError: options that contradict each other.
        NotImplementedError: what needs several processes, or another kind of store.
    """
    background = options.async_options
    if background is not None and background.timeout_secs <= 0:
        raise ValueError(f"Timeout must be positive, but got {background.timeout_secs} seconds.")
    if background is not None and background.post_finalization_callback and not options.enable_async_checkpointing:
        raise ValueError("post_finalization_callback is for saves in the background only")
    if options.create and options.multiprocessing_options.active_processes is not None:
        raise NotImplementedError("create=True with active_processes: make the directory yourself")
    if options.todelete_full_path is not None:
        raise NotImplementedError("todelete_full_path is for gs:// only\n  Use todelete_subdir on a file system.")
    jax: Any = sys.modules.get("jax")
    if not options.read_only and jax is not None and jax.process_count() > 1:
        raise NotImplementedError(
            f"{jax.process_count()} processes cannot save together yet\n"
            "  Let process 0 alone have the manager; the others may have one with read_only=True."
        )
