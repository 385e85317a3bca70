# SPDX-License-Identifier: Apache-2.0
"""How policies unite."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import milepost.policy
from milepost.policy import (
    DEFAULT_KEEP,
    DEFAULT_SAVE,
    All,
    Best,
    Every,
    EveryNSteps,
    First,
    KeepUnion,
    Latest,
    Moment,
    OnPreemption,
    OnSteps,
    Saved,
    SaveUnion,
    Union,
    Within,
)
from policies import both_policies, histories, keep_policies, line, moment, moments, save_policies, windows

any_policy = st.one_of(save_policies, keep_policies, windows)


class WhenNoisy:
    """A policy of a user, without `|` of its own."""

    def due(self, moment: Moment) -> str | None:
        return "noisy" if moment.step == 3 else None


class OddSteps:
    def keep(self, history: Sequence[Saved]) -> dict[int, str]:
        return {one.step: "odd" for one in history if one.step % 2}


def answers(policy: Any) -> set[str]:
    return {name for name in ("due", "keep") if hasattr(policy, name)}


def test_a_union_is_due_for_all_the_reasons_there_are() -> None:
    policy = EveryNSteps(500) | Every(minutes=10) | OnPreemption()

    assert policy.due(moment(500, 400, now_s=600.0)) == "every 500 steps · every 10 min"
    assert policy.due(moment(499, 400, now_s=1.0)) is None


def test_a_union_keeps_for_all_the_reasons_there_are() -> None:
    kept = (Latest(2) | EveryNSteps(10)).keep(line(0, 5, 10, 15))

    assert kept == {0: "every 10 steps", 10: "last 2 · every 10 steps", 15: "last 2"}
    assert list(kept) == [0, 10, 15], "in the order of the history"


def test_a_reason_that_two_policies_share_is_told_once() -> None:
    kept = (Best("loss") | Best("acc")).keep(line(1))

    assert kept == {1: "unscored yet"}


def test_a_union_is_flat_and_repeats_nothing() -> None:
    left, right = First() | EveryNSteps(5), EveryNSteps(5) | OnPreemption()

    assert (left | right).policies == (First(), EveryNSteps(5), OnPreemption())
    assert (right | left).policies == (EveryNSteps(5), OnPreemption(), First())


@pytest.mark.parametrize(
    ("policy", "kind", "methods"),
    [
        (EveryNSteps(5) | Every(hours=1), Union, {"due", "keep"}),
        (EveryNSteps(5) | Every(hours=1) | OnSteps([1]), Union, {"due", "keep"}),
        (EveryNSteps(5) | Every(hours=1) | First(), SaveUnion, {"due"}),
        (First() | EveryNSteps(5), SaveUnion, {"due"}),
        (EveryNSteps(5) | Latest(1), KeepUnion, {"keep"}),
        (Latest(1) | (EveryNSteps(5) | Every(hours=1)), KeepUnion, {"keep"}),
    ],
)
def test_a_union_answers_what_all_its_members_answer(policy: Any, kind: type, methods: set[str]) -> None:
    assert type(policy) is kind
    assert answers(policy) == methods


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (First(), Latest(3)),
        (Latest(3), First()),
        (First() | EveryNSteps(1), EveryNSteps(1) | Latest(3)),
        (WhenNoisy(), Latest(3)),
        (First(), OddSteps()),
    ],
)
def test_policies_of_two_families_do_not_unite(left: Any, right: Any) -> None:
    with pytest.raises(TypeError, match=r"they do not unite\n  Pass them apart: save=.*, keep=.*\."):
        left | right


def test_the_members_at_fault_are_named() -> None:
    with pytest.raises(TypeError, match=r"First\(\) says when to save, Latest\(n=3\) what to keep"):
        (EveryNSteps(1) | First()) | Latest(3)


def test_a_class_in_place_of_a_policy_is_told_apart() -> None:
    with pytest.raises(TypeError, match=r"OnPreemption is a class, not a policy\n  Write OnPreemption\(\.\.\.\)\."):
        First() | OnPreemption


@pytest.mark.parametrize("stranger", [3, "every 5 steps", None, [First()]])
def test_only_policies_unite(stranger: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        First() | stranger
    with pytest.raises(TypeError, match="unsupported operand"):
        stranger | EveryNSteps(5)


def test_a_policy_of_the_user_unites_from_either_side() -> None:
    mine, odd = WhenNoisy(), OddSteps()

    assert (First() | mine).due(moment(3)) == "first · noisy"
    assert (mine | First()).due(moment(3)) == "noisy · first"
    assert (mine | EveryNSteps(3)).due(moment(3)) == "noisy · every 3 steps"
    assert (odd | Latest(1)).keep(line(1, 2, 3)) == {1: "odd", 3: "odd · last 1"}
    assert (EveryNSteps(2) | odd).keep(line(1, 2, 3)) == {1: "every 2 steps · odd", 2: "every 2 steps", 3: "odd"}
    assert answers(mine | EveryNSteps(3)) == {"due"}


def test_a_policy_of_the_user_need_not_be_hashable() -> None:
    @dataclass
    class Listed:
        def due(self, moment: Moment) -> str | None:
            return "listed"

    assert (First() | Listed()).due(moment(1, 0)) == "listed"


@pytest.mark.parametrize("policy", [First(), Latest(3), EveryNSteps(3), First() | OnPreemption()])
def test_a_policy_is_a_value(policy: Any) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        policy.n = 4


@given(any_policy)
def test_a_policy_equals_its_copy(policy: Any) -> None:
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy)), eval(repr(policy), vars(milepost.policy))):
        assert twin == policy
        assert hash(twin) == hash(policy)
        assert str(twin) == str(policy)


@given(st.lists(save_policies, min_size=2, max_size=4), moments)
def test_a_union_is_due_when_one_of_its_members_is(policies: list[Any], now: Moment) -> None:
    union = policies[0]
    for policy in policies[1:]:
        union = union | policy

    due = [policy.due(now) for policy in policies]

    assert hash(union) == hash(copy.deepcopy(union))
    assert union.due(now) == (" · ".join(dict.fromkeys(filter(None, due))) or None)


@given(keep_policies, keep_policies, histories())
def test_adding_a_policy_never_deletes_more(one: Any, other: Any, history: list[Saved]) -> None:
    assert (one | other).keep(history).keys() == one.keep(history).keys() | other.keep(history).keys()


@given(both_policies, both_policies, histories(), moments)
def test_a_union_of_both_families_answers_as_in_either(a: Any, b: Any, history: list[Saved], now: Moment) -> None:
    union = a | b

    assert union.keep(history) == KeepUnion((a, b)).keep(history)
    assert union.due(now) == SaveUnion((a, b)).due(now)


def test_the_defaults_save_at_once_and_every_ten_minutes_and_keep_all() -> None:
    assert First() | Every(minutes=10) | OnPreemption() == DEFAULT_SAVE
    assert All() == DEFAULT_KEEP
    assert str(DEFAULT_SAVE) == "first, every 10 min, on preemption"


def test_units_of_time_are_one_quantity() -> None:
    assert Every(minutes=10) == Every(seconds=600)
    assert Within(hours=1, minutes=30) == Within(minutes=90)
    assert Every(days=1) == Every(hours=24)
