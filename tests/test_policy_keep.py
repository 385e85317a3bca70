# SPDX-License-Identifier: Apache-2.0
"""What is kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.policy import (
    All,
    Best,
    Every,
    EveryNSteps,
    Latest,
    OnSteps,
    Saved,
    Spaced,
    Within,
    default_mode,
    ranked,
    score,
)
from policies import histories, keep_policies, line, remaining, saved, scores

steps_of_a_run = st.lists(st.integers(0, 5000), unique=True, max_size=80).map(sorted)


def test_all_keeps_all() -> None:
    assert All().keep(line(1, 2)) == {1: "all", 2: "all"}


def test_latest_keeps_the_newest_in_commit_order() -> None:
    assert Latest(2).keep(line(1, 5, 9)) == {5: "last 2", 9: "last 2"}
    assert list(Latest(2).keep(line(10, 20, 30, 12, 15))) == [12, 15]
    assert list(Latest(9).keep(line(1, 2))) == [1, 2]


def test_a_pinned_checkpoint_takes_no_place_among_the_latest() -> None:
    history = [saved(1), saved(2), saved(3, pinned=("held",)), saved(4)]

    assert list(Latest(2).keep(history)) == [2, 4]


def test_every_n_steps_keeps_the_first_of_each_bucket() -> None:
    assert list(EveryNSteps(10).keep(line(0, 7, 13, 15, 20, 29, 45))) == [0, 13, 20, 45]
    assert EveryNSteps(10).keep(line(5)) == {5: "every 10 steps"}


def test_every_n_steps_counts_again_after_a_rollback() -> None:
    assert list(EveryNSteps(10).keep(line(0, 10, 25, 30, 12, 14, 26, 32))) == [0, 10, 25, 30, 12, 26, 32]


@given(histories(rollbacks=False), st.integers(1, 40))
def test_every_n_steps_keeps_one_of_each_bucket(history: list[Saved], n: int) -> None:
    kept = EveryNSteps(n).keep(history)

    assert list(kept) == sorted({one.step // n: one.step for one in reversed(history)}.values())


def test_every_keeps_the_oldest_and_the_first_of_each_interval_after_it() -> None:
    history = [saved(i, created_s) for i, created_s in enumerate([50, 100, 149, 151, 240, 251, 1000])]

    assert Every(seconds=100).keep(history) == dict.fromkeys([0, 3, 5, 6], "every 100 s")


def test_every_is_not_starved_by_a_clock_that_was_set_back() -> None:
    history = [saved(i, created_s) for i, created_s in enumerate([1e6, 10, 20, 120])]

    assert list(Every(seconds=100).keep(history)) == [0, 1, 3]


@given(st.sampled_from([Every(hours=1), EveryNSteps(7), OnSteps([3, 9]), All()]), histories(), histories())
def test_newer_checkpoints_change_nothing_for_older_ones(policy: Any, older: list[Saved], newer: list[Saved]) -> None:
    later_s = older[-1].created_s if older else 0.0
    newer = [Saved(one.step + 1000, one.created_s + later_s, {}, "") for one in newer]

    kept = policy.keep(older + newer)

    assert [step for step in kept if step < 1000] == list(policy.keep(older))


def test_within_counts_from_the_newest() -> None:
    history = [saved(1, 1000.0), saved(2, 1059.0), saved(3, 1060.0), saved(4, 1120.0)]

    assert Within(minutes=1).keep(history) == {3: "within 1 min", 4: "within 1 min"}


def test_on_steps_keeps_its_steps() -> None:
    assert OnSteps([2, 9]).keep(line(1, 2, 3)) == {2: "on step 2"}


def test_best_keeps_the_n_best() -> None:
    history = scores(_1=3.0, _2=1.0, _3=2.0, _4=9.0)

    assert Best("loss").keep(history) == {2: "best 1 loss"}
    assert list(Best("loss", 2).keep(history)) == [2, 3]
    assert Best("loss", 1, mode="max").keep(history) == {4: "best 1 loss max"}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_on_a_tie_the_newer_wins(mode: Any) -> None:
    assert list(Best("loss", 2, mode=mode).keep(scores(_1=1.0, _2=1.0, _3=1.0))) == [2, 3]
    assert list(Best("loss", 1, mode=mode).keep(scores(_1=0.0, _2=-0.0, _3=0))) == [3]


@pytest.mark.parametrize("nothing", [math.nan, None, "0.1", [0.1], {}, ..., 1j])
def test_what_is_no_number_never_counts(nothing: Any) -> None:
    history = scores(_1=nothing, _2=5.0, _3=nothing, _4=6.0)

    for mode in ("min", "max"):
        assert list(Best("loss", 4, mode=mode).keep(history)) == [2, 4]


@pytest.mark.parametrize("nothing", [math.nan, None, ...])
def test_the_unscored_newer_than_the_newest_scored_stay(nothing: Any) -> None:
    history = scores(_1=nothing, _2=1.0, _3=nothing, _4=3.0, _5=nothing, _6=nothing)

    assert Best("loss").keep(history) == {2: "best 1 loss", 5: "unscored yet", 6: "unscored yet"}


def test_all_stay_as_long_as_none_is_scored() -> None:
    assert list(Best("accuracy").keep(scores(_1=1.0, _2=2.0))) == [1, 2], "a metric with a typing error deletes nothing"


def test_infinity_is_a_number() -> None:
    assert list(Best("loss").keep(scores(_1=math.inf, _2=3.0))) == [2]
    assert list(Best("loss").keep(scores(_1=math.inf))) == [1]


@pytest.mark.parametrize(
    ("metrics", "metric", "value"),
    [
        ({"eval": {"acc": 0.5}}, "eval.acc", 0.5),
        ({"eval.acc": 0.5}, "eval.acc", 0.5),
        ({"eval.fast": {"acc": 0.5}}, "eval.fast.acc", 0.5),
        ({"eval": {"fast.acc": 0.5}}, "eval.fast.acc", 0.5),
        ({"eval/acc": 0.5}, "eval/acc", 0.5),
        ({"eval": 1}, "eval.acc", None),
        ({"eval": {}}, "eval.acc", None),
        ({}, "eval.acc", None),
        ({"eval": {"acc": 0.5}}, "*.acc", 0.5),
        ({"eval": {"a": {"acc": 0.25}, "b": {"acc": 0.5}}}, "eval.*.acc", 0.25),
        ({"train": {"loss": 1.0}, "val": {"acc": 0.5}}, "*.acc", 0.5),
        ({"val_acc": 0.5}, "*_acc", 0.5),
        ({"eval": {"acc": 0.5}}, "*", None),
        ({"acc*": 0.5, "acc": 1}, "acc*", 0.5),
        ({"acc": np.float32(0.5)}, "acc", 0.5),
        ({"acc": np.array(0.5)}, "acc", 0.5),
        ({"acc": 10**400}, "acc", None),
        ({"acc": 1, "cost": 4}, lambda metrics: metrics["acc"] - metrics["cost"], -3.0),
        ({"acc": 1}, lambda metrics: metrics["acc"] - metrics["cost"], None),
        ({"acc": 1}, lambda metrics: metrics.get("cost"), None),
    ],
)
def test_a_metric_is_a_dotted_path_or_a_function(metrics: dict[str, Any], metric: Any, value: float | None) -> None:
    assert score(metrics, metric) == value


def test_a_mistake_in_the_function_of_a_metric_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        Best(lambda metrics: 1 / 0).keep(line(1))


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("loss", "min"),
        ("eval.val_loss", "min"),
        ("Eval.RMSE", "min"),
        ("word_error_rate", "min"),
        ("perplexity", "min"),
        ("mae", "min"),
        ("mse", "min"),
        ("acc", "max"),
        ("loss_suite.acc", "max"),
        (len, "max"),
    ],
)
def test_the_name_of_a_metric_tells_its_mode(metric: Any, mode: str) -> None:
    assert default_mode(metric) == mode
    assert Best(metric).mode == mode


def test_best_by_a_function_names_it() -> None:
    def margin(metrics: Any) -> float:
        return metrics["a"] - metrics["b"]

    assert Best(margin, 2).keep([saved(1, a=2, b=1)]) == {1: "best 2 margin()"}
    assert Best(margin) == Best(margin, 1, "max")


def test_ranked_puts_the_best_first() -> None:
    history = scores(_1=3.0, _2=1.0, _3=..., _4=1.0)

    assert [one.step for one in ranked(history, "loss")] == [4, 2, 1]
    assert [one.step for one in ranked(history, "loss", "max")] == [1, 4, 2]


def test_spaced_keeps_fewer_with_age() -> None:
    assert list(Spaced(2).keep(line(*range(65)))) == [0, 32, 48, 56, 60, 62, 63, 64]
    assert list(Spaced(4).keep(line(*range(65)))) == [0, 16, 32, 48, 52, 56, 60, 61, 62, 63, 64]


def test_spaced_keeps_all_that_are_further_apart_than_their_age_asks() -> None:
    assert Spaced(2).keep(line(0, 4000, 6000, 7000)) == dict.fromkeys([0, 4000, 6000, 7000], "spaced 2")


@given(steps_of_a_run, st.integers(2, 5), st.data())
def test_spaced_keeps_the_same_however_often_it_is_pruned(steps: list[int], base: int, data: st.DataObject) -> None:
    often: list[Saved] = []
    for one in line(*steps):
        often.append(one)
        if data.draw(st.booleans()):
            often = remaining(often, Spaced(base).keep(often))

    assert Spaced(base).keep(often) == Spaced(base).keep(line(*steps))


@given(steps_of_a_run, st.integers(2, 5))
def test_spaced_leaves_a_neighbour_within_the_age(steps: list[int], base: int) -> None:
    kept = sorted(Spaced(base).keep(line(*steps)))

    for step in steps:
        age = steps[-1] - step
        assert any(abs(step - one) <= base * age for one in kept)
    assert len(kept) <= 1 + (base + 1) * (1 + math.log(5000, base))


@given(keep_policies, histories())
def test_pruning_again_drops_nothing(policy: Any, history: list[Saved]) -> None:
    kept = policy.keep(history)

    assert set(kept) <= {one.step for one in history}
    assert policy.keep(remaining(history, kept)) == kept


@given(st.lists(keep_policies, min_size=2, max_size=4), histories())
def test_pruning_again_by_a_union_drops_nothing(policies: list[Any], history: list[Saved]) -> None:
    union = policies[0]
    for policy in policies[1:]:
        union = union | policy

    kept = union.keep(history)

    assert union.keep(remaining(history, kept)).keys() == kept.keys()


@given(keep_policies, histories(), st.data())
def test_what_others_keep_never_makes_a_policy_drop_what_it_kept(
    policy: Any, history: list[Saved], data: st.DataObject
) -> None:
    kept = policy.keep(history)
    others = {one.step for one in history if data.draw(st.booleans())}

    assert kept.keys() <= policy.keep(remaining(history, kept.keys() | others)).keys()


@given(keep_policies)
def test_nothing_is_kept_of_nothing(policy: Any) -> None:
    assert policy.keep([]) == {}


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Latest(0), ValueError, r"Latest\(n\): expected 1 or more, found 0"),
        (lambda: Best("loss", 0), ValueError, r"Best\(n\): expected 1 or more, found 0"),
        (lambda: Best("loss", mode="lowest"), ValueError, "mode: expected 'min' or 'max', found 'lowest'"),
        (lambda: Best(""), TypeError, "expected a name or a function, found ''"),
        (lambda: Best(3), TypeError, "expected a name or a function, found 3"),
        (Within, ValueError, "Within: expected a span of time above zero"),
        (lambda: Spaced(1), ValueError, r"Spaced\(base\): expected 2 or more, found 1"),
        (lambda: Spaced(1.5), TypeError, "expected a whole number, found 1.5"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
