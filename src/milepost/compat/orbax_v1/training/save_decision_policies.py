# SPDX-License-Identifier: Apache-2.0
"""When a step is saved. Any object with `should_save` is a policy."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from milepost.compat.orbax_v1.options import MultiprocessingOptions


@dataclass(kw_only=True)
class DecisionContext:
    """What a policy may know besides the steps.

    Attributes:
        is_saving_in_progress: whether a save is still being written.
        reached_preemption: whether JAX says that this step is the one to save before the machine goes away.
        multiprocessing_options: those of the context.
    """

    is_saving_in_progress: bool
    reached_preemption: bool
    multiprocessing_options: MultiprocessingOptions


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides when to save; asked only above the latest step."""

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        """Return whether to save.

        Args:
            step: the step that is asked about, with `step`, `time` (now) and `metrics` (None).
            previous_steps: the checkpoints there are, oldest first, with `step`, `time` and `metrics`.
            context: what else is known.
        """
        ...


@dataclass
class FixedIntervalPolicy:
    """At every multiple of an interval."""

    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"FixedIntervalPolicy(interval={self.interval}): expected 1 or more")

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        return step.step % self.interval == 0


@dataclass
class SpecificStepsPolicy:
    """At the given steps."""

    steps: Container[int]

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        return step.step in self.steps


@dataclass(kw_only=True)
class ContinuousCheckpointingPolicy:
    """As soon as the last save is written, but not within so many seconds of it."""

    minimum_interval_secs: int | None = None

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        if context.is_saving_in_progress:
            return False
        if not previous_steps or self.minimum_interval_secs is None:
            return True
        return step.time - previous_steps[-1].time >= dt.timedelta(seconds=self.minimum_interval_secs)


class PreemptionCheckpointingPolicy:
    """When the machine is about to go away."""

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        return context.reached_preemption


class InitialSavePolicy:
    """As long as nothing is saved."""

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        return not previous_steps


@dataclass
class AnySavePolicy:
    """When one of several says so; those after the first that does are not asked."""

    policies: Sequence[SaveDecisionPolicy]

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: DecisionContext) -> bool:
        return any(policy.should_save(step, previous_steps, context=context) for policy in self.policies)
