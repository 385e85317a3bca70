# SPDX-License-Identifier: Apache-2.0
"""`training.Checkpointer` of the v1 door: what a training loop that was written for Orbax relies on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
import milepost.compat.orbax_v1 as ocp

Checkpointer = ocp.training.Checkpointer
StepNotFoundError = ocp.training.errors.StepNotFoundError
StepAlreadyExistsError = ocp.training.errors.StepAlreadyExistsError
every = ocp.training.save_decision_policies.FixedIntervalPolicy
latest_n = ocp.training.preservation_policies.LatestN


def state(step: int = 0) -> dict[str, Any]:
    return {"w": np.arange(3.0) + step, "j": jnp.full(2, step), "note": "n"}


def steps(ckptr: Any) -> list[int]:
    return [each.step for each in ckptr.checkpoints]


# --- saving


def test_save_says_whether_it_saved_and_the_policy_decides(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(2)) as ckptr:
        assert [ckptr.save(step, state(step)) for step in range(5)] == [True, False, True, False, True]
        assert ckptr.save_async(5, state()) is None
        assert ckptr.save(5, state(), force=True) is True
        assert steps(ckptr) == [0, 2, 4, 5]


def test_nothing_at_or_below_the_latest_is_due(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        ckptr.save(3, state())
        assert [ckptr.should_save(step) for step in (2, 3, 4)] == [False, False, True]
        assert ckptr.save(2, state()) is False


def test_by_default_every_save_is_made_while_none_is_in_flight_and_all_are_kept(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for step in (0, 1, 2):
            assert ckptr.save(step, state(step))
        assert steps(ckptr) == [0, 1, 2]


def test_a_step_that_is_there_is_an_error_even_with_force(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save(1, state())
        for force in (False, True):
            with pytest.raises(StepAlreadyExistsError, match="Step 1 already exists.") as caught:
                ckptr.save(1, state(), force=force)
            assert isinstance(caught.value, FileExistsError) and caught.value.step == 1


def test_overwrite_replaces_the_latest(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save(1, state(1))
        assert ckptr.save(1, state(9), overwrite=True)
        assert ckptr.load(1)["w"].tolist() == [9, 10, 11] and steps(ckptr) == [1]
        assert ocp.load(root / "1")["w"][0] == 9  # the path of the step still leads there


def test_a_step_is_an_integer_of_0_or_above(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for wrong in (7.0, "7", True, None):
            with pytest.raises(TypeError, match="a step is an integer"):
                ckptr.save(wrong, state())
        with pytest.raises(ValueError, match="0 or above"):
            ckptr.save(-1, state(), force=True)
        assert ckptr.save(np.int64(7), state()) and ckptr.load(np.int64(7))["note"] == "n"
    assert not (root / "7.0").exists()


def test_nothing_and_none_cannot_be_saved(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for wrong in ({}, None, []):
            with pytest.raises(ValueError, match="nothing to save|no checkpointable"):
                ckptr.save(0, wrong)
        with pytest.raises(ValueError, match="expected one or more"):
            ckptr.save_checkpointables(0, {})
        for name in ("metrics", "", "AUTO", "_CHECKPOINT_DELETION"):
            with pytest.raises(ValueError, match="cannot be the name"):
                ckptr.save_checkpointables(0, {name: state()})
        assert ckptr.latest is None


def test_what_cannot_be_stored_is_refused_with_its_path(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for kind in (ValueError, mp.UnsupportedLeafError):
            with pytest.raises(kind, match="state/a/fn"):
                ckptr.save(0, {"a": {"fn": object()}})
        assert ckptr.save(0, state())


def test_a_save_in_the_background_counts_at_once_and_tells_when_it_is_over(root: Path) -> None:
    told: list[bool] = []
    with Checkpointer(root) as ckptr:
        response = ckptr.save_async(5, state())
        assert ckptr.latest.step == 5
        response.on_complete(told.append)
        assert response.result() is True and told == [True]
        response.on_complete(told.append)
        assert told == [True, True] and not ckptr.is_saving_in_progress()


def test_the_caller_may_change_its_arrays_when_save_async_returns(root: Path) -> None:
    values = np.zeros(1 << 16)
    with Checkpointer(root) as ckptr:
        ckptr.save_async(0, {"w": values})
        values += 1
        assert ckptr.load(0)["w"].max() == 0


def test_a_save_waits_for_the_one_before(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        first = ckptr.save_async(0, {"w": np.ones(1 << 18)})
        second = ckptr.save_async(1, {"w": np.ones(1 << 18)})
        assert first.done()
        assert second.result() and steps(mp_view(root)) == [0, 1]


class mp_view:  # noqa: N801 reads like a Checkpointer
    """The steps as the native API sees them."""

    def __init__(self, root: Path) -> None:
        catalog = mp.open(root)
        self.checkpoints = [catalog[step] for step in catalog]


def test_close_finishes_what_is_in_flight_and_a_later_save_works(root: Path) -> None:
    ckptr = Checkpointer(root)
    ckptr.save_async(0, state())
    ckptr.close()
    ckptr.close()
    assert steps(mp_view(root)) == [0]
    assert ckptr.save(1, state()) is True
    ckptr.close()


def test_handlers_run_both_their_parts_before_save_returns_even_under_a_running_loop(root: Path) -> None:
    import asyncio

    class Counter:
        def __init__(self, value: int) -> None:
            self.value = value

        async def save(self, directory: Any) -> Any:
            value = self.value

            async def write() -> None:
                folder = await (directory / "deep").await_creation()
                (folder / "value.txt").write_text(str(value))

            return write()

        async def load(self, directory: Path) -> Any:
            async def read() -> None:
                self.value = int((directory / "deep" / "value.txt").read_text())

            return read()

    async def main() -> int:
        with Checkpointer(root) as ckptr:
            ckptr.save_checkpointables(0, {"state": state(), "counter": Counter(7)})
            fresh = Counter(0)
            assert ckptr.load_checkpointables(0, {"counter": fresh})["counter"] is fresh
            with pytest.raises(ValueError, match="an instance is needed"):
                ckptr.load_checkpointables(0)
            assert ckptr.checkpointables_metadata(0).metadata["counter"] is None
            assert "counter" not in ckptr.metadata(0).metadata
            return fresh.value

    assert asyncio.run(main()) == 7


# --- loading


def test_load_gives_the_latest_a_step_or_what_checkpoints_returned(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for step in (1, 2):
            ckptr.save(step, state(step))
        assert ckptr.load()["w"][0] == 2
        assert ckptr.load(1)["w"][0] == 1
        assert ckptr.load(ckptr.checkpoints[0])["w"][0] == 1


def test_an_unknown_step_and_no_step_at_all_are_errors_of_their_own(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for ask in (ckptr.load, ckptr.metadata, ckptr.load_async, ckptr.checkpointables_metadata):
            with pytest.raises(StepNotFoundError, match="Specified `step=None`, but no checkpoints were found"):
                ask()
        ckptr.save(1, state())
        with pytest.raises(StepNotFoundError, match="No checkpoint found at step 77.") as caught:
            ckptr.load(77)
        assert isinstance(caught.value, FileNotFoundError) and caught.value.step == 77


def test_a_load_waits_for_its_step_in_flight(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save_async(3, {"w": np.ones(1 << 18)})
        assert ckptr.load(3)["w"].sum() == 1 << 18


def test_a_load_in_the_background_gives_the_same(root: Path) -> None:
    told: list[Any] = []
    with Checkpointer(root, preservation_policy=latest_n(1)) as ckptr:
        ckptr.save_checkpointables(1, {"state": state(1), "more": {"x": 4}})
        one = ckptr.load_async(1, {"w": np.zeros(3), "j": ..., "note": ...})
        one.on_complete(told.append)
        everything = ckptr.load_checkpointables_async()
        ckptr.save(2, state(2))  # deletes step 1, but not under its readers

        assert one.result()["w"].tolist() == [1, 2, 3] and one.result()["j"] is ...
        assert told == [one.result()]
        assert everything.result(timeout=60)["more"] == {"x": 4}
        with pytest.raises(KeyError, match="has no 'zz'"):
            ckptr.load_checkpointables_async(2, {"zz": None}).result()


def test_only_the_names_that_are_asked_for_are_loaded(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save_checkpointables(0, {"model": state(), "optimizer": {"mu": np.ones(2)}}, metrics={"loss": 1})
        assert set(ckptr.load_checkpointables(0)) == {"model", "optimizer"}
        assert set(ckptr.load_checkpointables(0, {"optimizer": None})) == {"optimizer"}
        assert ckptr.load(0, checkpointable_name="optimizer")["mu"].tolist() == [1, 1]
        with pytest.raises(KeyError, match="'state'.*'model', 'optimizer'"):
            ckptr.load(0)


# --- what is told


def test_metadata_tells_everything_but_the_data(root: Path) -> None:
    with Checkpointer(root, custom_metadata={"run": 1}) as ckptr:
        ckptr.save(4, state(), metrics={"loss": 0.5, "nested": {"a": [1]}}, custom_metadata={"by": "me"})
        told = ckptr.metadata()
        assert (told.step, told.metrics, told.custom_metadata) == (4, {"loss": 0.5, "nested": {"a": [1]}}, {"by": "me"})
        assert told.path == root / "4" and told.init_timestamp <= told.commit_timestamp == told.time
        assert told.metadata["w"].shape == (3,) and told.metadata["w"].dtype == np.float64
        assert told.metadata["j"].dtype == jnp.int32 and told.metadata["note"] == "string"
        assert set(ckptr.checkpointables_metadata(4).metadata) == {"state"}
        assert ckptr.root_metadata().custom_metadata == {"run": 1} and ckptr.root_metadata().directory == root
        cheap = ckptr.checkpoints[0]
        assert (cheap.metadata, cheap.custom_metadata, cheap.metrics) == (None, None, told.metrics)
        assert "'step': '4'" in repr(cheap)


def test_root_metadata_stays_what_it_was_when_the_root_was_made(root: Path) -> None:
    with Checkpointer(root, custom_metadata={"width": 1}) as ckptr:
        ckptr.save(0, state())
    with Checkpointer(root, custom_metadata={"width": 2}) as ckptr:
        assert ckptr.root_metadata().custom_metadata == {"width": 1}
        ckptr.save(1, state())
    with Checkpointer(root) as ckptr:
        assert ckptr.root_metadata().custom_metadata == {"width": 1}


def test_custom_metadata_may_be_a_list_and_have_any_names(root: Path) -> None:
    with Checkpointer(root, custom_metadata=[1, 2]) as ckptr:
        for step, custom in enumerate(([3], {"orbax": 1}, {"a": {"b": None}})):
            ckptr.save(step, state(), custom_metadata=custom, metrics=[0.5] if step == 0 else None)
            assert ckptr.metadata(step).custom_metadata == custom
        assert ckptr.root_metadata().custom_metadata == [1, 2]
    reopened = Checkpointer(root)
    assert reopened.root_metadata().custom_metadata == [1, 2]
    assert [each.metrics for each in reopened.checkpoints] == [[0.5], None, None]


def test_native_readers_see_metrics_names_and_reasons(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(5)) as ckptr:
        ckptr.save(5, state(), metrics={"loss": 1.0}, custom_metadata={"by": "me"})
        ckptr.save(7, state(), force=True)
    runs = mp.open(root)
    assert [found.step for found in runs.find(by="me")] == [5] and runs.best("loss").step == 5
    assert [runs[step].reason for step in runs] == ["FixedIntervalPolicy(interval=5)", "forced"]
    runs.annotate(7, metrics={"loss": 0.5})
    assert [each.metrics for each in Checkpointer(root).checkpoints] == [{"loss": 1.0}, {"loss": 0.5}]


def test_a_checkpoint_that_the_native_api_saved_is_loaded(root: Path) -> None:
    mp.save(root, {"state": {"a": (np.ones(2), {3: 4})}}, step=6)
    with Checkpointer(root) as ckptr:
        assert ckptr.load()["a"][1] == {3: 4}
        like = {"a": (np.zeros(2), {3: 0})}
        assert ckptr.load(6, like)["a"][0].tolist() == [1, 1]
        assert ckptr.save(7, state())


# --- names


def test_steps_are_named_as_the_format_says_and_a_root_keeps_its_names(root: Path) -> None:
    names = ocp.path.step.standard_name_format(step_prefix="ckpt", step_format_fixed_length=4)
    with Checkpointer(root, step_name_format=names) as ckptr:
        ckptr.save(3, state())
        assert ckptr.latest.path.name == "ckpt_0003" and (root / "ckpt_0003").is_dir()
    assert [found.step for found in names.find_all(root)] == [3] and names.find_step(root, 3).path.name == "ckpt_0003"
    with pytest.raises(ValueError, match="no step 9 that is named ckpt_0009"):
        names.find_step(root, 9)
    with Checkpointer(root) as ckptr:
        ckptr.save(4, state())
        assert [each.path.name for each in ckptr.checkpoints] == ["ckpt_0003", "ckpt_0004"]
    assert list(names.find_all(root / "nothing")) == []


def test_names_of_the_users_own_are_a_prefix_and_digits(root: Path) -> None:
    class Epochs:
        def __init__(self, text: str) -> None:
            self.text = text

        def build_name(self, step: int) -> str:
            return self.text.format(step)

    with Checkpointer(root, step_name_format=Epochs("epoch-{:03d}")) as ckptr:
        ckptr.save(12, state())
    assert (root / "epoch-012").is_dir()
    with pytest.raises(ValueError, match="cannot be"):
        Checkpointer(root, step_name_format=Epochs("{}-epoch"))
    with pytest.raises(ValueError, match="read_name_formats"):
        ocp.path.step.composite_name_format(ocp.path.step.standard_name_format(), [])


# --- deleting and cancelling


def test_delete_removes_a_step_and_says_whether_it_was_there(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for step in (1, 2):
            ckptr.save(step, state(step))
        assert ckptr.delete(2) is True
        assert steps(ckptr) == [1] and not (root / "2").exists() and ckptr.latest.step == 1
        with pytest.raises(StepNotFoundError, match="step 2"):
            ckptr.delete(2)
        assert ckptr.delete(2, missing_ok=True) is False
        with pytest.raises(TypeError):
            ckptr.delete("1")
        assert ckptr.save(2, state(5)) and ckptr.load()["w"][0] == 5
        gone = ckptr.delete_async(ckptr.checkpoints[0])
        assert steps(ckptr) == [2]
        assert gone.result() is True


def test_delete_of_one_name_keeps_the_rest_with_all_that_is_known_of_it(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        ckptr.save_checkpointables(
            1, {"model": state(1), "extra": {"x": 1}}, metrics={"a": 1}, custom_metadata={"b": 2}
        )
        before = {name: type(leaf) for name, leaf in ckptr.load(1, checkpointable_name="model").items()}
        assert ckptr.delete(1, checkpointable_name="extra") is True
        assert set(ckptr.load_checkpointables(1)) == {"model"}
        assert {name: type(leaf) for name, leaf in ckptr.load(1, checkpointable_name="model").items()} == before
        assert (ckptr.metadata(1).metrics, ckptr.metadata(1).custom_metadata) == ({"a": 1}, {"b": 2})
        with pytest.raises(FileNotFoundError):
            ckptr.delete(1, checkpointable_name="extra")
        assert ckptr.delete(1, checkpointable_name="extra", missing_ok=True) is False
        with pytest.raises(ValueError, match="Delete the whole checkpoint"):
            ckptr.delete(1, checkpointable_name="model")


def test_a_cancelled_save_leaves_nothing_and_says_false(root: Path) -> None:
    with Checkpointer(root, save_decision_policy=every(1), preservation_policy=latest_n(1)) as ckptr:
        ckptr.save(1, state(1))
        response = ckptr.save_async(2, {"w": np.ones(1 << 22)})  # 32 MiB, so that it is not over before the next line
        ckptr.cancel()
        assert response.result() is False
        assert steps(ckptr) == [1] and not (root / "2").exists() and not ckptr.is_saving_in_progress()
        ckptr.save_async(2, state())
        ckptr.cancel(2)
        assert steps(ckptr) == [1]
        assert ckptr.save(3, state(3)) and steps(ckptr) == [3]


# --- what happens beside it


def test_what_another_handle_saves_and_deletes_shows_after_reload(root: Path) -> None:
    writer, reader = Checkpointer(root), Checkpointer(root)
    assert reader.latest is None
    writer.save(1, state(1))
    writer.save(2, state(2))
    assert reader.latest is None
    reader.reload()
    assert steps(reader) == [1, 2] and reader.load()["w"][0] == 2
    writer.delete(1)
    with pytest.raises(StepNotFoundError, match="step 1"):
        reader.load(1)
    assert steps(reader) == [2]
    with pytest.raises(StepAlreadyExistsError):  # another handle saved it, and this one had not looked
        stale = Checkpointer(root)
        writer.save(3, state(3))
        stale.save(3, state(3), force=True)
    writer.close()
    stale.close()


def test_a_reader_makes_nothing_in_the_folder(root: Path) -> None:
    reader = Checkpointer(root)
    reader.reload()
    assert reader.latest is None and list(root.iterdir()) == []


def test_the_folder_may_hold_other_things(root: Path) -> None:
    (root / "logs").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    with Checkpointer(root, save_decision_policy=every(1), preservation_policy=latest_n(1)) as ckptr:
        for step in range(3):
            ckptr.save(step, state())
    assert (root / "logs").exists() and (root / "config.json").exists()


def test_a_save_that_orbax_never_finished_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(ocp.errors.InvalidLayoutError, match="never finished"):
        ocp.load(tmp_path / "7")
    with Checkpointer(tmp_path) as ckptr:
        assert ckptr.checkpoints == []
        ckptr.save(7, state())
        assert [each.step for each in ckptr.checkpoints] == [7]


def test_a_logger_is_told_of_saves_and_loads(root: Path) -> None:
    class Log:
        def __init__(self) -> None:
            self.entries: list[dict[str, Any]] = []

        def log_entry(self, entry: dict[str, Any]) -> None:
            self.entries.append(entry)

    log = Log()
    with Checkpointer(root, logger=log) as ckptr:
        ckptr.save(1, state())
        ckptr.load()
    assert [(entry["event_type"], entry["step"]) for entry in log.entries] == [("save", 1), ("restore", 1)]


def test_older_names_still_work_and_say_so(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        for name, arguments in (("save_pytree", (0, state())), ("save_pytree_async", (1, state())), ("load_pytree", ()),
                                ("load_pytree_async", ()), ("pytree_metadata", ())):  # fmt: skip
            with pytest.warns(DeprecationWarning, match=name):
                getattr(ckptr, name)(*arguments)


def test_options_of_the_constructor_that_have_no_effect_are_accepted(root: Path) -> None:
    with Checkpointer(root, cleanup_tmp_directories=True, lightweight_initialize=True) as ckptr:
        ckptr.save(0, state(), metrics={"a": 1})
    again = Checkpointer(root, lightweight_initialize=True)
    assert again.latest.metrics == {"a": 1} and again.latest.time.year > 2000 and again.load()["note"] == "n"


def test_what_a_failing_callback_of_the_user_does_is_told_by_the_result(root: Path) -> None:
    context = ocp.Context()
    called: list[int] = []
    context.asynchronous.post_finalization_callback = lambda: called.append(len(list(mp.open(root))))
    with Checkpointer(root, context=context) as ckptr:
        ckptr.save(0, state())
    assert called == [1]  # the step was there already


def test_other_threads_may_ask_while_one_saves(root: Path) -> None:
    found: list[list[int]] = []
    with Checkpointer(root, save_decision_policy=every(1), preservation_policy=latest_n(2)) as ckptr:
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                found.append(steps(ckptr))

        thread = threading.Thread(target=watch)
        thread.start()
        for step in range(6):
            ckptr.save(step, state(step))
        over.set()
        thread.join()
    assert all(len(each) <= 3 and each == sorted(each) for each in found)


def test_arrays_may_be_donated_when_save_async_returns(root: Path) -> None:
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1 << 14)
    with Checkpointer(root, save_decision_policy=every(1)) as ckptr:
        for step in range(3):
            ckptr.save_async(step, {"x": x})
            x = update(x)
        assert [float(ckptr.load(step)["x"][5]) for step in range(3)] == [0, 1, 2]


def test_a_timeout_of_a_result_leaves_the_save_going_on(root: Path) -> None:
    with Checkpointer(root) as ckptr:
        response = ckptr.save_async(0, {"w": np.ones(1 << 22)})
        with pytest.raises(TimeoutError):
            response.result(timeout=0)
        assert response.result() is True
