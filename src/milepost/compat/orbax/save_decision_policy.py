# SPDX-License-Identifier: Apache-2.0
"""Policies that decide when to save."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from milepost.compat.orbax.options import MultiprocessingOptions


class PolicyCheckpointInfo(Protocol):
    """One checkpoint as a policy sees it."""

    step: int
    time: dt.datetime
    metrics: Any | None


@dataclass(kw_only=True)
class DecisionContext:
    """What else a decision may depend on.

    Attributes:
        is_saving_in_progress: a save is still being written.
        reached_preemption: the machine is about to go away, and every process agrees on it.
        multiprocessing_options: the manager's.
    """

    is_saving_in_progress: bool
    reached_preemption: bool
    multiprocessing_options: MultiprocessingOptions


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides when to save."""

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Return whether to save; asked only about steps above the latest."""
        ...


@dataclass
class FixedIntervalPolicy(SaveDecisionPolicy):
    """At the multiples of an interval."""

    interval: int

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return step.step % self.interval == 0


@dataclass
class SpecificStepsPolicy(SaveDecisionPolicy):
    """At the given steps."""

    steps: Container[int]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return step.step in self.steps


@dataclass(kw_only=True)
class ContinuousCheckpointingPolicy(SaveDecisionPolicy):
    """As soon as the last save is written, but not within so many seconds of it."""

    minimum_interval_secs: int | None = None

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        if context.is_saving_in_progress:
            return False
        if not previous_steps or self.minimum_interval_secs is None:
            return True
        return step.time - previous_steps[-1].time >= dt.timedelta(seconds=self.minimum_interval_secs)


class PreemptionCheckpointingPolicy(SaveDecisionPolicy):
    """When the machine is about to go away."""

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return context.reached_preemption


class InitialSavePolicy(SaveDecisionPolicy):
    """As long as there is no checkpoint."""

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return not previous_steps


@dataclass
class AnySavePolicy(SaveDecisionPolicy):
    """When one of them says so."""

    policies: Sequence[SaveDecisionPolicy]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        return reason(self, step, previous_steps, context) is not None


def reason(
    policy: SaveDecisionPolicy,
    step: PolicyCheckpointInfo,
    previous_steps: Sequence[PolicyCheckpointInfo],
    context: DecisionContext,
) -> str | None:
    """Return the name of the policy that wants the save, None when none does; it is stored as the step's reason."""
    if type(policy) is AnySavePolicy:
        reasons = (reason(child, step, previous_steps, context) for child in policy.policies)
        return next((text for text in reasons if text is not None), None)
    return type(policy).__name__ if policy.should_save(step, previous_steps, context=context) else None
