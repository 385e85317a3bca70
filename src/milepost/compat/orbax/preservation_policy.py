# SPDX-License-Identifier: Apache-2.0
"""Policies that decide what to keep. Each is given the checkpoints by step, and says of each whether it stays."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol

from milepost.compat.orbax.save_decision_policy import PolicyCheckpointInfo


@dataclass(kw_only=True)
class PreservationContext:
    """What else a decision may depend on: nothing yet."""


class PreservationPolicy(Protocol):
    """Decides what to keep."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Return, for each checkpoint, whether it stays."""
        ...


@dataclass
class PreserveAll(PreservationPolicy):
    """All of them."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return [True] * len(checkpoints)


@dataclass
class LatestN(PreservationPolicy):
    """The newest `n`; None: all."""

    n: int | None = None

    def __post_init__(self) -> None:
        _check_count("LatestN(n)", self.n)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return _last([True] * len(checkpoints), self.n)


@dataclass
class EveryNSeconds(PreservationPolicy):
    """The first, then each time the first that was saved at least that much later."""

    interval_secs: float

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        interval = dt.timedelta(seconds=self.interval_secs)
        kept: list[bool] = []
        last: dt.datetime | None = None
        for info in checkpoints:
            kept.append(last is None or info.time - last >= interval)
            last = info.time if kept[-1] or last is None else last
        return kept


@dataclass
class EveryNSteps(PreservationPolicy):
    """The multiples of an interval; or, if not exact, the first and then each that is that far from the one before.

    Attributes:
        max_to_keep: of those, the newest so many.
    """

    interval_steps: int
    exact_interval: bool = True
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        _check_interval(self.interval_steps)
        _check_count("EveryNSteps(max_to_keep)", self.max_to_keep)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        if self.exact_interval:
            return _last([info.step % self.interval_steps == 0 for info in checkpoints], self.max_to_keep)
        kept: list[bool] = []
        last: int | None = None
        for info in checkpoints:
            kept.append(last is None or info.step - last >= self.interval_steps)
            last = info.step if kept[-1] or last is None else last
        return _last(kept, self.max_to_keep)


@dataclass
class EveryNStepsClosest(PreservationPolicy):
    """For each multiple of an interval the checkpoint that is nearest to it, and the last one."""

    interval_steps: int
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        _check_interval(self.interval_steps)
        _check_count("EveryNStepsClosest(max_to_keep)", self.max_to_keep)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        nearest: dict[int, tuple[int, int]] = {}
        for place, info in enumerate(checkpoints):
            multiple = round(info.step / self.interval_steps)
            distance = abs(info.step - multiple * self.interval_steps)
            if multiple not in nearest or distance <= nearest[multiple][0]:
                nearest[multiple] = distance, place
        chosen = {place for _, place in nearest.values()} | {len(checkpoints) - 1}
        return _last([place in chosen for place in range(len(checkpoints))], self.max_to_keep)


@dataclass
class CustomSteps(PreservationPolicy):
    """The given steps."""

    steps: InitVar[Sequence[int]]
    _steps_set: set[int] = field(init=False)

    def __post_init__(self, steps: Sequence[int]) -> None:
        self._steps_set = set(steps)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return [info.step in self._steps_set for info in checkpoints]


@dataclass
class AnyPreservationPolicy(PreservationPolicy):
    """What one of them keeps."""

    policies: Sequence[PreservationPolicy]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("AnyPreservationPolicy: without a policy, nothing would be kept\n  Give it one or more.")

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        answers = [policy.should_preserve(checkpoints, context=context) for policy in self.policies]
        return [any(answer) for answer in zip(*answers, strict=True)]


@dataclass(kw_only=True)
class BestN(PreservationPolicy):
    """The `n` best by a metric; on a tie the later one. One that is NaN is worse than any number.

    Attributes:
        get_metric_fn: the metric, of all metrics of a checkpoint. When it fails there is none, with a warning.
        reverse: the smallest is best.
        n: None: all; 0: none.
        keep_checkpoints_without_metrics: whether those stay; else they go first.
    """

    get_metric_fn: Callable[[Any], Any]
    reverse: bool = False
    n: int | None = None
    keep_checkpoints_without_metrics: bool = True

    def __post_init__(self) -> None:
        _check_count("BestN(n)", self.n)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        count = len(checkpoints)
        if self.n is None or count <= self.n:
            return [True] * count
        if self.n == 0:
            return [False] * count
        ranking = ranked(checkpoints, self.get_metric_fn, reverse=self.reverse)
        kept = set(ranking[-self.n :])
        if self.keep_checkpoints_without_metrics:
            kept.update(set(range(count)).difference(ranking))
        return [place in kept for place in range(count)]


@dataclass
class LatestDuration(PreservationPolicy):
    """The first that is newer than a span of time ago, and all after it."""

    duration: dt.timedelta

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        since = dt.datetime.now(dt.UTC) - self.duration
        first = next((place for place, info in enumerate(checkpoints) if info.time >= since), len(checkpoints))
        return [place >= first for place in range(len(checkpoints))]


def ranked(checkpoints: Sequence[PolicyCheckpointInfo], metric: Callable[[Any], Any], *, reverse: bool) -> list[int]:
    """Return the places of the checkpoints that have the metric, the best last; on a tie the later one is better."""
    numbers: list[tuple[int, Any]] = []
    undefined: list[int] = []
    for place, info in enumerate(checkpoints):
        if info.metrics is None:
            continue
        try:
            value = metric(info.metrics)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            # The metrics of one step, maybe of an older version of the program, must not stop the run.
            warnings.warn(f"step {info.step} counts as without metrics: {error!r}", RuntimeWarning, stacklevel=2)
            continue
        if value is None:
            continue
        if bool(value != value):  # noqa: PLR0124 true of NaN alone, of any type
            undefined.append(place)
        else:
            numbers.append((place, value))
    numbers.sort(key=lambda pair: pair[1], reverse=reverse)
    return [*undefined, *(place for place, _ in numbers)]


def _last(kept: Sequence[bool], count: int | None) -> list[bool]:
    """Return `kept` with only the last `count` of those that are true."""
    if count is None:
        return list(kept)
    places = [place for place, keep in enumerate(kept) if keep]
    chosen = set(places[len(places) - count :] if count < len(places) else places)
    return [place in chosen for place in range(len(kept))]


def _check_count(what: str, count: int | None) -> None:
    if count is not None and count < 0:
        raise ValueError(f"{what}: expected None or 0 or more, found {count}")


def _check_interval(interval: int) -> None:
    if interval < 1:
        raise ValueError(f"interval_steps: expected 1 or more, found {interval}")
