# SPDX-License-Identifier: Apache-2.0
"""Policies as a phrase."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.policy import (
    DEFAULT_KEEP,
    DEFAULT_SAVE,
    All,
    Best,
    Continuous,
    Every,
    EveryNSteps,
    First,
    Latest,
    OnPreemption,
    OnSteps,
    Spaced,
    Within,
    keep_policy,
    save_policy,
)
from policies import keep_policies, save_policies


@pytest.mark.parametrize(
    ("phrase", "policy"),
    [
        ("every 500 steps or 10 min", EveryNSteps(500) | Every(minutes=10)),
        (
            "every 500 steps, every 10 minutes, on preemption",
            EveryNSteps(500) | Every(minutes=10) | OnPreemption(),
        ),
        ("first or every hour", First() | Every(hours=1)),
        (
            "first, or every 1_000 steps, 2 h and 1.5 days",
            First() | EveryNSteps(1000) | Every(hours=2) | Every(hours=36),
        ),
        ("every step", EveryNSteps(1)),
        ("every 1 step", EveryNSteps(1)),
        ("Every 10 Seconds", Every(seconds=10)),
        ("every 5e-1 s", Every(seconds=0.5)),
        ("on steps 1 2 5", OnSteps([1, 2, 5])),
        ("on step 7", OnSteps([7])),
        ("on steps 1, 2 and 5, on preemption", OnSteps([1, 2, 5]) | OnPreemption()),
        ("steps 100, 200 or first", OnSteps([100, 200]) | First()),
        ("continuously", Continuous()),
        ("continuously every 30 s at most", Continuous(30)),
        ("  first  ,on\tpreemption\n", First() | OnPreemption()),
    ],
)
def test_a_phrase_says_when_to_save(phrase: str, policy: Any) -> None:
    assert save_policy(phrase) == policy


@pytest.mark.parametrize(
    ("phrase", "policy"),
    [
        ("all", All()),
        ("last 3, best 1 loss", Latest(3) | Best("loss", 1, "min")),
        ("best 2 eval.acc max", Best("eval.acc", 2, "max")),
        ("best 1 loss min", Best("loss", 1, "min")),
        ("best loss", Best("loss")),
        ("best 2 loss max and best 2 min", Best("loss", 2, "max") | Best("min", 2)),
        ("best 1 Eval/Acc", Best("Eval/Acc")),
        ("every 10000 steps", EveryNSteps(10000)),
        ("every 6 hours", Every(hours=6)),
        ("within 2 days", Within(hours=48)),
        ("spaced 2", Spaced(2)),
        ("steps 100, 200", OnSteps([100, 200])),
        ("on steps 100, 200, last 2", OnSteps([100, 200]) | Latest(2)),
    ],
)
def test_a_phrase_says_what_to_keep(phrase: str, policy: Any) -> None:
    assert keep_policy(phrase) == policy


@pytest.mark.parametrize(
    ("read", "phrase", "expected", "pointer"),
    [
        (save_policy, "", "one of 'every', 'on', 'steps', 'first', 'continuously', the phrase ends", "^"),
        (save_policy, "evry 5 steps", "one of 'every', 'on', 'steps', 'first', 'continuously', found 'evry'", "^^^^"),
        (save_policy, "every five steps", "a whole number, found 'five'", "      ^^^^"),
        (save_policy, "every 0 steps", "1 or more, found '0'", "      ^"),
        (save_policy, "every -5 steps", "a whole number, found '-5'", "      ^^"),
        (save_policy, "every 2.5 steps", "a whole number, found '2.5'", "      ^^^"),
        (save_policy, "every 500", "'steps', 's', 'min', 'hours' or 'days', the phrase ends", "         ^"),
        (save_policy, "every 10 mn", "'steps', 's', 'min', 'hours' or 'days', found 'mn'", "         ^^"),
        (save_policy, "every 0 min", "a span of time above zero, found '0'", "      ^"),
        (save_policy, "every 1e999 days", "a span of time above zero, found '1e999'", "      ^^^^^"),
        (save_policy, "every", "a number, the phrase ends", "     ^"),
        (save_policy, "every inf s", "a number, found 'inf'", "      ^^^"),
        (save_policy, "every 5 steps 10 min", "a comma, 'or', or the end, found '10'", "              ^^"),
        (save_policy, "first,", "one of 'every', 'on', 'steps', 'first', 'continuously', the phrase ends", "      ^"),
        (
            save_policy,
            "first or or first",
            "one of 'every', 'on', 'steps', 'first', 'continuously', found 'or'",
            " " * 9 + "^^",
        ),
        (save_policy, "on premption", "'steps' or 'step' or 'preemption', found 'premption'", "   ^^^^^^^^^"),
        (save_policy, "on steps", "a step, the phrase ends", "        ^"),
        (save_policy, "on steps 3, first 4", "a comma, 'or', or the end, found '4'", " " * 18 + "^"),
        (save_policy, "continuously every 30 s", "'at', the phrase ends", " " * 23 + "^"),
        (save_policy, "last 3", "one of 'every', 'on', 'steps', 'first', 'continuously', found 'last'", "^^^^"),
        (keep_policy, "last", "a whole number, the phrase ends", "    ^"),
        (keep_policy, "last 0", "1 or more, found '0'", "     ^"),
        (keep_policy, "last 3 best 1 loss", "a comma, 'or', or the end, found 'best'", "       ^^^^"),
        (keep_policy, "best 1, last 2", "the name of a metric, found ','", "      ^"),
        (keep_policy, "best 1 loss lowest", "a comma, 'or', or the end, found 'lowest'", " " * 12 + "^^^^^^"),
        (keep_policy, "within 2", "'s', 'min', 'hours' or 'days', the phrase ends", "        ^"),
        (keep_policy, "within 2 weeks", "'s', 'min', 'hours' or 'days', found 'weeks'", "         ^^^^^"),
        (keep_policy, "spaced 1", "2 or more, found '1'", "       ^"),
        (keep_policy, "on preemption", "'steps' or 'step', found 'preemption'", "   ^^^^^^^^^^"),
    ],
)
def test_a_phrase_that_cannot_be_read_is_pointed_into(read: Any, phrase: str, expected: str, pointer: str) -> None:
    family, example = (
        ("save", "every 500 steps or 10 min, on preemption")
        if read is save_policy
        else ("keep", "last 3, best 1 loss, every 10000 steps")
    )

    with pytest.raises(ValueError, match="cannot read") as caught:
        read(phrase)

    assert str(caught.value) == (
        f"cannot read the {family} policy: expected {expected}\n  {phrase}\n  {pointer}\n  For example: '{example}'."
    )
    read(example)


def test_the_pointer_holds_where_the_phrase_has_tabs_and_line_ends() -> None:
    with pytest.raises(ValueError, match="cannot read") as caught:
        keep_policy("last\t3,\nbst 1 loss")

    assert "\n  last 3, bst 1 loss\n          ^^^\n" in str(caught.value)


def test_a_policy_stands_for_itself_and_none_for_the_default() -> None:
    policy, keep = First() | OnPreemption(), Latest(3)

    assert save_policy(policy) is policy
    assert keep_policy(keep) is keep
    assert save_policy(None) is DEFAULT_SAVE
    assert keep_policy(None) is DEFAULT_KEEP


@pytest.mark.parametrize(
    ("read", "value", "text"),
    [
        (save_policy, Latest(3), r"says when to save, found Latest\(n=3\)\n  Pass it as keep=\."),
        (keep_policy, First(), r"says what to keep, found First\(\)\n  Pass it as save=\."),
        (save_policy, First, r"\n  Write First\(\.\.\.\): a policy is a value, not a class\."),
        (save_policy, 500, r"found 500\n  Write EveryNSteps\(500\) or 'every 500 steps'\."),
        (keep_policy, 3, r"found 3\n  Write Latest\(3\) or 'last 3'\."),
    ],
)
def test_what_is_neither_policy_nor_phrase_is_refused_with_the_way_out(read: Any, value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        read(value)


@given(st.lists(save_policies, min_size=1, max_size=4))
def test_a_save_policy_prints_as_the_phrase_that_makes_it(policies: list[Any]) -> None:
    policy = reduce(or_, policies)

    assert str(save_policy(str(policy))) == str(policy)
    assert save_policy(str(policy)) == (policy if len(set(policies)) > 1 else policies[0])


@given(st.lists(keep_policies, min_size=1, max_size=4))
def test_a_keep_policy_prints_as_the_phrase_that_makes_it(policies: list[Any]) -> None:
    policy = reduce(or_, policies)

    assert str(keep_policy(str(policy))) == str(policy)
    assert keep_policy(str(policy)) == (policy if len(set(policies)) > 1 else policies[0])


@given(st.text(alphabet="every 0129steplasbomind,.-or\t", max_size=40))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for read in (save_policy, keep_policy):
        try:
            policy = read(text)
        except ValueError:
            continue
        assert read(str(policy)) == policy
