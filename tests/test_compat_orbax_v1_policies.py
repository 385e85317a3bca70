# SPDX-License-Identifier: Apache-2.0
"""Policies of the v1 door: each rule, alone and as the Checkpointer asks it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import milepost as mp
import milepost.compat.orbax_v1 as ocp

save = ocp.training.save_decision_policies
keep = ocp.training.preservation_policies
Checkpointer = ocp.training.Checkpointer

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass
class Info:
    """A checkpoint as a policy sees it."""

    step: int
    metrics: Any = None
    after_s: float = 0

    @property
    def time(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self.after_s)


def decided(policy: Any, step: int, previous: Sequence[Info] = (), *, after_s: float = 0, **known: bool) -> bool:
    facts = {"is_saving_in_progress": False, "reached_preemption": False} | known
    context = save.DecisionContext(**facts, multiprocessing_options=ocp.options.MultiprocessingOptions())
    return policy.should_save(Info(step, after_s=after_s), previous, context=context)


def kept(policy: Any, infos: Sequence[Info | int]) -> list[int]:
    found = [info if isinstance(info, Info) else Info(info) for info in infos]
    flags = policy.should_preserve(found, context=keep.PreservationContext())
    assert len(flags) == len(found)
    return [info.step for info, flag in zip(found, flags, strict=True) if flag]


def steps(ckptr: Any) -> list[int]:
    return [each.step for each in ckptr.checkpoints]


def state() -> dict[str, Any]:
    return {"w": np.ones(2)}


# --- when to save


def test_fixed_interval_saves_multiples_and_step_0() -> None:
    assert [step for step in range(10) if decided(save.FixedIntervalPolicy(3), step)] == [0, 3, 6, 9]


def test_specific_steps_are_those_of_any_container() -> None:
    for container in ([2, 5], {2, 5}, range(2, 6, 3)):
        assert [step for step in range(10) if decided(save.SpecificStepsPolicy(container), step)] == [2, 5]


def test_continuous_waits_for_the_save_in_flight_and_for_its_interval() -> None:
    assert decided(save.ContinuousCheckpointingPolicy(), 1)
    assert not decided(save.ContinuousCheckpointingPolicy(), 1, is_saving_in_progress=True)
    spaced = save.ContinuousCheckpointingPolicy(minimum_interval_secs=60)
    assert (
        decided(spaced, 1)
        and not decided(spaced, 2, [Info(1)], after_s=59)
        and decided(spaced, 2, [Info(1)], after_s=60)
    )


def test_initial_saves_as_long_as_nothing_is_saved_and_preemption_when_jax_says_so() -> None:
    assert decided(save.InitialSavePolicy(), 7) and not decided(save.InitialSavePolicy(), 8, [Info(7)])
    assert decided(save.PreemptionCheckpointingPolicy(), 3, reached_preemption=True)
    assert not decided(save.PreemptionCheckpointingPolicy(), 3)


def test_any_asks_no_further_than_the_first_that_saves() -> None:
    class Never:
        def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
            raise AssertionError

    assert decided(save.AnySavePolicy([save.FixedIntervalPolicy(1), Never()]), 1)
    assert not decided(save.AnySavePolicy([]), 1)
    assert isinstance(Never(), save.SaveDecisionPolicy)


def test_a_policy_of_the_users_own_sees_steps_times_metrics_and_what_is_going_on(tmp_path: Path) -> None:
    seen: list[Any] = []

    class WhenBetter:
        def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
            seen.append((step.step, step.metrics, [(each.step, each.metrics) for each in previous_steps]))
            assert step.time.tzinfo is not None and all(each.time <= step.time for each in previous_steps)
            assert (context.is_saving_in_progress, context.reached_preemption) == (False, False)
            assert context.multiprocessing_options.primary_host == 0
            return not previous_steps or previous_steps[-1].metrics["loss"] > 0.5

    with Checkpointer(tmp_path, save_decision_policy=WhenBetter()) as ckptr:
        assert [ckptr.save(step, state(), metrics={"loss": 1 / (step + 1)}) for step in range(4)] == [
            True,
            True,
            False,
            False,
        ]
    assert seen[1] == (1, None, [(0, {"loss": 1.0})])
    assert seen[3] == (3, None, [(0, {"loss": 1.0}), (1, {"loss": 0.5})])


def test_a_policy_is_not_asked_at_or_below_the_latest_nor_with_force(tmp_path: Path) -> None:
    class Never:
        def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
            raise AssertionError(step.step)

    with Checkpointer(tmp_path, save_decision_policy=Never()) as ckptr:
        assert ckptr.save(3, state(), force=True)
        assert not ckptr.should_save(3) and not ckptr.save(2, state())


# --- what to keep


def test_latest_n_keeps_the_last_all_or_none() -> None:
    assert kept(keep.LatestN(2), [1, 2, 3]) == [2, 3] and kept(keep.LatestN(5), [1, 2]) == [1, 2]
    assert kept(keep.LatestN(), [1, 2]) == [1, 2] and kept(keep.LatestN(0), [1, 2]) == []
    assert kept(keep.PreserveAll(), [1, 2]) == [1, 2] and kept(keep.LatestN(2), []) == []


def test_every_n_steps_is_exact_or_counts_from_the_last_one_kept() -> None:
    assert kept(keep.EveryNSteps(5), [0, 3, 5, 7, 10]) == [0, 5, 10]
    assert kept(keep.EveryNSteps(5, exact_interval=False), [3, 7, 9, 13, 20]) == [3, 9, 20]
    assert kept(keep.EveryNSteps(5, max_to_keep=1), [0, 5, 10]) == [10]


def test_every_n_steps_closest_takes_the_nearest_and_the_newest() -> None:
    infos = [1, 5, 9, 11, 14, 15, 16, 24, 25, 26]
    assert kept(keep.EveryNStepsClosest(10), infos) == [1, 11, 24, 26]
    assert kept(keep.EveryNStepsClosest(10, max_to_keep=2), infos) == [24, 26]
    assert kept(keep.EveryNStepsClosest(10), []) == []


def test_every_n_seconds_and_the_latest_duration_go_by_time() -> None:
    infos = [Info(i, after_s=10 * i) for i in range(6)]
    assert kept(keep.EveryNSeconds(20), infos) == [0, 2, 4]
    now = (dt.datetime.now(dt.UTC) - START).total_seconds()
    aged = [Info(i, after_s=now - age) for i, age in enumerate((5000, 3000, 8000, 10))]
    assert kept(keep.LatestDuration(dt.timedelta(hours=1)), aged) == [1, 2, 3]
    assert kept(keep.LatestDuration(dt.timedelta(seconds=1)), aged) == []


def test_custom_steps_are_kept() -> None:
    assert kept(keep.CustomSteps([2, 3, 9]), [1, 2, 3]) == [2, 3]


def test_best_n_keeps_the_best_and_on_a_tie_the_later() -> None:
    infos = [Info(i, {"acc": acc}) for i, acc in enumerate((0.5, 0.9, 0.9, 0.1))]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"], n=2), infos) == [1, 2]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"], n=1), infos) == [2]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"], n=2, reverse=True), infos) == [0, 3]
    tied = [Info(i, {"acc": 1.0}) for i in range(3)]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"], n=1, reverse=True), tied) == [2]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"]), infos) == [0, 1, 2, 3]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"], n=0), infos) == []


def test_best_n_keeps_those_without_metrics_unless_it_is_told_not_to() -> None:
    infos = [Info(0), Info(1, {"acc": 1}), Info(2, {"acc": 2}), Info(3)]
    assert kept(keep.BestN(get_metric_fn=lambda m: m["acc"], n=1), infos) == [0, 2, 3]
    strict = keep.BestN(get_metric_fn=lambda m: m["acc"], n=1, keep_checkpoints_without_metrics=False)
    assert kept(strict, infos) == [2]


def test_any_keeps_what_one_of_them_keeps() -> None:
    assert kept(keep.AnyPreservationPolicy([keep.LatestN(1), keep.EveryNSteps(4)]), [0, 3, 4, 5]) == [0, 4, 5]
    assert isinstance(keep.LatestN(), keep.PreservationPolicy)


def test_what_no_policy_keeps_is_deleted_once_the_new_step_is_there(tmp_path: Path) -> None:
    policy = keep.AnyPreservationPolicy([keep.LatestN(2), keep.EveryNSteps(4)])
    with Checkpointer(tmp_path, preservation_policy=policy) as ckptr:
        for step in range(8):
            ckptr.save(step, state())
        assert steps(ckptr) == [0, 4, 6, 7]
    assert {each.name for each in tmp_path.iterdir() if each.name.isdecimal()} == {"0", "4", "6", "7"}


def test_the_newest_goes_too_when_the_policy_says_so(tmp_path: Path) -> None:
    best = keep.BestN(get_metric_fn=lambda m: m["acc"], n=1)
    with Checkpointer(tmp_path / "a", preservation_policy=best) as ckptr:
        assert ckptr.save(0, state(), metrics={"acc": 1.0}) and ckptr.save(1, state(), metrics={"acc": 0.5})
        assert steps(ckptr) == [0] and ckptr.latest.step == 0
        assert ckptr.save(1, state(), metrics={"acc": 2.0}) and steps(ckptr) == [1]
    with Checkpointer(tmp_path / "b", preservation_policy=keep.LatestN(0)) as ckptr:
        assert ckptr.save(0, state()) and ckptr.latest is None and ckptr.save(0, state())


def test_a_preservation_policy_of_the_users_own_sees_the_new_step_among_the_others(tmp_path: Path) -> None:
    seen: list[Any] = []

    class LowestLoss:
        def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
            seen.append([(each.step, each.metrics["loss"]) for each in checkpoints])
            assert all(each.time.tzinfo is not None for each in checkpoints)
            lowest = min(each.metrics["loss"] for each in checkpoints)
            return [each.metrics["loss"] == lowest for each in checkpoints]

    with Checkpointer(tmp_path, preservation_policy=LowestLoss()) as ckptr:
        for step, loss in enumerate((3.0, 1.0, 2.0)):
            ckptr.save(step, state(), metrics={"loss": loss})
        assert steps(ckptr) == [1]
    assert seen == [[(0, 3.0)], [(0, 3.0), (1, 1.0)], [(1, 1.0), (2, 2.0)]]


def test_a_step_that_was_pinned_through_the_native_api_stays(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, preservation_policy=keep.LatestN(1)) as ckptr:
        ckptr.save(0, state())
        mp.open(tmp_path).pin(0, "paper")
        for step in (1, 2):
            ckptr.save(step, state())
        assert steps(ckptr) == [0, 2]
        assert ckptr.delete(0) and steps(ckptr) == [2]


def test_a_step_that_is_being_read_is_deleted_by_a_later_save(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, preservation_policy=keep.LatestN(1)) as ckptr:
        ckptr.save(0, state())
        with mp.open(tmp_path)[0].lease():
            ckptr.save(1, state())
            assert steps(ckptr) == [0, 1]
        ckptr.save(2, state())
        assert steps(ckptr) == [2]
