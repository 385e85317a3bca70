# SPDX-License-Identifier: Apache-2.0
"""Policies that answer both questions: when to save, and what to keep."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from milepost.policy.family import Moment, Saved, both_or, both_ror


@dataclass(frozen=True, slots=True)
class EveryNSteps:
    """Once in every `n` steps.

    To save: due when the step enters a new bucket `step // n` since the last save, so a cadence holds although a time
    policy or a preemption saved at an odd step in between. Step 0 is not due; add `First()`.

    To keep: the first checkpoint of each bucket. After a rollback to an earlier step the buckets count again, so the
    new line of the run keeps its own.
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "EveryNSteps(n)", least=1))

    def due(self, moment: Moment) -> str | None:
        return str(self) if not moment.behind and moment.step // self.n > (moment.last_step or 0) // self.n else None

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        kept: dict[int, str] = {}
        bucket = None
        for saved in history:
            if saved.step // self.n != bucket:
                kept[saved.step] = str(self)
            bucket = saved.step // self.n
        return kept

    __or__ = both_or
    __ror__ = both_ror

    def __str__(self) -> str:
        return "every step" if self.n == 1 else f"every {self.n} steps"


@dataclass(frozen=True, slots=True, init=False)
class Every:
    """Once in a span of time.

    To save: due when that much time has passed since this process last began a save, or since it was opened, on a
    monotonic clock.

    To keep: the oldest checkpoint, then each time the first that was created at least that much later. A checkpoint
    with an earlier time than the one kept before it (a clock set back) starts the count anew.
    """

    seconds: float

    def __init__(self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        object.__setattr__(self, "seconds", span_s("Every", seconds, minutes, hours, days))

    def due(self, moment: Moment) -> str | None:
        since_s = moment.opened_s if moment.last_s is None else moment.last_s
        return str(self) if not moment.behind and moment.now_s - since_s >= self.seconds else None

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        kept: dict[int, str] = {}
        last_s = -math.inf
        for saved in history:
            if not 0 <= saved.created_s - last_s < self.seconds:
                kept[saved.step] = str(self)
                last_s = saved.created_s
        return kept

    __or__ = both_or
    __ror__ = both_ror

    def __str__(self) -> str:
        return f"every {span_text(self.seconds)}"


@dataclass(frozen=True, slots=True, init=False)
class OnSteps:
    """At the given steps."""

    steps: frozenset[int]

    def __init__(self, steps: Iterable[int]) -> None:
        checked = frozenset(whole(step, "OnSteps(steps)", least=0) for step in steps)
        if not checked:
            raise ValueError("OnSteps(steps): expected one step or more, found none")
        object.__setattr__(self, "steps", checked)

    def due(self, moment: Moment) -> str | None:
        return self._reason(moment.step) if not moment.behind and moment.step in self.steps else None

    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return {saved.step: self._reason(saved.step) for saved in history if saved.step in self.steps}

    __or__ = both_or
    __ror__ = both_ror

    def __str__(self) -> str:
        return f"on step{'s' * (len(self.steps) > 1)} {' '.join(map(str, sorted(self.steps)))}"

    def _reason(self, step: int) -> str:
        return f"on step {step}"  # not all of them: there may be thousands


def whole(value: object, what: str, *, least: int) -> int:
    """Return a whole number, NumPy's too, as a Python one.

    Raises:
        TypeError: it is no whole number (a bool is none).
        ValueError: it is below `least`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # pyright: ignore[reportArgumentType] this is the check
    except TypeError:
        raise TypeError(f"{what}: expected a whole number, found {value!r}") from None
    if number < least:
        raise ValueError(f"{what}: expected {least} or more, found {number}")
    return number


def span_s(what: str, seconds: float, minutes: float, hours: float, days: float) -> float:
    """Return a span of time in seconds.

    Raises:
        ValueError: it is not above zero, or not finite.
    """
    total_s = float(seconds + 60 * minutes + 3600 * hours + 86400 * days)
    if not 0 < total_s < math.inf:
        raise ValueError(
            f"{what}: expected a span of time above zero, found {total_s:g} s\n  Write {what}(minutes=10), for example."
        )
    return total_s


def span_text(span: float) -> str:
    """Return a span of seconds in the largest unit that leaves no fraction: `10 min`, `6 hours`, `0.5 s`."""
    for unit, size in (("day", 86400), ("hour", 3600), ("min", 60)):
        count = span / size
        if count.is_integer() and count * size == span:
            return f"{int(count)} {unit}{'s' * (count > 1 and unit != 'min')}"
    return f"{int(span) if span.is_integer() else span} s"
