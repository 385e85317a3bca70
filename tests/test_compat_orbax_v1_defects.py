# SPDX-License-Identifier: Apache-2.0
"""Where Orbax v1 is broken and the door is not. Each test would fail with Orbax 0.12.8 in the door's place."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
import milepost.compat.orbax_v1 as ocp

Checkpointer = ocp.training.Checkpointer
every = ocp.training.save_decision_policies.FixedIntervalPolicy
keep = ocp.training.preservation_policies


def state(value: float = 0) -> dict[str, Any]:
    return {"w": np.full(2, value)}


def large() -> dict[str, Any]:
    return {"w": np.random.default_rng(0).random(1 << 18)}


def steps(ckptr: Any) -> list[int]:
    return [each.step for each in ckptr.checkpoints]


@contextmanager
def files_stay_small() -> Iterator[None]:
    """Let every write past 1 MiB fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- after an error


@pytest.mark.parametrize("wrong", [{}, {"f": object()}, {"a": jnp.zeros(2), "b": {1: 1, "1": 2}}])
def test_an_error_in_save_leaves_no_saving_in_progress(root: Path, wrong: Any) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save(0, state())
        with pytest.raises(ValueError, match="nothing to save|cannot be stored|both '1' as text"):
            ckptr.save(1, wrong)
        assert not ckptr.is_saving_in_progress() and steps(ckptr) == [0]
        assert ckptr.save(1, state()) is True


def test_a_failing_preservation_policy_leaves_nothing_saved_and_the_next_save_works(root: Path) -> None:
    policy = keep.BestN(get_metric_fn=lambda m: m["loss"], n=1)
    with Checkpointer(root, preservation_policy=policy) as ckptr:
        ckptr.save(0, state(), metrics={"loss": 1})
        with pytest.raises(KeyError):
            ckptr.save(1, state(), metrics={"other": 1})
        assert steps(ckptr) == [0] and not (root / "1").exists() and not ckptr.is_saving_in_progress()
        assert ckptr.save(1, state(), metrics={"loss": 2}) and steps(ckptr) == [1]


def test_a_failed_write_is_told_once_by_the_next_touch_and_orphans_nothing(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1), preservation_policy=keep.LatestN(1)) as ckptr:
        ckptr.save(0, state())
        with files_stay_small():
            response = ckptr.save_async(1, large())
            ckptr_thread_errors: list[BaseException] = []
            try:
                ckptr.wait()
            except mp.StorageError as error:
                ckptr_thread_errors.append(error)
        assert len(ckptr_thread_errors) == 1
        ckptr.wait()  # not again, in any thread
        thread = threading.Thread(target=ckptr.wait)
        thread.start()
        thread.join()
        with pytest.raises(mp.StorageError):
            response.result()
        assert steps(ckptr) == [0] and not ckptr.is_saving_in_progress()  # the step that was to go is still there
        assert ckptr.save(1, state(1)) and steps(ckptr) == [1]
        assert {each.name for each in root.iterdir() if each.name[0].isdecimal()} <= {"1", "1.g2"}


def test_a_failed_free_save_frees_the_path(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with files_stay_small(), pytest.raises(mp.StorageError):
        ocp.save(path, large())
    assert not ocp.is_orbax_checkpoint(path)
    ocp.save(path, state(1))
    assert ocp.load(path)["w"][0] == 1


def test_a_failed_overwrite_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "one"
    ocp.save(path, state(1))
    with files_stay_small(), pytest.raises(mp.StorageError):
        ocp.save(path, large(), overwrite=True)
    assert ocp.load(path)["w"][0] == 1
    with Checkpointer(tmp_path / "run", save_decision_policy=every(1)) as ckptr:
        ckptr.save(0, state(1))
        with files_stay_small(), pytest.raises(mp.StorageError):
            ckptr.save(0, large(), overwrite=True, force=True)
        assert ckptr.load(0)["w"][0] == 1


def test_overwriting_never_leaves_a_moment_without_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "one"
    ocp.save(path, state(0))
    missing: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if not ocp.is_orbax_checkpoint(path):
                missing.append(1)

    thread = threading.Thread(target=watch)
    thread.start()
    for value in range(5):
        ocp.save(path, state(value), overwrite=True)
    over.set()
    thread.join()
    assert not missing


# --- deciding and keeping


def test_overwriting_an_older_step_deletes_nothing_when_the_policy_declines(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        ckptr.save(1, state(1))
        ckptr.save(2, state(2))
        assert ckptr.save(1, state(9), overwrite=True) is False
        assert steps(ckptr) == [1, 2] and ckptr.load(1)["w"][0] == 1
        assert ckptr.save(1, state(9), overwrite=True, force=True) and ckptr.load(1)["w"][0] == 9


def test_a_forced_older_step_deletes_neither_the_newer_nor_itself(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1), preservation_policy=keep.LatestN(1)) as ckptr:
        ckptr.save(10, state(10))
        assert ckptr.save(5, state(5), force=True)
        assert steps(ckptr) == [5, 10] and ckptr.latest.step == 10
        assert ckptr.save(6, state(6), force=True) and steps(ckptr) == [6, 10]
        assert ckptr.save(11, state(11)) and steps(ckptr) == [11]


def test_metrics_decide_after_a_restart_as_before(root: Path) -> None:
    policy = keep.BestN(get_metric_fn=lambda m: m["acc"], n=1)
    with Checkpointer(root, preservation_policy=policy) as ckptr:
        ckptr.save(0, state(), metrics={"acc": np.float32(0.9)})  # Orbax cannot even store a scalar of NumPy
    with Checkpointer(root, preservation_policy=policy) as ckptr:
        assert ckptr.checkpoints[0].metrics["acc"] == np.float32(0.9)
        ckptr.save(1, state(), metrics={"acc": jnp.float32(0.5)})
        assert steps(ckptr) == [0]


def test_nan_is_never_the_best(root: Path) -> None:
    for reverse in (False, True):
        policy = keep.BestN(get_metric_fn=lambda m: m["loss"], n=1, reverse=reverse)
        with Checkpointer(root / str(reverse), preservation_policy=policy) as ckptr:
            for step, loss in enumerate((2.0, math.nan, 1.0)):
                ckptr.save(step, state(), metrics={"loss": loss})
            assert steps(ckptr) == [2 if reverse else 0]


def test_policies_that_cannot_be_are_refused_when_they_are_made() -> None:
    for make in (
        lambda: keep.AnyPreservationPolicy([]),
        lambda: keep.LatestN(-1),
        lambda: keep.EveryNSteps(0),
        lambda: keep.EveryNStepsClosest(0),
        lambda: every(0),
    ):
        with pytest.raises(ValueError, match="expected|must not be 0"):
            make()
    infos = [ocp.training.CheckpointMetadata(step, Path(), metadata=None) for step in (0, 5)]
    for policy in (keep.EveryNSteps(5, max_to_keep=0), keep.EveryNStepsClosest(5, max_to_keep=0)):
        assert list(policy.should_preserve(infos, context=keep.PreservationContext())) == [False, False]


# --- damage


def test_a_damaged_step_stops_neither_the_start_nor_the_run(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        for step in range(3):
            ckptr.save(step, state(step), metrics={"loss": step})
    (root / "2" / "manifest.json").write_bytes(b"")
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        assert ckptr.latest.step == 1 and ckptr.load()["w"][0] == 1
        assert ckptr.save(2, state(20), metrics={"loss": 2}) and ckptr.load(2)["w"][0] == 20
        ckptr.close()
        assert ckptr.save(3, state(3)) and steps(ckptr) == [0, 1, 2, 3]
        assert not any(mp.open(root)[step].info.superseded for step in range(4))
    assert [each.step for each in Checkpointer(root).checkpoints] == [0, 1, 2, 3]


def test_an_empty_step_folder_is_no_checkpoint(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        ckptr.save(1, state())
        (root / "8").mkdir()
        ckptr.reload()
        assert steps(ckptr) == [1]
        with pytest.raises(ocp.training.errors.StepNotFoundError):
            ckptr.load(8)
        assert ckptr.save(8, state(8)) and ckptr.load(8)["w"][0] == 8


def test_a_flipped_bit_is_never_loaded(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save(0, {"w": np.arange(5000.0)})
        pack = next((root / "0").glob("*.safetensors"))
        data = bytearray(pack.read_bytes())
        data[-1000] ^= 4
        pack.chmod(0o644)
        pack.write_bytes(data)
        with pytest.raises(mp.CorruptionError, match="state/w"):
            ckptr.load(0)


def test_a_lightweight_checkpointer_works(root: Path) -> None:
    Checkpointer(root).save(0, state(4), metrics={"a": 1})
    policy = ocp.training.save_decision_policies.ContinuousCheckpointingPolicy(minimum_interval_secs=1000)
    with Checkpointer(
        root, lightweight_initialize=True, save_decision_policy=policy, preservation_policy=keep.EveryNSeconds(10)
    ) as ckptr:
        assert ckptr.latest.step == 0 and ckptr.latest.metrics == {"a": 1} and ckptr.load()["w"][0] == 4
        assert ckptr.save(1, state()) is False and ckptr.save(1, state(), force=True)


# --- loading


def test_an_array_of_another_shape_is_an_error_for_numpy_too(root: Path) -> None:
    ocp.save(root, {"a": np.arange(4.0)})
    with pytest.raises(ValueError, match="another shape:\n.*state/a +saved float64.4., `like` float64.7."):
        ocp.load(root, {"a": np.zeros(7)})


def test_a_leaf_that_was_not_saved_is_not_made_up(root: Path) -> None:
    ocp.save(root, {"a": np.arange(4.0)})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, pytest.raises(ValueError, match="not saved:\n.*state/q"):
        ocp.load(root, {"q": np.zeros(4)})


def test_every_difference_is_told_at_once_and_as_a_value_error(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save(0, {"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(4)})
        with pytest.raises(ValueError, match="does not fit") as caught:
            ckptr.load(0, {"a": np.zeros(5), "b": np.zeros(3), "d": np.zeros(4)})
    assert all(f"state/{name}" in str(caught.value) for name in "acd")


def test_a_float_does_not_become_an_integer(root: Path) -> None:
    ocp.save(root, {"lr": 0.75})
    with pytest.raises(ValueError, match="lr: the saved number 0.75 is no int"):
        ocp.load(root, {"lr": 1})


def test_numpy_arrays_may_be_loaded_as_jax_without_a_sharding(root: Path) -> None:
    ocp.save(root, {"a": np.arange(4, dtype=np.float32), "i": 3})
    loaded = ocp.load(root, {"a": jax.ShapeDtypeStruct((4,), jnp.float32), "i": jax.ShapeDtypeStruct((), jnp.int32)})
    assert isinstance(loaded["a"], jax.Array) and loaded["a"].tolist() == [0, 1, 2, 3] and int(loaded["i"]) == 3


def test_keys_that_look_alike_stay_apart(root: Path) -> None:
    tree = {"a.b": 1, "a": {"b": 2}, "~": "text", "x/y": 3, "x": {"y": 4}, "@*[": 5}
    ocp.save(root, tree)
    assert ocp.load(root) == tree
    assert ocp.load(root, tree) == tree


def test_metadata_of_a_tree_with_a_bool_is_told(root: Path) -> None:
    ocp.save(root, {"a": np.ones(2), "flag": True})
    assert ocp.metadata(root).metadata["a"].shape == (2,) and ocp.metadata(root).metadata["flag"] is False


def test_steps_of_an_older_name_format_are_listed_once_and_load(root: Path) -> None:
    plain = ocp.path.step.standard_name_format()
    named = ocp.path.step.standard_name_format(step_prefix="s")
    with Checkpointer(root, step_name_format=plain) as ckptr:
        ckptr.save(1, state(1))
    both = ocp.path.step.composite_name_format(named, [named, plain])
    with Checkpointer(root, step_name_format=both) as ckptr:
        ckptr.save(2, state(2))
        assert steps(ckptr) == [1, 2] and [ckptr.load(step)["w"][0] for step in (1, 2)] == [1, 2]
    assert sorted(found.step for found in both.find_all(root)) == [1, 2] and both.find_step(root, 1).step == 1


# --- the end of the program


@pytest.mark.parametrize("what", ["ckptr.save_async(3, tree)", "ocp.save_async(root / 'alone', tree)"])
def test_a_save_in_flight_when_the_program_ends_is_finished(tmp_path: Path, what: str) -> None:
    program = f"""
import pathlib
import numpy as np
import milepost.compat.orbax_v1 as ocp
root = pathlib.Path({str(tmp_path)!r})
tree = {{"w": np.ones(1 << 20)}}
ckptr = ocp.training.Checkpointer(root / "run")
{what}
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
    where = tmp_path / "alone" if "alone" in what else tmp_path / "run" / "3"
    assert ocp.load(where)["w"].sum() == 1 << 20


def test_the_callback_after_finalization_finds_the_step_committed(root: Path) -> None:
    found: list[Any] = []
    context = ocp.Context()
    context.asynchronous.post_finalization_callback = lambda: found.append(ocp.load(root / "0")["w"].sum())
    with Checkpointer(root, context=context) as ckptr:
        ckptr.save_async(0, state(1)).result()
    assert found == [2.0]


def test_two_jobs_cannot_save_into_one_root(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save(0, state())
        program = f"""
import milepost as mp
import milepost.compat.orbax_v1 as ocp
ckptr = ocp.training.Checkpointer({str(root)!r})
assert ckptr.latest.step == 0 and ckptr.load()["w"].sum() == 0
try:
    ckptr.save(1, {{"a": 1}})
except mp.ConflictError as error:
    assert error.code == "locked"
    print("refused")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout == "refused\n", done.stderr
        assert ckptr.save(1, state())
