# SPDX-License-Identifier: Apache-2.0
"""When a save is due."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import milepost.policy.save as save_module
from milepost.policy import (
    Continuous,
    Every,
    EveryNSteps,
    First,
    Moment,
    OnPreemption,
    OnSteps,
    Window,
    get_strategy,
    list_strategies,
    pin_name,
    register_strategy,
)
from policies import moment, moments, save_policies, windows


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the strategies that a test registers."""
    monkeypatch.setattr(save_module, "_STRATEGIES", dict(save_module._STRATEGIES))
    return


def steps_due(policy: Any, steps: range, last_step: int | None = None) -> list[int]:
    """Run the loop of a user: ask at each step, save when due."""
    due: list[int] = []
    for step in steps:
        if policy.due(moment(step, last_step)):
            due.append(step)
            last_step = step
    return due


@pytest.mark.parametrize(
    ("step", "last_step", "due"),
    [
        (0, None, False),
        (4, None, False),
        (5, None, True),
        (7, None, True),  # bucket 1, and nothing was saved in it
        (7, 5, False),
        (9, 7, False),
        (10, 7, True),
        (23, 7, True),
        (5, 0, True),
        (3, 0, False),
        (5, 5, False),
        (5, 12, False),  # behind: a save there would be refused
    ],
)
def test_every_n_steps_is_due_when_a_new_bucket_is_entered(step: int, last_step: int | None, due: bool) -> None:
    assert EveryNSteps(5).due(moment(step, last_step)) == ("every 5 steps" if due else None)


def test_every_n_steps_goes_on_after_a_save_at_an_odd_step() -> None:
    assert steps_due(EveryNSteps(10) | OnSteps([13, 27]), range(45)) == [10, 13, 20, 27, 30, 40]


def test_step_0_is_due_with_first_only() -> None:
    assert steps_due(EveryNSteps(10), range(21)) == [10, 20]
    assert steps_due(First() | EveryNSteps(10), range(21)) == [0, 10, 20]


@given(st.sets(st.integers(0, 300), min_size=1), st.sets(st.integers(0, 300)), st.integers(1, 40))
def test_every_n_steps_never_misses_a_bucket(asked: set[int], others: set[int], n: int) -> None:
    policy, last_step, saved = EveryNSteps(n), None, set[int]()
    for step in sorted(asked):
        if policy.due(moment(step, last_step)) or step in others:
            saved.add(step)
            last_step = step

    first_of_bucket = {step // n: step for step in sorted(asked, reverse=True)}
    assert {step for bucket, step in first_of_bucket.items() if bucket > 0} <= saved
    assert len(saved - others) <= len(first_of_bucket)


def test_every_counts_from_the_last_save_of_this_process() -> None:
    policy = Every(minutes=10)

    assert policy.due(moment(5, 4, opened_s=0, last_s=1000.0, now_s=1599.9)) is None
    assert policy.due(moment(5, 4, opened_s=0, last_s=1000.0, now_s=1600.0)) == "every 10 min"


def test_every_counts_from_the_opening_before_the_first_save() -> None:
    assert Every(seconds=30).due(moment(5, opened_s=100.0, now_s=129.0)) is None
    assert Every(seconds=30).due(moment(5, opened_s=100.0, now_s=130.0)) == "every 30 s"


def test_on_steps_is_due_at_its_steps() -> None:
    policy = OnSteps(np.array([3, 5]))

    assert steps_due(policy, range(10)) == [3, 5]
    assert policy.due(moment(5, 3)) == "on step 5"
    assert policy == OnSteps([5, 3, 3])


def test_first_is_due_until_something_is_saved() -> None:
    assert First().due(moment(7)) == "first"
    assert First().due(moment(7, 0)) is None


def test_continuous_is_due_as_soon_as_the_last_save_is_written() -> None:
    policy = Continuous()

    assert policy.due(moment(0)) == "continuously"
    assert policy.due(moment(2, 1, last_s=0.0, saving=True)) is None
    assert policy.due(moment(2, 1, last_s=0.0, saving=False)) == "continuously"


def test_continuous_waits_for_its_interval() -> None:
    policy = Continuous(30)

    assert policy.due(moment(0)) == "continuously every 30 s at most"
    assert policy.due(moment(2, 1, last_s=0.0, now_s=29.0)) is None
    assert policy.due(moment(2, 1, last_s=0.0, now_s=30.0)) == "continuously every 30 s at most"


def test_on_preemption_names_what_asked() -> None:
    assert OnPreemption().due(moment(5, 4, preempted="SIGTERM")) == "on preemption (SIGTERM)"
    assert OnPreemption().due(moment(5, 4)) is None
    assert OnPreemption().due(moment(5, 5, preempted="SIGTERM")) is None, "it is saved"


def test_a_window_saves_at_its_start_and_at_powers_of_two_after_it() -> None:
    assert steps_due(Window(0, 16), range(40)) == [0, 1, 2, 4, 8, 16]
    assert steps_due(Window(10, 31), range(40)) == [10, 11, 12, 14, 18, 26]
    assert steps_due(Window(5, 5), range(40)) == [5]


def test_outside_of_a_window_the_other_policy_decides() -> None:
    policy = Window(10, 20).otherwise(EveryNSteps(6))

    assert steps_due(policy, range(34)) == [6, 10, 11, 12, 14, 18, 24, 30]
    assert policy.due(moment(12, 11)) == "window 10 to 20"
    assert policy.due(moment(24, 18)) == "every 6 steps"


def test_a_policy_united_with_a_window_counts_inside_too() -> None:
    policy = Window(0, 512).otherwise(EveryNSteps(1000)) | OnPreemption()

    assert policy.due(moment(5, 4, preempted="SIGTERM")) == "on preemption (SIGTERM)"


def test_the_saves_of_a_pinning_window_are_pinned() -> None:
    policy = First() | Window(0, 16, pin=True).otherwise(EveryNSteps(100))

    assert [step for step in range(200) if pin_name(policy, step)] == [0, 1, 2, 4, 8, 16]
    assert pin_name(policy, 4) == "window"
    assert pin_name(Window(0, 16, pin="early"), 4) == "early"
    assert pin_name(Window(0, 16), 4) is None
    assert pin_name(Window(0, 3).otherwise(Window(4, 9, pin="late")), 5) == "late"
    assert pin_name(EveryNSteps(5) | Every(hours=1), 5) is None
    assert pin_name(EveryNSteps(5), 5) is None


@pytest.mark.usefixtures("strategies")
def test_a_registered_strategy_is_asked_within_the_bounds_only() -> None:
    @register_strategy("always")
    def always(start: int, stop: int, step: int) -> bool:
        assert start <= step <= stop
        return True

    assert get_strategy("always") is always
    assert list_strategies() == ["always", "powers_of_two"]
    assert steps_due(Window(3, 5, strategy="always"), range(10)) == [3, 4, 5]
    with pytest.raises(ValueError, match="'always' is registered already"):
        register_strategy("always")(always)


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no strategy is named 'weekly'; there is powers_of_two\n  Register it"):
        Window(0, 5, strategy="weekly")


@given(save_policies | windows, moments)
def test_nothing_is_due_at_a_saved_step(policy: Any, now: Moment) -> None:
    first = policy.due(now)

    assert policy.due(now) == first, "the answer depends on the moment alone"
    for last_step in (now.step, now.step + 1):
        assert policy.due(replace(now, last_step=last_step)) is None


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: EveryNSteps(0), ValueError, r"EveryNSteps\(n\): expected 1 or more, found 0"),
        (lambda: EveryNSteps(-5), ValueError, "found -5"),
        (lambda: EveryNSteps(2.5), TypeError, r"EveryNSteps\(n\): expected a whole number, found 2.5"),
        (lambda: EveryNSteps(True), TypeError, "found True"),
        (Every, ValueError, r"Every: expected a span of time above zero, found 0 s\n  Write Every\(min"),
        (lambda: Every(hours=-1), ValueError, "found -3600 s"),
        (lambda: Every(seconds=float("nan")), ValueError, "found nan s"),
        (lambda: Every(seconds=float("inf")), ValueError, "found inf s"),
        (lambda: OnSteps([]), ValueError, "expected one step or more, found none"),
        (lambda: OnSteps([3, -1]), ValueError, r"OnSteps\(steps\): expected 0 or more, found -1"),
        (lambda: OnSteps(["3"]), TypeError, "expected a whole number, found '3'"),
        (lambda: Continuous(-1), ValueError, "expected 0 seconds or more, found -1"),
        (lambda: Window(-1, 5), ValueError, r"Window\(start\): expected 0 or more, found -1"),
        (lambda: Window(5, 4), ValueError, r"Window\(stop\): expected 5 or more, found 4"),
        (lambda: Window(5, 9).otherwise(EveryNSteps), TypeError, "expected a policy that says when to save"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
