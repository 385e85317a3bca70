# SPDX-License-Identifier: Apache-2.0
"""The CheckpointManager of the v0 door: what training programs that were written for Orbax rely on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
import milepost.compat.orbax as ocp

Options = ocp.CheckpointManagerOptions
STATE = {"w": np.arange(3.0), "n": 1}


def standard(tree: Any = None) -> Any:
    return ocp.args.StandardSave(STATE if tree is None else tree)


@pytest.fixture
def manager(root: Path) -> Iterator[ocp.CheckpointManager]:
    with ocp.CheckpointManager(root) as made:
        yield made


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Keeps saves in progress, as their `post_finalization_callback`, until it is set."""
    event = threading.Event()
    yield event
    event.set()


def holding(event: threading.Event) -> ocp.AsyncOptions:
    return ocp.AsyncOptions(post_finalization_callback=lambda: event.wait(30) and None)


# --- which steps


def test_all_steps_come_in_the_order_in_which_they_were_saved_until_reload(manager: ocp.CheckpointManager) -> None:
    manager.save(10, args=standard())
    manager.save(5, args=standard(), force=True)

    assert (manager.all_steps(), manager.latest_step()) == ([10, 5], 5)
    manager.wait_until_finished()
    manager.reload()
    assert (manager.all_steps(), manager.latest_step()) == ([5, 10], 10)
    assert manager.all_steps(read=True) == [5, 10]


def test_a_step_counts_as_soon_as_its_save_has_begun(root: Path, held: threading.Event) -> None:
    with ocp.CheckpointManager(root, options=Options(async_options=holding(held))) as manager:
        assert (manager.all_steps(), manager.latest_step(), manager.best_step()) == ([], None, None)
        manager.save(1, args=standard())
        assert manager.is_saving_in_progress()
        manager.reload()
        assert (manager.all_steps(), manager.latest_step()) == ([1], 1)
        held.set()
        manager.wait_until_finished()
        assert not manager.is_saving_in_progress()


def test_what_others_save_or_delete_is_seen_after_reload(root: Path, manager: ocp.CheckpointManager) -> None:
    with ocp.CheckpointManager(root) as other:
        manager.save(1, args=standard())
        manager.wait_until_finished()
        assert other.all_steps() == []
        other.reload()
        assert other.all_steps() == [1]
        manager.delete(1)
        other.reload()
        assert other.all_steps() == []


def test_best_step_takes_the_later_of_two_equals_and_ignores_steps_without_metrics(root: Path) -> None:
    for mode, best in (("max", 2), ("min", 3)):
        folder = root / mode
        with ocp.CheckpointManager(folder, options=Options(best_fn=lambda m: m["a"], best_mode=mode)) as manager:
            manager.save(0, args=standard())
            assert manager.best_step() is None
            for step, value in ((1, 5.0), (2, 5.0), (3, 1.0)):
                manager.save(step, args=standard(), metrics={"a": value})
            manager.save(4, args=standard())
            assert (manager.best_step(), manager.latest_step()) == (best, 4)


# --- when


def test_nothing_at_or_below_the_latest_is_due(manager: ocp.CheckpointManager) -> None:
    manager.save(3, args=standard())

    assert [manager.should_save(step) for step in (2, 3, 4)] == [False, False, True]
    assert manager.save(3, args=standard()) is False


def test_the_first_save_of_a_fresh_directory_is_made_whatever_the_interval(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(save_interval_steps=5)) as manager:
        assert [step for step in range(3, 12) if manager.save(step, args=standard())] == [3, 5, 10]


def test_a_policy_is_asked_only_above_the_latest_and_sees_step_time_and_context(root: Path) -> None:
    asked: list[tuple[int, list[int], bool, bool]] = []

    class Own:
        def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
            previous = [info.step for info in previous_steps]
            assert all(info.time <= step.time for info in previous_steps)
            asked.append((step.step, previous, context.is_saving_in_progress, context.reached_preemption))
            return step.step > 1

    with ocp.CheckpointManager(root, options=Options(save_decision_policy=Own())) as manager:
        assert [manager.save(step, args=standard()) for step in (0, 2)] == [False, True]
        manager.wait_until_finished()
        assert manager.save(1, args=standard()) is False
        assert manager.should_save(3)

    assert asked == [(0, [], False, False), (2, [], False, False), (3, [2], False, False)]
    assert mp.open(root)[2].reason == "Own"


def test_the_reason_of_each_step_is_stored(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(save_interval_steps=2, save_on_steps=[3])) as manager:
        for step in (1, 2, 3):
            manager.save(step, args=standard())
        manager.save(5, args=standard(), force=True)
        manager.wait_until_finished()

    reasons = {step: checkpoint.reason for step, checkpoint in mp.open(root).items()}
    assert reasons == {1: "InitialSavePolicy", 2: "FixedIntervalPolicy", 3: "SpecificStepsPolicy", 5: "forced"}


def test_nothing_is_preempted_in_one_process(manager: ocp.CheckpointManager) -> None:
    assert manager.reached_preemption(1) is False


# --- save and restore


def test_a_step_that_is_there_is_an_error_even_with_force(manager: ocp.CheckpointManager) -> None:
    manager.save(1, args=standard())

    with pytest.raises(ocp.StepAlreadyExistsError, match="Checkpoint for step 1 already exists"):
        manager.save(1, args=standard(), force=True)
    assert issubclass(ocp.StepAlreadyExistsError, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": ocp.args.StandardSave(STATE)}, "specify the argument keyword"),
        ({}, "Must provide `args` for `save`"),
        ({"args": STATE}, "Expected args of type `CheckpointArgs`"),
        ({"args": ocp.args.Composite(a=None)}, "no arguments for it"),
        ({"args": ocp.args.Composite(**{"a/b": ocp.args.StandardSave(STATE)})}, "cannot be called"),
    ],
)
def test_arguments_that_do_not_fit_are_told(manager: ocp.CheckpointManager, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manager.save(0, **arguments)
    assert manager.all_steps() == []


def test_the_first_save_says_whether_there_are_several_items(root: Path) -> None:
    with ocp.CheckpointManager(root / "one") as manager:
        manager.save(0, args=standard())
        for act in (manager.save, manager.restore):
            with pytest.raises(ValueError, match="Cannot provide `args` of type `Composite`"):
                act(1 if act == manager.save else 0, args=ocp.args.Composite(a=standard()))
    with ocp.CheckpointManager(root / "many") as manager:
        manager.save(0, args=ocp.args.Composite(a=standard()))
        with pytest.raises(ValueError, match="Must provide `args` of type `Composite`"):
            manager.save(1, args=standard())


def test_restore_waits_for_the_save_in_flight(manager: ocp.CheckpointManager) -> None:
    manager.save(4, args=standard())

    assert manager.restore(4)["w"].tolist() == [0, 1, 2]
    assert manager.restore(None)["n"] == 1


def test_a_restart_restores_without_arguments_what_was_saved_with_any(root: Path) -> None:
    with ocp.CheckpointManager(root) as manager:
        manager.save(0, args=ocp.args.Composite(s=standard(), j=ocp.args.JsonSave({"a": [1]})))
    with ocp.CheckpointManager(root) as manager:
        found = manager.restore(0)

        assert (list(found), found.j) == (["j", "s"], {"a": [1]})
        assert list(manager.restore(0, args=ocp.args.Composite(j=None))) == ["j"]


def test_restore_of_a_step_that_is_not_there_is_file_not_found(manager: ocp.CheckpointManager, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No steps found in"):
        manager.restore(None)
    with pytest.raises(FileNotFoundError, match="Checkpoint at .*7 not found"):
        manager.restore(7)
    with pytest.raises(FileNotFoundError, match="No steps found in"):
        manager.restore(None, directory=root / "nowhere")


def test_an_item_that_is_not_there_is_a_key_error_with_those_that_are(manager: ocp.CheckpointManager) -> None:
    manager.save(0, args=ocp.args.Composite(a=standard()))

    with pytest.raises(KeyError, match='Item "b" was not found in the checkpoint'):
        manager.restore(0, args=ocp.args.Composite(b=ocp.args.StandardRestore()))


def test_restore_from_another_directory(root: Path) -> None:
    with ocp.CheckpointManager(root / "a") as first, ocp.CheckpointManager(root / "b") as second:
        first.save(3, args=standard({"w": np.ones(1)}))
        first.save(8, args=standard({"w": np.zeros(1)}))
        first.wait_until_finished()

        assert second.restore(3, directory=root / "a")["w"] == 1
        assert second.restore(None, directory=root / "a")["w"] == 0


def test_delete_takes_a_step_away_which_can_be_saved_again(root: Path, manager: ocp.CheckpointManager) -> None:
    manager.save(1, args=standard())
    manager.delete(1)

    assert manager.all_steps() == []
    assert not (root / "1").exists()
    assert manager.save(1, args=standard())
    with pytest.raises(FileNotFoundError, match="non-existent step: 9"):
        manager.delete(9)


def test_a_step_that_only_others_know_is_replaced(root: Path, manager: ocp.CheckpointManager) -> None:
    with ocp.CheckpointManager(root) as other:
        other.save(1, args=standard({"w": np.zeros(1)}))
        other.wait_until_finished()
        manager.save(1, args=standard({"w": np.ones(1)}))
        manager.wait_until_finished()

    assert ocp.PyTreeCheckpointer().restore(root / "1" / "default")["w"] == 1


# --- what is told


def test_metadata_of_a_step(manager: ocp.CheckpointManager) -> None:
    manager.save(0, args=standard(), metrics={"loss": 0.5}, custom_metadata={"lr": 0.1})
    manager.wait_until_finished()

    told = manager.metadata(0)
    assert isinstance(told, ocp.StepMetadata)
    assert (told.metrics, told.custom_metadata) == ({"loss": 0.5}, {"lr": 0.1})
    assert told.init_timestamp_nsecs is not None
    assert told.init_timestamp_nsecs <= told.commit_timestamp_nsecs
    assert list(told.item_handlers) == ["default"]
    assert told.item_metadata["w"].shape == manager.item_metadata(0).tree["w"].shape == (3,)
    with pytest.raises(ValueError, match="must be provided"):
        manager.item_metadata(None)
    with pytest.raises(FileNotFoundError):
        manager.metadata(5)


def test_custom_metadata_can_be_found_with_the_native_names(root: Path, manager: ocp.CheckpointManager) -> None:
    manager.save(0, args=standard(), custom_metadata={"lr": 0.1})
    manager.wait_until_finished()

    assert [checkpoint.step for checkpoint in mp.open(root).find(lr=0.1)] == [0]
    assert mp.open(root)[0].load()["default"]["n"] == 1


def test_root_metadata_is_stored_once(root: Path) -> None:
    with ocp.CheckpointManager(root, metadata={"version": 1}) as manager:
        assert manager.metadata() == ocp.RootMetadata(custom_metadata={"version": 1})
    with ocp.CheckpointManager(root, metadata={"version": 2}) as manager:
        assert manager.metadata().custom_metadata == {"version": 1}
    with ocp.CheckpointManager(root / "new", metadata={"q": 1}, options=Options(read_only=True)) as manager:
        assert manager.metadata().custom_metadata == {"q": 1}
    assert not (root / "new").exists()


def test_metrics_are_none_where_there_are_none_and_may_be_anything_that_json_holds(root: Path) -> None:
    with ocp.CheckpointManager(root, options=Options(best_fn=lambda metrics: metrics)) as manager:
        manager.save(0, args=standard(), metrics=0.5)
        manager.save(1, args=standard())
        manager.wait_until_finished()
        assert (manager.metrics(0), manager.metrics(1), manager.metrics(2)) == (0.5, None, None)
    with ocp.CheckpointManager(root) as manager:
        assert (manager.metrics(0), manager.best_step()) == (0.5, 1)


def test_the_logger_is_told_of_each_save_and_restore(root: Path) -> None:
    entries: list[dict[str, Any]] = []

    class Logger:
        def log_entry(self, msg: Any) -> None:
            entries.append(msg)

    logger = ocp.logging.CompositeLogger(Logger(), ocp.logging.StandardLogger())
    with ocp.CheckpointManager(root, logger=logger) as manager:
        manager.save(1, args=standard())
        manager.restore(1)

    assert [(entry["event_type"], entry["step"]) for entry in entries] == [("save", 1), ("restore", 1)]
    assert entries[0]["checkpoint_manager_blocking_duration_secs"] >= 0


# --- ends


def test_close_waits_and_may_be_called_twice(root: Path) -> None:
    manager = ocp.CheckpointManager(root)
    manager.save(1, args=standard())
    manager.close()
    manager.close()

    assert list(mp.open(root)) == [1]


def test_the_directory_keeps_the_kind_of_path_that_was_given(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    with ocp.CheckpointManager("root") as manager:
        assert manager.directory == root
        monkeypatch.chdir("/")
        manager.save(0, args=standard())
    assert os.listdir(root / "0")
    with pytest.raises(NotImplementedError, match="local directories only"):
        ocp.CheckpointManager("gs://bucket/run")


def test_a_directory_that_was_erased_while_the_manager_was_not_closed_is_a_fresh_one(root: Path) -> None:
    manager = ocp.CheckpointManager(root)
    manager.save(1, args=standard())
    manager.wait_until_finished()
    ocp.test_utils.erase_and_create_empty(root)

    with ocp.CheckpointManager(root) as again:
        assert again.all_steps() == []
        again.save(0, args=standard())
        again.save(1, args=standard())
        again.wait_until_finished()
        assert sorted(mp.open(root)) == [0, 1]
    manager.close()


def test_a_save_that_orbax_never_finished_is_no_checkpoint(root: Path) -> None:
    (root / "3").mkdir(parents=True)
    (root / "3" / "_CHECKPOINT_METADATA").write_text("{}")

    for options in (Options(), Options(read_only=True), Options(create=False)):
        with ocp.CheckpointManager(root, options=options) as manager:
            assert manager.all_steps() == []
    with pytest.raises(ValueError, match="incomplete checkpoint"):
        ocp.StandardCheckpointer().restore(root / "3")
    with ocp.CheckpointManager(root) as manager:
        manager.save(3, args=ocp.args.StandardSave(STATE))
        assert manager.restore(3)["n"] == 1


# --- the deprecated interface


def test_checkpointers_of_the_constructor_take_items(root: Path) -> None:
    manager = ocp.CheckpointManager(root / "one", ocp.PyTreeCheckpointer(), Options(max_to_keep=1))
    manager.save(0, STATE)
    manager.save(1, STATE, save_kwargs={"save_args": {"w": ocp.SaveArgs(dtype=np.float32), "n": ocp.SaveArgs()}})
    args = ocp.checkpoint_utils.construct_restore_args(STATE)
    assert manager.restore(1, items=STATE, restore_kwargs={"restore_args": args})["w"].dtype == np.float64
    assert manager.restore(1)["w"].dtype == np.float32
    manager.close()

    json = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    with ocp.CheckpointManager(root / "two", {"s": ocp.PyTreeCheckpointer(), "j": json}) as manager:
        manager.save(0, {"s": STATE, "j": {"k": 1}})
        assert manager.restore(0, {"s": STATE})["s"]["n"] == 1
        assert manager.restore(0)["j"] == {"k": 1}
        with pytest.raises(ValueError, match='Unknown key "z"'):
            manager.save(1, {"z": STATE})


def test_item_names_and_handlers_close_the_list_of_items(root: Path) -> None:
    with ocp.CheckpointManager(root, item_names=("a", "b")) as manager:
        manager.save(0, args=ocp.args.Composite(a=standard(), b=ocp.args.JsonSave({"x": 1})))
        with pytest.raises(ValueError, match=r'Item "z".*does not match with any registered handler'):
            manager.save(1, args=ocp.args.Composite(z=standard()))
        assert manager.restore(0).b == {"x": 1}
    handlers = {"a": ocp.StandardCheckpointHandler(), "b": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(root, item_handlers=handlers) as manager:
        assert manager.restore(0).a["n"] == 1
    with ocp.CheckpointManager(root / "d", item_handlers=ocp.StandardCheckpointHandler()) as manager:
        manager.save(0, args=standard())
        assert manager.restore(0)["n"] == 1


def test_a_handler_registry_excludes_the_deprecated_arguments(root: Path) -> None:
    registry = ocp.DefaultCheckpointHandlerRegistry()
    registry.add("a", ocp.args.StandardSave)
    with pytest.raises(ValueError, match="already"):
        registry.add("a", ocp.args.StandardSave)
    for extra in ({"item_names": ("a",)}, {"checkpointers": ocp.PyTreeCheckpointer()}):
        with pytest.raises(ValueError, match="mutually exclusive"):
            ocp.CheckpointManager(root, handler_registry=registry, **extra)
    with ocp.CheckpointManager(root, handler_registry=registry) as manager:
        manager.save(0, args=ocp.args.Composite(a=standard(), more=ocp.args.JsonSave({"x": 1})))
        with pytest.raises(ValueError, match="does not match"):
            manager.save(1, args=ocp.args.Composite(a=ocp.args.JsonSave({})))


# --- abstract


def test_a_manager_is_what_has_all_the_members() -> None:
    names = ("all_steps", "save", "restore")
    part = type("Part", (), dict.fromkeys(names, len))
    members = [name for name in vars(ocp.AbstractCheckpointManager) if not name.startswith("_")]
    whole = type("Whole", (), dict.fromkeys(members, len))

    assert issubclass(ocp.CheckpointManager, ocp.AbstractCheckpointManager)
    assert issubclass(whole, ocp.AbstractCheckpointManager)
    assert isinstance(whole(), ocp.AbstractCheckpointManager)
    assert not issubclass(part, ocp.AbstractCheckpointManager)
    with pytest.raises(TypeError):
        ocp.AbstractCheckpointManager()


def test_jax_arrays_may_be_donated_as_soon_as_save_returns(manager: ocp.CheckpointManager) -> None:
    array = jnp.arange(8.0)
    manager.save(0, args=standard({"w": array}))
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)

    assert manager.restore(0)["w"].tolist() == list(range(8))
