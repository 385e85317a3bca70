# SPDX-License-Identifier: Apache-2.0
"""Where Orbax 0.12.8 is broken, the v0 door is not: each of these fails with the original."""

from __future__ import annotations

import datetime as dt
import math
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
import milepost.compat.orbax as ocp

Options = ocp.CheckpointManagerOptions
policies = ocp.checkpoint_managers
STATE = {"w": np.arange(4.0)}
NOISE = np.random.default_rng(0).random(1 << 16)


def standard(tree: Any = None) -> Any:
    return ocp.args.StandardSave(STATE if tree is None else tree)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow: writes fail, as on a full disk, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_a_save(manager: Any, step: int) -> None:
    with full_disk():
        manager.save(step, args=standard({"w": NOISE}))
        with pytest.raises(mp.StorageError):
            manager.wait_until_finished()


# --- saves


def test_the_last_save_is_not_lost_when_the_program_ends_without_close(root: Path) -> None:
    program = f"""
        import numpy as np
        import milepost.compat.orbax as ocp

        manager = ocp.CheckpointManager({str(root)!r}, options=ocp.CheckpointManagerOptions(max_to_keep=1))
        for step in range(3):
            manager.save(step, args=ocp.args.StandardSave({{"w": np.full(100_000, step)}}))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)

    with ocp.CheckpointManager(root) as manager:
        assert manager.all_steps() == [2]
        assert manager.restore(2)["w"][0] == 2


def test_an_error_in_save_does_not_leave_the_manager_saving_for_ever(root: Path) -> None:
    options = Options(save_decision_policy=policies.ContinuousCheckpointingPolicy())
    with ocp.CheckpointManager(root, options=options) as manager:
        manager.save(1, args=standard())
        with pytest.raises(ocp.checkpoint_manager.StepAlreadyExistsError):
            manager.save(1, args=standard(), force=True)
        assert not manager.is_saving_in_progress()
        assert manager.save(2, args=standard())


def test_an_error_in_best_fn_is_told_before_anything_is_begun(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(best_fn=lambda metrics: metrics["a"], max_to_keep=2)) as manager:
        with pytest.raises(KeyError):
            manager.save(0, args=standard(), metrics={"b": 1})
        assert manager.all_steps() == []
        assert not manager.is_saving_in_progress()
        assert manager.save(1, args=standard(), metrics={"a": 1})
        manager.wait_until_finished()
        assert manager.all_steps() == [1]


def test_a_step_with_other_metrics_does_not_stop_the_run(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(best_fn=len)) as manager:
        manager.save(0, args=standard(), metrics={"old": 1})
    with ocp.CheckpointManager(root, options=Options(best_fn=lambda m: m["new"], max_to_keep=1)) as manager:
        with pytest.warns(RuntimeWarning, match="step 0 counts as without metrics"):
            assert manager.save(1, args=standard(), metrics={"new": 1})
        with pytest.warns(RuntimeWarning):
            assert manager.best_step() == 1


def test_a_forced_older_step_does_not_delete_the_newer(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(max_to_keep=1)) as manager:
        manager.save(10, args=standard())
        manager.save(5, args=standard(), force=True)
        manager.wait_until_finished()
        assert manager.all_steps() == [10, 5]
        manager.save(11, args=standard())
        manager.wait_until_finished()
        assert manager.all_steps() == [11]


def test_after_a_failed_save_no_old_step_is_forgotten(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(max_to_keep=1)) as manager:
        manager.save(0, args=standard())
        manager.wait_until_finished()
        fail_a_save(manager, 1)
        assert manager.all_steps() == [0]
        manager.save(2, args=standard())
        manager.wait_until_finished()
        assert manager.all_steps() == [2]
    assert sorted(path.name for path in root.iterdir() if path.name.isdigit()) == ["2"]


def test_a_failed_save_is_told_once_not_once_to_each_thread(root: Path) -> None:
    told: list[BaseException] = []

    def touch() -> None:
        try:
            manager.wait_until_finished()
        except OSError as error:
            told.append(error)

    with ocp.CheckpointManager(root) as manager, full_disk():
        manager.save(0, args=standard({"w": NOISE}))
        for _ in range(2):
            thread = threading.Thread(target=touch)
            thread.start()
            thread.join()
        touch()
    assert len(told) == 1


def test_check_for_errors_tells_of_a_failed_save(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        with full_disk():
            manager.save(0, args=standard({"w": NOISE}))
            for thread in threading.enumerate():
                if thread is not threading.current_thread():
                    thread.join(10)
        with pytest.raises(mp.StorageError):
            manager.check_for_errors()
        manager.check_for_errors()


def test_a_save_after_close_is_refused_at_once(root: Path) -> None:
    manager = ocp.CheckpointManager(root)
    manager.close()
    with pytest.raises(RuntimeError, match="was closed"):
        manager.save(0, args=standard())


def test_read_only_with_force_writes_nothing(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        manager.save(0, args=standard())
    with ocp.CheckpointManager(root, options=Options(read_only=True)) as manager:
        assert manager.save(1, args=standard(), force=True) is False
        assert manager.all_steps() == [0]


@pytest.mark.parametrize("step", [7.0, -1, True])
def test_a_step_that_would_vanish_after_reload_is_refused(root: Path, step: Any) -> None:
    with ocp.CheckpointManager(root) as manager, pytest.raises((TypeError, ValueError)):
        manager.save(step, args=standard())


def test_deleting_the_step_that_is_being_saved_waits_for_it(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        for step in range(3):
            manager.save(step, args=standard({"w": np.zeros(200_000)}))
            manager.delete(step)
            manager.wait_until_finished()
        assert manager.all_steps() == []
    assert [path for path in root.iterdir() if path.name.isdigit()] == []


def test_the_callback_runs_when_the_step_is_committed(root: Path) -> None:
    seen: list[list[int]] = []
    background = ocp.AsyncOptions(post_finalization_callback=lambda: seen.append(ocp.utils.checkpoint_steps(root)))
    with ocp.CheckpointManager(root, options=Options(async_options=background)) as manager:
        manager.save(3, args=standard())
    assert seen == [[3]]


def test_force_replaces_a_checkpoint_only_when_the_new_one_is_durable(root: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root / "a", STATE)
        checkpointer.wait_until_finished()
        with full_disk():
            checkpointer.save(root / "a", {"w": NOISE}, force=True)
            with pytest.raises(mp.StorageError):
                checkpointer.wait_until_finished()
        assert checkpointer.restore(root / "a")["w"].tolist() == [0, 1, 2, 3]


# --- metrics and retention


def test_metrics_of_a_best_n_policy_are_stored(root: Path) -> None:
    policy = policies.BestN(get_metric_fn=lambda metrics: metrics["a"], n=1)
    with ocp.CheckpointManager(root, options=Options(preservation_policy=policy)) as manager:
        manager.save(0, args=standard(), metrics={"a": 5.0})
        manager.save(1, args=standard(), metrics={"a": 1.0})
    with ocp.CheckpointManager(root, options=Options(preservation_policy=policy)) as manager:
        assert manager.metrics(0) == {"a": 5.0}
        manager.save(2, args=standard(), metrics={"a": 3.0})
        manager.wait_until_finished()
        assert manager.all_steps() == [0]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_never_the_best(root: Path, mode: str) -> None:
    options = Options(best_fn=lambda metrics: metrics["a"], best_mode=mode, max_to_keep=2)
    with ocp.CheckpointManager(root, options=options) as manager:
        for step, value in enumerate((2.0, math.nan, 1.0)):
            manager.save(step, args=standard(), metrics={"a": value})
        manager.wait_until_finished()
        assert manager.best_step() == (2 if mode == "min" else 0)
        assert manager.all_steps() == [0, 2]


def test_numbers_of_jax_and_numpy_are_metrics(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(best_fn=lambda metrics: metrics["a"])) as manager:
        manager.save(0, args=standard(), metrics={"a": jnp.float32(0.5), "b": np.int64(3)})
        manager.wait_until_finished()
        assert manager.metrics(0) == {"a": 0.5, "b": 3}


def test_an_item_may_be_called_metrics(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(best_fn=lambda metrics: metrics["a"])) as manager:
        manager.save(0, args=ocp.args.Composite(metrics=ocp.args.JsonSave({"x": 1})), metrics={"a": 2})
        assert manager.restore(0).metrics == {"x": 1}
        assert manager.metrics(0) == {"a": 2}


def test_policies_that_would_keep_what_nobody_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="without a policy"):
        policies.AnyPreservationPolicy([])
    with pytest.raises(ValueError, match="0 or more"):
        policies.LatestN(-1)
    context = policies.PreservationContext()
    assert policies.EveryNSteps(1, max_to_keep=0).should_preserve([_info(1)], context=context) == [False]


def _info(step: int) -> Any:
    return ocp.checkpoint_manager.CheckpointInfo(step, dt.datetime.now(dt.UTC), None)


def test_a_keep_time_interval_below_a_second_is_not_all(root: Path) -> None:
    options = Options(max_to_keep=1, keep_time_interval=dt.timedelta(milliseconds=900))
    with ocp.CheckpointManager(root, options=options) as manager:
        for step in range(4):
            manager.save(step, args=standard())
        manager.wait_until_finished()
        assert manager.all_steps() == [0, 3]


def test_todelete_full_path_does_not_wait_for_the_first_deletion_to_fail(root: Path) -> None:
    with pytest.raises(NotImplementedError):
        ocp.CheckpointManager(root, options=Options(todelete_full_path="trash"))


@pytest.mark.parametrize(
    "more",
    [
        {"keep_time_interval": dt.timedelta(hours=1), "max_to_keep": 1},
        {"save_decision_policy": policies.ContinuousCheckpointingPolicy(minimum_interval_secs=0)},
    ],
)
def test_a_light_start_goes_with_policies_that_look_at_times(root: Path, more: dict[str, Any]) -> None:
    with ocp.CheckpointManager(root) as manager:
        manager.save(0, args=standard())
    with ocp.CheckpointManager(root, options=Options(lightweight_initialize=True, **more)) as manager:
        assert manager.save(1, args=standard())


# --- damage


def test_a_bad_metrics_file_does_not_stop_the_run(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(best_fn=lambda metrics: metrics["a"])) as manager:
        for step in range(2):
            manager.save(step, args=standard(), metrics={"a": step})
    mp.open(root).annotate(1, metrics={"a": 7})
    note = next((root / "1" / "notes").iterdir())
    note.write_bytes(b"")

    with pytest.warns(RuntimeWarning, match="the metrics of step 1 cannot be read"):
        manager = ocp.CheckpointManager(root, options=Options(best_fn=lambda metrics: metrics["a"]))
    with manager:
        assert (manager.all_steps(), manager.best_step()) == ([0, 1], 0)
        assert manager.save(2, args=standard(), metrics={"a": 9})
        with pytest.raises(mp.CorruptionError):
            manager.metrics(1)


def test_a_run_goes_on_from_the_step_before_a_torn_one(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        for step in (1, 2):
            manager.save(step, args=standard())
    manifest = root / "2" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(b"")

    with pytest.warns(RuntimeWarning, match="step 2 is left out"):
        manager = ocp.CheckpointManager(root)
    with manager:
        assert manager.latest_step() == 1
        assert [manager.save(step, args=standard()) for step in (2, 3)] == [True, True]
        manager.wait_until_finished()
    with ocp.CheckpointManager(root) as manager:
        assert manager.all_steps() == [1, 2, 3]


def test_an_altered_byte_never_comes_back_as_a_number(root: Path) -> None:
    ocp.PyTreeCheckpointer().save(root, {"w": np.arange(10_000.0), "text": "plain"})
    for file in sorted((root / "0").iterdir()):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.chmod(0o644)
        whole = file.read_bytes()
        file.write_bytes(data)
        with pytest.raises((mp.CorruptionError, mp.FormatError)):
            ocp.PyTreeCheckpointer().restore(root)
        file.write_bytes(whole)
    assert ocp.PyTreeCheckpointer().restore(root)["w"][-1] == 9999


def test_a_missing_file_is_an_error_not_an_empty_result(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        manager.save(0, args=standard())
        manager.wait_until_finished()
        for file in (root / "0").glob("*.safetensors"):
            file.unlink()
        with pytest.raises(mp.CorruptionError):
            manager.restore(0)


def test_an_empty_folder_is_no_checkpoint(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        manager.save(0, args=standard())
        manager.wait_until_finished()
        (root / "8").mkdir()
        manager.reload()
        assert manager.all_steps() == [0]
        with pytest.raises(FileNotFoundError):
            manager.restore(8)


def test_what_others_put_into_the_directory_stays(root: Path) -> None:
    (root / "tensorboard_logs").mkdir(parents=True)
    (root / "exp_2024").mkdir()
    (root / "config.json").write_text("{}")
    atomic = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
    options = Options(cleanup_tmp_directories=True, atomicity_options=atomic, max_to_keep=1)
    with ocp.CheckpointManager(root, options=options, metadata={"a": 1}) as manager:
        for step in range(3):
            manager.save(step, args=standard())
        manager.wait_until_finished()
        assert manager.metadata().custom_metadata == {"a": 1}
    assert {"tensorboard_logs", "exp_2024", "config.json"} <= set(os.listdir(root))


# --- restores


def test_a_step_that_another_manager_deleted_is_no_obstacle_to_the_latest(root: Path) -> None:
    with ocp.CheckpointManager(root) as first:
        for step in range(2):
            first.save(step, args=standard({"w": np.full(1, step)}))
        first.wait_until_finished()
        with ocp.CheckpointManager(root, options=Options(create=False)) as second:
            first.delete(1)
            assert second.restore(None)["w"] == 0


def test_keys_that_look_alike_are_kept_apart(root: Path) -> None:
    tree = {"a.b": np.zeros(1), "a": {"b": np.ones(1)}, "~": "tilde", "x/y": 2}
    ocp.PyTreeCheckpointer().save(root, tree)

    assert ocp.PyTreeCheckpointer().restore(root) == tree
    with pytest.raises(ValueError, match="'0' as text"):
        ocp.PyTreeCheckpointer().save(root / "b", {0: 1, "0": 2})


@pytest.mark.parametrize(
    "leaf",
    [np.zeros((0, 3)), b"bytes", 2j, 1 << 80, np.array("2020-01-01", "M8[D]"), np.array(["a", "bc"]), "text"],
    ids=repr,
)
def test_leaves_that_the_original_refuses(root: Path, leaf: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root, {"x": leaf})
        found = checkpointer.restore(root)["x"]
    np.testing.assert_array_equal(found, leaf)
    assert type(found) is type(leaf)


def test_a_target_of_another_shape_is_an_error_for_numpy_too(root: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root, STATE)
        with pytest.raises(ValueError, match="another shape"):
            checkpointer.restore(root, {"w": np.zeros(3)})


def test_a_partial_restore_does_not_make_up_what_was_not_saved(root: Path) -> None:
    ocp.PyTreeCheckpointer().save(root, {**STATE, "b": 1})
    part = ocp.args.PyTreeRestore(item={"w": 0, "new": 5}, partial_restore=True)
    with pytest.raises(ValueError, match="in `like`, not saved"):
        ocp.PyTreeCheckpointer().restore(root, args=part)


def test_a_relative_path_is_a_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    monkeypatch.chdir(root)
    ocp.PyTreeCheckpointer().save("here", STATE)
    assert ocp.PyTreeCheckpointer().restore("here")["w"].tolist() == [0, 1, 2, 3]


# --- evaluation


def test_an_unrelated_folder_does_not_stop_the_evaluation(root: Path) -> None:
    (root / "exp_2024").mkdir(parents=True)
    with ocp.CheckpointManager(root) as manager:
        manager.save(3, args=standard())
    found = ocp.checkpoint_utils.checkpoints_iterator(root, timeout=0, seconds_to_sleep=0.01)
    assert list(found) == [3]
    assert not (root / "_SNAPSHOTS").exists()


def test_a_step_is_not_deleted_while_it_is_evaluated(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(max_to_keep=1)) as manager:
        manager.save(0, args=standard())
        manager.wait_until_finished()
        with ocp.checkpoint_utils.wait_for_new_checkpoint(root, timeout=0) as step:
            manager.save(1, args=standard())
            manager.wait_until_finished()
            assert manager.all_steps() == [1]
            assert ocp.StandardCheckpointer().restore(root / str(step) / "default")["w"].tolist() == [0, 1, 2, 3]
            assert os.listdir(root / "0")
        manager.save(2, args=standard())
        manager.wait_until_finished()
    assert sorted(mp.open(root)) == [2]
