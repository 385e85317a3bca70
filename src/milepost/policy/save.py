# SPDX-License-Identifier: Apache-2.0
"""Policies that say when to save.

All of them answer None at a step that is saved already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from milepost.errors import folded
from milepost.policy.cadence import span_text, whole
from milepost.policy.family import Moment, SavePolicy, is_save, pin_name, save_or, save_ror

Strategy: TypeAlias = Callable[[int, int, int], bool]
"""`(start, stop, step) -> whether to save`; asked only within the bounds, which are both inclusive."""

_STRATEGIES: dict[str, Strategy] = {}


@dataclass(frozen=True, slots=True)
class First:
    """As long as nothing is saved: the first step that is asked about."""

    def due(self, moment: Moment) -> str | None:
        return str(self) if moment.last_step is None else None

    __or__ = save_or
    __ror__ = save_ror

    def __str__(self) -> str:
        return "first"


@dataclass(frozen=True, slots=True)
class Continuous:
    """As soon as the last save is written, but not within `min_interval` seconds of its beginning."""

    min_interval: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_interval", float(self.min_interval))
        if not 0 <= self.min_interval < math.inf:
            raise ValueError(f"Continuous(min_interval): expected 0 seconds or more, found {self.min_interval:g}")

    def due(self, moment: Moment) -> str | None:
        early = moment.last_s is not None and moment.now_s - moment.last_s < self.min_interval
        return None if moment.behind or moment.saving or early else str(self)

    __or__ = save_or
    __ror__ = save_ror

    def __str__(self) -> str:
        return "continuously" + (f" every {span_text(self.min_interval)} at most" if self.min_interval else "")


@dataclass(frozen=True, slots=True)
class OnPreemption:
    """When the process was told to save, by a signal or by the machine that is about to go away."""

    def due(self, moment: Moment) -> str | None:
        return f"{self} ({moment.preempted})" if moment.preempted and not moment.behind else None

    __or__ = save_or
    __ror__ = save_ror

    def __str__(self) -> str:
        return "on preemption"


@dataclass(frozen=True, slots=True)
class Window:
    """From step `start` to step `stop`, both included, at the steps that a registered strategy picks.

    Outside the window nothing is due, unless another policy was given with `otherwise`. To save more often inside
    too, unite: `Window(0, 512).otherwise(EveryNSteps(1000)) | OnPreemption()`.

    Attributes:
        strategy: a name from `list_strategies()`.
        pin: whether the saves at these steps are pinned, and under which name (True: "window").
        outside: the policy for all other steps.
    """

    start: int
    stop: int
    strategy: str = "powers_of_two"
    pin: bool | str = False
    outside: SavePolicy | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", whole(self.start, "Window(start)", least=0))
        object.__setattr__(self, "stop", whole(self.stop, "Window(stop)", least=self.start))
        get_strategy(self.strategy)

    def otherwise(self, policy: SavePolicy) -> Window:
        """Return this window with the policy that decides outside of it."""
        if not is_save(policy):
            raise TypeError(f"otherwise: expected a policy that says when to save, found {policy!r}")
        return replace(self, outside=policy)

    def due(self, moment: Moment) -> str | None:
        if self.start <= moment.step <= self.stop:
            return f"window {self.start} to {self.stop}" if not moment.behind and self._picks(moment.step) else None
        return None if self.outside is None else self.outside.due(moment)

    def pins(self, step: int) -> str | None:
        if self.start <= step <= self.stop:
            return ("window" if self.pin is True else self.pin or None) if self._picks(step) else None
        return None if self.outside is None else pin_name(self.outside, step)

    __or__ = save_or
    __ror__ = save_ror

    def __str__(self) -> str:
        otherwise = "" if self.outside is None else f" otherwise ({self.outside})"
        return f"window {self.start} to {self.stop} {self.strategy}{' pinned' if self.pin else ''}{otherwise}"

    def _picks(self, step: int) -> bool:
        return get_strategy(self.strategy)(self.start, self.stop, step)


def register_strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Return the decorator that makes a function the strategy `name` of `Window`.

    Raises:
        ValueError: the name is taken.
    """

    def registered(strategy: Strategy) -> Strategy:
        if name in _STRATEGIES:
            raise ValueError(f"a strategy named {name!r} is registered already\n  Choose another name.")
        _STRATEGIES[name] = strategy
        return strategy

    return registered


def get_strategy(name: str) -> Strategy:
    """Return a registered strategy.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    if name not in _STRATEGIES:
        raise ValueError(
            f"no strategy is named {name!r}; there is {folded(list_strategies())}\n"
            f"  Register it first, with @register_strategy({name!r})."
        )
    return _STRATEGIES[name]


def list_strategies() -> list[str]:
    """Return the names of all registered strategies."""
    return sorted(_STRATEGIES)


@register_strategy("powers_of_two")
def powers_of_two(start: int, stop: int, step: int) -> bool:
    """Pick `start` and every `start + 2**k` up to `stop`."""
    ahead = step - start
    return start <= step <= stop and ahead & (ahead - 1) == 0
