# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints stay. Any object with `should_preserve` is a policy.

Checkpoints come oldest first, the one that is being saved among them.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol, runtime_checkable

NestedDict = dict[str, Any]
PyTree = Any


@dataclass(kw_only=True)
class PreservationContext:
    """What a policy may know besides the checkpoints: nothing so far."""


@runtime_checkable
class PreservationPolicy(Protocol):
    """Decides which checkpoints stay."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        """Return for each checkpoint (with `step`, `time` and `metrics`) whether it stays."""
        ...


@dataclass
class PreserveAll:
    """All of them."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        return [True] * len(checkpoints)


@dataclass
class LatestN:
    """The newest `n`; all with None, none with 0."""

    n: int | None = None

    def __post_init__(self) -> None:
        _not_negative("LatestN(n", self.n)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        return _last(self.n, [True] * len(checkpoints))


@dataclass
class LatestDuration:
    """Those of the last span of time, and whatever is newer than the first of them."""

    duration: dt.timedelta

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        now, kept = dt.datetime.now(dt.UTC), False
        result: list[bool] = []
        for checkpoint in checkpoints:
            kept = kept or now - checkpoint.time <= self.duration
            result.append(kept)
        return result


@dataclass
class EveryNSeconds:
    """The first, then each that came at least so many seconds after the last one kept."""

    interval_secs: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        last: dt.datetime | None = None
        result: list[bool] = []
        for checkpoint in checkpoints:
            kept = last is None or checkpoint.time - last >= dt.timedelta(seconds=self.interval_secs)
            last = checkpoint.time if kept else last
            result.append(kept)
        return result


@dataclass
class EveryNSteps:
    """The multiples of an interval; when not exact, the first, then each at least that many steps after the last kept.

    Of these, the newest `max_to_keep`.
    """

    interval_steps: int
    exact_interval: bool = True
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        _interval("EveryNSteps", self.interval_steps)
        _not_negative("EveryNSteps(max_to_keep", self.max_to_keep)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        last: int | None = None
        result: list[bool] = []
        for checkpoint in checkpoints:
            if self.exact_interval:
                result.append(checkpoint.step % self.interval_steps == 0)
                continue
            kept = last is None or checkpoint.step - last >= self.interval_steps
            last = checkpoint.step if kept else last
            result.append(kept)
        return _last(self.max_to_keep, result)


@dataclass
class EveryNStepsClosest:
    """For each multiple of an interval the nearest checkpoint, on a tie the later, and the newest of all.

    Of these, the newest `max_to_keep`.
    """

    interval_steps: int
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        _interval("EveryNStepsClosest", self.interval_steps)
        _not_negative("EveryNStepsClosest(max_to_keep", self.max_to_keep)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        nearest: dict[int, tuple[int, int]] = {}  # multiple -> how far off, which one
        for i, checkpoint in enumerate(checkpoints):
            multiple = round(checkpoint.step / self.interval_steps)
            off = abs(checkpoint.step - multiple * self.interval_steps)
            if multiple not in nearest or off <= nearest[multiple][0]:
                nearest[multiple] = off, i
        kept = {i for _, i in nearest.values()} | {len(checkpoints) - 1}
        return _last(self.max_to_keep, [i in kept for i in range(len(checkpoints))])


@dataclass
class CustomSteps:
    """The given steps."""

    steps: InitVar[Sequence[int]]
    _steps: frozenset[int] = field(init=False)

    def __post_init__(self, steps: Sequence[int]) -> None:
        self._steps = frozenset(steps)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        return [checkpoint.step in self._steps for checkpoint in checkpoints]


@dataclass(kw_only=True)
class BestN:
    """The `n` with the largest metric, with `reverse` the smallest; all with None, none with 0. On a tie the later.

    NaN is never best: a checkpoint with it ranks after all others. It protects nothing else, not even the newest.
    """

    get_metric_fn: Callable[[Any], float]
    reverse: bool = False
    n: int | None = None
    keep_checkpoints_without_metrics: bool = True

    def __post_init__(self) -> None:
        _not_negative("BestN(n", self.n)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        if self.n is None or len(checkpoints) <= self.n:
            return [True] * len(checkpoints)
        if self.n == 0:
            return [False] * len(checkpoints)
        scores: list[tuple[float, int]] = []
        for i, checkpoint in enumerate(checkpoints):
            if checkpoint.metrics is not None:
                metric = float(self.get_metric_fn(checkpoint.metrics))
                scores.append((-math.inf if math.isnan(metric) else -metric if self.reverse else metric, i))
        best = {i for _, i in sorted(scores)[-self.n :]}
        unscored = self.keep_checkpoints_without_metrics
        return [i in best or (unscored and c.metrics is None) for i, c in enumerate(checkpoints)]


@dataclass
class AnyPreservationPolicy:
    """Those that one of several policies keeps."""

    policies: Sequence[PreservationPolicy]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("AnyPreservationPolicy: expected one policy or more; none would keep nothing")

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        answers = [policy.should_preserve(checkpoints, context=context) for policy in self.policies]
        return [any(each) for each in zip(*answers, strict=True)]


def _last(n: int | None, kept: list[bool]) -> list[bool]:
    """Return the flags with only the last `n` set."""
    if n is None:
        return kept
    places = [i for i, flag in enumerate(kept) if flag]
    stay = set(places[max(0, len(places) - n) :])
    return [i in stay for i in range(len(kept))]


def _interval(what: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{what}(interval_steps={steps}): interval_steps must not be 0, or below")


def _not_negative(what: str, n: int | None) -> None:
    if n is not None and n < 0:
        raise ValueError(f"{what}={n}): expected 0 or more, or None for no limit")
