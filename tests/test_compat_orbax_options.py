# SPDX-License-Identifier: Apache-2.0
"""Every option of the v0 door's CheckpointManager, and every policy: the effect of each is observed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost as mp
import milepost.compat.orbax as ocp

Options = ocp.CheckpointManagerOptions
policies = ocp.checkpoint_managers
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def state(step: int = 0) -> Any:
    return ocp.args.StandardSave({"w": np.full(2, step)})


def survivors(root: Path, steps: Sequence[int], metrics: Sequence[Any] | None = None, **options: Any) -> list[int]:
    """Return the steps on disk after a run that saves all of these."""
    with ocp.CheckpointManager(root, options=Options(**options)) as manager:
        for place, step in enumerate(steps):
            manager.save(step, args=state(step), force=True, metrics=None if metrics is None else metrics[place])
        manager.wait_until_finished()
        known = list(manager.all_steps())
    assert sorted(mp.open(root)) == sorted(known)
    return known


# --- when to save


def saved(root: Path, steps: Sequence[int], **options: Any) -> list[int]:
    with ocp.CheckpointManager(root, options=Options(**options)) as manager:
        return [step for step in steps if manager.save(step, args=state(step))]


def test_save_interval_steps_and_save_on_steps(root: Path) -> None:
    assert saved(root, range(12), save_interval_steps=5, save_on_steps=[7]) == [0, 5, 7, 10]
    with pytest.raises(ZeroDivisionError):
        saved(root, [20], save_interval_steps=0)


def test_should_save_fn_replaces_interval_and_first_save(root: Path) -> None:
    asked: list[tuple[int, int | None]] = []

    def third(step: int, latest: int | None) -> bool:
        asked.append((step, latest))
        return step % 3 == 2

    assert saved(root, range(4), should_save_fn=third, save_on_steps=[1]) == [2]
    assert asked == [(0, None), (1, None), (2, None), (3, 2)]


def test_save_decision_policy_decides_alone(root: Path) -> None:
    any_of = policies.AnySavePolicy([policies.SpecificStepsPolicy({4}), policies.FixedIntervalPolicy(3)])
    assert saved(root / "any", range(1, 8), save_decision_policy=any_of) == [3, 4, 6]
    assert saved(root / "first", [5, 6], save_decision_policy=policies.InitialSavePolicy()) == [5]
    assert saved(root / "never", [5], save_decision_policy=policies.PreemptionCheckpointingPolicy()) == []


def test_enable_should_save_is_saving_in_progress_check(root: Path) -> None:
    continuous = policies.ContinuousCheckpointingPolicy()
    for check, second in ((True, False), (False, True)):
        event = threading.Event()
        background = ocp.AsyncOptions(post_finalization_callback=lambda event=event: event.wait(30) and None)
        options = Options(
            save_decision_policy=continuous, async_options=background,
            enable_should_save_is_saving_in_progress_check=check,
        )  # fmt: skip
        with ocp.CheckpointManager(root / str(check), options=options) as manager:
            manager.save(0, args=state())
            assert manager.should_save(1) is second
            event.set()


def test_continuous_checkpointing_keeps_its_distance(root: Path) -> None:
    policy = policies.ContinuousCheckpointingPolicy(minimum_interval_secs=60)
    context = policies.DecisionContext(
        is_saving_in_progress=False, reached_preemption=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(),
    )  # fmt: skip
    before = [info(1)]

    assert not policy.should_save(info(2, seconds=59), before, context=context)
    assert policy.should_save(info(2, seconds=60), before, context=context)
    assert policy.should_save(info(2), [], context=context)


# --- what to keep


def test_max_to_keep(root: Path) -> None:
    assert survivors(root / "all", range(4)) == [0, 1, 2, 3]
    assert survivors(root / "two", range(4), max_to_keep=2) == [2, 3]
    with pytest.raises(ValueError, match="non-negative"):
        Options(max_to_keep=-1)


def test_max_to_keep_zero_deletes_even_the_newest_which_can_be_saved_again(root: Path) -> None:
    assert survivors(root, [0, 0, 1], max_to_keep=0) == []


def test_keep_period(root: Path) -> None:
    assert survivors(root, range(7), max_to_keep=1, keep_period=3) == [0, 3, 6]
    assert survivors(root, [7, 8], max_to_keep=1, keep_period=3) == [0, 3, 6, 8]


def test_keep_time_interval(root: Path) -> None:
    assert survivors(root / "a", range(4), max_to_keep=1, keep_time_interval=dt.timedelta(hours=1)) == [0, 3]
    assert survivors(root / "b", range(4), max_to_keep=1, keep_time_interval=dt.timedelta()) == [0, 1, 2, 3]


def test_best_fn_and_best_mode_keep_the_best_and_nothing_for_being_new(root: Path) -> None:
    metrics = [{"a": value} for value in (3.0, 5.0, 1.0, 4.0)]
    fn = lambda found: found["a"]  # noqa: E731
    assert survivors(root / "max", range(4), metrics, max_to_keep=2, best_fn=fn) == [1, 3]
    assert survivors(root / "min", range(4), metrics, max_to_keep=1, best_fn=fn, best_mode="min") == [2]
    with pytest.raises(ValueError, match="best_mode"):
        Options(best_mode="most")


def test_keep_checkpoints_without_metrics(root: Path) -> None:
    metrics = [None, {"a": 1.0}, None, {"a": 2.0}]
    fn = lambda found: found["a"]  # noqa: E731
    assert survivors(root / "yes", range(4), metrics, max_to_keep=1, best_fn=fn) == [0, 2, 3]
    no = {"max_to_keep": 1, "best_fn": fn, "keep_checkpoints_without_metrics": False}
    assert survivors(root / "no", range(4), metrics, **no) == [3]


def test_preservation_policy_decides_alone(root: Path) -> None:
    class Odd:
        def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
            return [info.step % 2 == 1 or info.metrics == {"keep": 1} for info in checkpoints]

    metrics = [None, None, {"keep": 1}, None, None]
    assert survivors(root, range(5), metrics, preservation_policy=Odd()) == [1, 2, 3]
    with pytest.raises(ValueError, match="leave out"):
        ocp.CheckpointManager(root, options=Options(max_to_keep=1, preservation_policy=policies.LatestN(2)))


def test_prevent_write_metrics(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(prevent_write_metrics=True, best_fn=len)) as manager:
        manager.save(0, args=state(), metrics={"a": 1})
        assert manager.best_step() == 0
    with ocp.CheckpointManager(root, options=Options(best_fn=len)) as manager:
        assert (manager.metrics(0), manager.best_step()) == (None, None)


def info(step: int, *, seconds: float = 0, metrics: Any = None) -> Any:
    return ocp.checkpoint_manager.CheckpointInfo(step, NOW + dt.timedelta(seconds=seconds), metrics)


def kept(policy: Any, infos: Sequence[Any]) -> list[int]:
    answers = policy.should_preserve(infos, context=policies.PreservationContext())
    return [each.step for each, keep in zip(infos, answers, strict=True) if keep]


@pytest.mark.parametrize(
    ("policy", "steps", "expected"),
    [
        (policies.PreserveAll(), [1, 2], [1, 2]),
        (policies.LatestN(2), [1, 2, 3], [2, 3]),
        (policies.LatestN(), [1, 2, 3], [1, 2, 3]),
        (policies.LatestN(0), [1, 2, 3], []),
        (policies.EveryNSteps(5), [3, 5, 9, 10], [5, 10]),
        (policies.EveryNSteps(5, exact_interval=False), [3, 7, 9, 13, 20], [3, 9, 20]),
        (policies.EveryNSteps(5, max_to_keep=1), [5, 10, 15], [15]),
        (policies.EveryNStepsClosest(10), [1, 5, 9, 11, 14, 15, 16, 24, 25, 26], [1, 11, 24, 26]),
        (policies.EveryNStepsClosest(10, max_to_keep=2), [1, 11, 24, 26], [24, 26]),
        (policies.EveryNStepsClosest(10), [], []),
        (policies.CustomSteps([2, 7]), [1, 2, 3], [2]),
        (policies.AnyPreservationPolicy([policies.LatestN(1), policies.CustomSteps([1])]), [1, 2, 3], [1, 3]),
    ],
)
def test_a_preservation_policy_keeps(policy: Any, steps: list[int], expected: list[int]) -> None:
    assert kept(policy, [info(step) for step in steps]) == expected


def test_preservation_by_time() -> None:
    infos = [info(step, seconds=seconds) for step, seconds in enumerate((0, 9, 10, 19, 21))]
    assert kept(policies.EveryNSeconds(10), infos) == [0, 2, 4]
    assert kept(policies.EveryNSeconds(10), []) == []
    long_ago = [info(0), info(1)]
    assert kept(policies.LatestDuration(dt.timedelta(days=1)), long_ago) == []
    now = ocp.checkpoint_manager.CheckpointInfo(2, dt.datetime.now(dt.UTC), None)
    assert kept(policies.LatestDuration(dt.timedelta(days=1)), [info(0), now, info(3)]) == [2, 3]


def test_preservation_of_the_best() -> None:
    infos = [info(step, metrics=metrics) for step, metrics in enumerate((3, 5, 5, None, 1))]
    best = policies.BestN(get_metric_fn=lambda metrics: metrics, n=1)
    assert kept(best, infos) == [2, 3]
    assert kept(dataclasses.replace(best, reverse=True, keep_checkpoints_without_metrics=False), infos) == [4]
    assert kept(dataclasses.replace(best, n=None), infos) == kept(dataclasses.replace(best, n=5), infos) == [*range(5)]
    assert kept(dataclasses.replace(best, n=0), infos) == []


# --- names


def test_step_prefix_and_step_format_fixed_length(root: Path) -> None:
    survivors(root, [12, 12345], step_prefix="ckpt", step_format_fixed_length=4)
    assert {path.name for path in root.glob("ckpt*")} == {"ckpt_0012", "ckpt_12345"}
    with ocp.CheckpointManager(root) as manager:  # a root keeps its own names
        assert manager.all_steps() == [12, 12345]
    with pytest.raises(mp.FormatError, match="names its steps otherwise"):
        ocp.CheckpointManager(root, options=Options(step_prefix="other"))


def test_step_name_format(root: Path) -> None:
    standard = ocp.step.standard_name_format(step_prefix="a", step_format_fixed_length=3)
    assert survivors(root, [7], step_name_format=standard) == [7]
    assert standard.find_step(root, 7).path == root / "a_007"
    assert [found.step for found in standard.find_all(root)] == [7]
    assert standard.find_step(root, 7).commit_timestamp_nsecs >= (standard.find_step(root, 7).init_timestamp_nsecs or 0)
    with pytest.raises(ValueError, match="no step 8"):
        standard.find_step(root, 8)
    plain = ocp.step.standard_name_format()
    both = ocp.step.composite_name_format(plain, [plain, standard])
    assert survivors(root, [8], step_name_format=both) == [7, 8]
    assert (root / "a_008").is_dir()
    with pytest.raises(ValueError, match="must be one of"):
        ocp.step.composite_name_format(plain, [standard])

    class Spelled:
        def build_name(self, step: int) -> str:
            return f"{step}-th"

    with pytest.raises(ValueError, match="a name is a prefix and the number"):
        ocp.CheckpointManager(root / "x", options=Options(step_name_format=Spelled()))


def test_single_host_load_and_broadcast_must_be_said_twice() -> None:
    plain = ocp.step.standard_name_format()
    Options(
        step_name_format=ocp.step.single_host_load_and_broadcast_name_format(plain), single_host_load_and_broadcast=True
    )
    with pytest.raises(ValueError, match="single_host_load_and_broadcast"):
        Options(step_name_format=plain, single_host_load_and_broadcast=True)


# --- the directory


def test_create_makes_the_directory_at_once_else_the_first_save_does(root: Path) -> None:
    with ocp.CheckpointManager(root / "a"):
        assert (root / "a").is_dir()
    with ocp.CheckpointManager(root / "b", options=Options(create=False)) as manager:
        assert not (root / "b").exists()
        assert manager.all_steps() == []
        manager.save(0, args=state())
    assert sorted(mp.open(root / "b")) == [0]


def test_read_only_writes_nothing(root: Path) -> None:
    survivors(root, [0, 1])
    options = Options(read_only=True, max_to_keep=1, save_on_steps=[3], keep_period=2, todelete_subdir="x")
    assert (options.save_interval_steps, options.max_to_keep, options.create, options.todelete_subdir) == (
        0, None, False, None,
    )  # fmt: skip
    before = sorted(path.name for path in root.iterdir())
    with ocp.CheckpointManager(root, options=options) as manager:
        assert not manager.should_save(5)
        assert manager.save(5, args=state()) is False
        manager.delete(0)
        manager.delete(77)
        assert manager.all_steps() == [0, 1]
        assert manager.restore(None)["w"].tolist() == [1, 1]
    assert sorted(path.name for path in root.iterdir()) == before


def test_cleanup_tmp_directories_is_always_done_by_the_first_save(root: Path) -> None:
    survivors(root, [0])
    (root / "5").mkdir()
    (root / "5" / "p00000-00000000.safetensors").write_bytes(b"half")
    assert survivors(root, [6], cleanup_tmp_directories=False) == [0, 6]
    assert not (root / "5").exists()


def test_todelete_subdir_takes_what_would_be_deleted(root: Path) -> None:
    assert survivors(root, range(3), max_to_keep=1, todelete_subdir="trash") == [2]
    assert sorted(path.name for path in (root / "trash").iterdir()) == ["0", "1"]
    assert ocp.StandardCheckpointer().restore(root / "trash" / "1" / "default")["w"].tolist() == [1, 1]
    with ocp.CheckpointManager(root, options=Options(todelete_subdir="trash")) as manager:
        manager.delete(2)
    mp.open(root / "trash" / "2")[2].verify()


def test_todelete_full_path_is_refused_at_once_on_a_file_system(root: Path) -> None:
    with pytest.raises(NotImplementedError, match="todelete_subdir"):
        ocp.CheckpointManager(root, options=Options(todelete_full_path="trash"))
    with pytest.raises(ValueError, match="give one of them"):
        Options(todelete_subdir="a", todelete_full_path="b")


def test_deletions_are_done_when_wait_returns_with_and_without_a_background(root: Path) -> None:
    assert survivors(root, range(3), max_to_keep=1, enable_background_delete=True, num_deletion_threads=2) == [2]


def test_file_options_path_permission_mode(root: Path) -> None:
    survivors(root, [0], file_options=ocp.options.FileOptions(path_permission_mode=0o750))
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, root / "0")} == {0o750}
    assert survivors(root, [1], file_options=ocp.options.FileOptions(skip_sync_file_validations=True)) == [0, 1]


def test_save_root_metadata(root: Path) -> None:
    for keep in (True, False):
        folder = root / str(keep)
        with ocp.CheckpointManager(folder, metadata={"a": 1}, options=Options(save_root_metadata=keep)):
            pass
        assert mp.open(folder).metadata == ({"a": 1} if keep else {})


def test_lightweight_initialize_reads_no_records(root: Path) -> None:
    survivors(root, [0, 1], [{"a": 2}, {"a": 1}])
    manifest = root / "1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with ocp.CheckpointManager(root, options=Options(lightweight_initialize=True)) as manager:
        assert (manager.all_steps(), manager.should_save(2)) == ([0, 1], True)
    with pytest.warns(RuntimeWarning, match="step 1 is left out"), ocp.CheckpointManager(root) as manager:
        assert manager.all_steps() == [0]


# --- in the background


def test_enable_async_checkpointing_false_is_durable_when_save_returns(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(enable_async_checkpointing=False, max_to_keep=1)) as manager:
        for step in range(2):
            manager.save(step, args=state(step))
            assert list(mp.open(root)) == [step]


def test_async_options_timeout_secs(root: Path) -> None:
    event = threading.Event()
    background = ocp.AsyncOptions(timeout_secs=0.02, post_finalization_callback=lambda: event.wait(30) and None)
    with ocp.CheckpointManager(root, options=Options(async_options=background)) as manager:
        manager.save(0, args=state())
        with pytest.raises(TimeoutError, match="step 0 is not over after 0.02 s"):
            manager.wait_until_finished()
        event.set()
        background.timeout_secs = 30
        manager.wait_until_finished()
    with pytest.raises(ValueError, match="must be positive"):
        ocp.CheckpointManager(root, options=Options(async_options=ocp.AsyncOptions(timeout_secs=0)))


def test_async_options_post_finalization_callback_is_for_the_background_only(root: Path) -> None:
    callback = ocp.AsyncOptions(post_finalization_callback=print)
    with pytest.raises(ValueError, match="in the background only"):
        ocp.CheckpointManager(root, options=Options(enable_async_checkpointing=False, async_options=callback))


# --- accepted, with nothing left to do


def test_options_of_several_processes_do_in_one_what_orbax_does_there(root: Path) -> None:
    for primary in (0, None):
        several = ocp.options.MultiprocessingOptions(primary_host=primary, barrier_sync_key_prefix="x")
        assert survivors(root / str(primary), [0], multiprocessing_options=several) == [0]
    active = ocp.options.MultiprocessingOptions(active_processes={0})
    assert survivors(root / "active", [0], multiprocessing_options=active, create=False) == [0]
    with pytest.raises(NotImplementedError, match="make the directory yourself"):
        ocp.CheckpointManager(root, options=Options(multiprocessing_options=active))
    each = ocp.options.MultiprocessingOptions(primary_host=None)
    Options(enable_per_process_directory_creation=True, multiprocessing_options=each)
    with pytest.raises(ValueError, match="primary_host=None"):
        Options(enable_per_process_directory_creation=True)


def test_atomicity_options_and_temporary_path_class_change_nothing(root: Path) -> None:
    mode = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
    assert survivors(root, [0], atomicity_options=mode, temporary_path_class=object) == [0]


def test_every_field_is_observed_here_and_explained_on_the_page(project: Path) -> None:
    fields = [field.name for field in dataclasses.fields(Options)]
    here = inspect.getsource(inspect.getmodule(saved))
    page = (project / "docs" / "doors" / "orbax.md").read_text()

    assert len(fields) == 33
    assert [name for name in fields if not re.search(rf"\b{name}=|\"{name}\":", here)] == []
    assert [name for name in fields if f"`{name}`" not in page] == []
