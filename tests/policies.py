# SPDX-License-Identifier: Apache-2.0
"""Moments, histories and policies for the tests of policies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from milepost.policy import (
    All,
    Best,
    Continuous,
    Every,
    EveryNSteps,
    First,
    Latest,
    Moment,
    OnPreemption,
    OnSteps,
    Saved,
    Spaced,
    Window,
    Within,
)


def moment(step: int, last_step: int | None = None, **known: Any) -> Moment:
    defaults = {"now_s": 0.0, "last_s": None, "opened_s": 0.0, "saving": False, "preempted": None}
    return Moment(step=step, last_step=last_step, **(defaults | known))


def saved(step: int, created_s: float = 0.0, pinned: tuple[str, ...] = (), **metrics: Any) -> Saved:
    return Saved(step, created_s, metrics, "every step", pinned)


def line(*steps: int) -> list[Saved]:
    """Return a history of these steps, ten seconds from one to the next."""
    return [saved(step, created_s=10.0 * i) for i, step in enumerate(steps)]


def scores(**losses: Any) -> list[Saved]:
    """Return a history of steps `_1`, `_2`, ... with a loss each; Ellipsis: without one."""
    return [saved(int(name[1:]), **({} if loss is ... else {"loss": loss})) for name, loss in losses.items()]


def remaining(history: Sequence[Saved], kept: Mapping[int, str] | Iterable[int]) -> list[Saved]:
    return [one for one in history if one.step in kept]


small = st.integers(1, 20)
spans_s = st.one_of(st.sampled_from([1.0, 30.0, 90.0, 600.0, 3600.0, 86400.0]), st.floats(1e-9, 1e9))
step_sets = st.sets(st.integers(0, 200), min_size=1, max_size=5)

both_policies = st.one_of(
    st.builds(EveryNSteps, small), st.builds(lambda s: Every(seconds=s), spans_s), st.builds(OnSteps, step_sets)
)
save_policies = st.one_of(
    both_policies,
    st.builds(First),
    st.builds(OnPreemption),
    st.builds(Continuous, st.sampled_from([0.0, 0.5, 30.0])),
)
windows = st.builds(
    lambda start, length, pin: Window(start, start + length, pin=pin).otherwise(EveryNSteps(7)),
    st.integers(0, 50),
    st.integers(0, 50),
    st.sampled_from([True, False, "early"]),
)
keep_policies = st.one_of(
    both_policies,
    st.builds(All),
    st.builds(Latest, small),
    st.builds(lambda s: Within(seconds=s), spans_s),
    st.builds(Best, st.sampled_from(["loss", "eval.acc"]), small, st.sampled_from(["min", "max", None])),
    st.builds(Spaced, st.integers(2, 5)),
)
moments = st.builds(
    Moment,
    step=st.integers(0, 200),
    last_step=st.none() | st.integers(0, 200),
    now_s=st.floats(100, 1000),
    last_s=st.none() | st.floats(0, 100),
    opened_s=st.floats(0, 100),
    saving=st.booleans(),
    preempted=st.sampled_from([None, "SIGTERM"]),
)
numbers = st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, math.inf, None])
metrics = st.fixed_dictionaries(
    {}, optional={"loss": numbers, "eval": st.fixed_dictionaries({}, optional={"acc": numbers})}
)


@st.composite
def histories(draw: st.DrawFn, rollbacks: bool = True) -> list[Saved]:
    """Draw a history in commit order; with rollbacks its steps go back here and there, never its clock."""
    steps = draw(st.lists(st.integers(0, 200), unique=True, max_size=40))
    if not rollbacks:
        steps.sort()
    now_s, history = 0.0, list[Saved]()
    for step in steps:
        now_s += draw(st.sampled_from([0.0, 1.0, 20.0, 600.0, 5000.0]))
        history.append(Saved(step, now_s, draw(metrics), "every step", draw(st.sampled_from([(), (), ("held",)]))))
    return history
