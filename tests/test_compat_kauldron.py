# SPDX-License-Identifier: Apache-2.0
"""The front door of Kauldron: its names, what its documents say, and what is better."""

from __future__ import annotations

import datetime as dt
import inspect
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import milepost as mp
from milepost.compat import kauldron as ckpts
from milepost.interop import orbax


@flax.struct.dataclass
class TrainState(ckpts.items.StandardCheckpointItem):
    step: Any
    params: Any
    collections: Any
    opt_state: Any = None


class _State(NamedTuple):
    train_state: Any
    timer: Any
    ds_iter: Any


class CheckpointState(_State, ckpts.items.TopLevelCheckpointItem):
    DEFAULT_ITEM = "train_state"


class Chrono(ckpts.items.CheckpointItem):
    """An item with hooks of its own: seconds, as a number."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __kd_ocp_handlers__(self) -> Any:
        return None

    def __kd_ocp_save_args__(self) -> Any:
        return {"seconds": self.seconds}

    def __kd_ocp_restore_args__(self) -> Any:
        return None

    def __kd_ocp_restore_post__(self, value: Any) -> Chrono:
        return Chrono(value["seconds"])


class CheckpointArgs:
    """Stands for the arguments of Orbax, in which Kauldron's own items wrap what they hold."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


class Wrapped:
    """An item as Kauldron has them: `item` is stored, `value` is not, and anything else belongs to a handler."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def __kd_ocp_save_args__(self) -> Any:
        return CheckpointArgs(**{self.name: self if self.name == "value" else self.value})

    __kd_ocp_restore_args__ = __kd_ocp_save_args__

    def __kd_ocp_restore_post__(self, value: Any) -> Any:
        return Wrapped(self.name, value)


class Batches:
    def __init__(self) -> None:
        self.at = 0

    def get_state(self) -> dict[str, int]:
        return {"at": self.at}

    def set_state(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def state(value: float = 0.0, step: int = 0) -> TrainState:
    value = float(value)
    params = {"encoder": {"w": jnp.full((4, 2), value)}, "head": {"kernel": jnp.full((2, 3), value)}}
    return TrainState(jnp.int32(step), params, {"mean": jnp.full(2, value)}, {"mu": jnp.full(3, value)})


def checkpointer(workdir: Path, **settings: Any) -> ckpts.Checkpointer:
    return ckpts.Checkpointer(**({"workdir": workdir, "save_interval_steps": 10} | settings))


def saved(workdir: Path, *steps: int, **settings: Any) -> ckpts.Checkpointer:
    with checkpointer(workdir, max_to_keep=None, **settings) as one:
        for step in steps:
            one.save(state(step, step), step=step, force=True)
    return one


def same(left: Any, right: Any) -> bool:
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(bool((a == b).all()) for a, b in leaves)


# Names.


def test_names_and_signatures_are_those_of_the_documents() -> None:
    fields = dict(inspect.signature(ckpts.Checkpointer).parameters)
    fields.pop("_fake_refs", None)  # comes with the base class that Kauldron has, where it is installed
    assert {name: field.default for name, field in fields.items() if name not in ("workdir", "save_interval_steps")} | {
        "multiprocessing_options": None
    } == {
        "max_to_keep": 3, "keep_time_interval": None, "keep_period": None, "save_on_steps": None,
        "best_metric_path": None, "preservation_policy": None, "best_mode": "max", "multiprocessing_options": None,
        "never_save_step_zero": False, "lightweight_initialize": False, "cleanup_orphaned_snapshots": False,
        "fast": True, "create": True,
    }  # fmt: skip
    assert fields["save_interval_steps"].default is inspect.Parameter.empty
    assert all(field.kind is field.KEYWORD_ONLY for field in fields.values())
    expected = {
        "restore": "self state step=-1 noop_if_missing=False donate=True",
        "should_save": "self step",
        "save": "self state step force=False metrics=None",
        "maybe_save": "self state step force=False",
        "delete": "self step",
        "reload": "self",
        "item_metadata": "self step=-1",
        "iter_new_checkpoints": "self min_interval_secs=0 seconds_to_sleep=1 timeout=None timeout_fn=None",
        "wait_until_finished": "self",
        "close": "self",
    }
    for name, text in expected.items():
        parameters = inspect.signature(getattr(ckpts.Checkpointer, name)).parameters.values()
        assert " ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters) == text
    loader = inspect.signature(ckpts.PartialKauldronLoader).parameters
    assert list(loader) == [
        "workdir", "new_to_old", "ignore_model_keys", "ignore_restored_keys", "step", "lightweight_initialize",
    ]  # fmt: skip
    assert ckpts.PartialKauldronLoader(workdir="w").new_to_old == {"params": "params", "collections": "collections"}
    assert list(inspect.signature(ckpts.SimpleCheckpointLoader).parameters) == ["workdir", "step", "load_opt_state"]


def test_a_checkpointer_is_a_value_until_it_is_used(tmp_path: Path) -> None:
    one = saved(tmp_path, 0)
    assert one == checkpointer(tmp_path, max_to_keep=None)

    with pytest.raises(TypeError):
        ckpts.Checkpointer(save_interval_steps=1).latest_step  # noqa: B018 `cfg.workdir` was not put in


@pytest.mark.skipif(find_spec("kauldron") is not None, reason="Kauldron is installed, and the door imports it")
def test_16_it_works_without_jax_and_kauldron(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from milepost.compat import kauldron as k\n"
        f"c = k.Checkpointer(workdir={str(tmp_path)!r}, save_interval_steps=1); c.save({{'a': np.ones(2)}}, step=0)\n"
        "print(c.restore({'a': np.zeros(2)})['a'].tolist(), 'jax' in sys.modules); c.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[1.0, 1.0] False\n"


# Saving and restoring.


def test_a_state_of_items_comes_back_and_its_default_item_alone(tmp_path: Path) -> None:
    batches, again = Batches(), Batches()
    batches.at = 7
    with checkpointer(tmp_path) as one:
        assert one.save(CheckpointState(state(3, 5), Chrono(1.5), batches), step=5) is True
        restored = one.restore(CheckpointState(state(), Chrono(0), again))

        assert type(restored) is CheckpointState and type(restored.train_state) is TrainState
        assert same(restored.train_state, state(3, 5))
        assert restored.timer.seconds == 1.5
        assert restored.ds_iter is again and again.at == 7
        assert same(one.restore(state()), state(3, 5))
    assert (tmp_path / "checkpoints" / "ckpt_5").is_dir()


def test_the_dtypes_of_the_state_win(tmp_path: Path) -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state())
    restored = saved(tmp_path, 2).restore(half)

    assert restored.params["encoder"]["w"].dtype == jnp.bfloat16 and restored.params["encoder"]["w"][0, 0] == 2


def test_a_state_that_is_not_known_comes_as_nested_dicts(tmp_path: Path) -> None:
    tree = saved(tmp_path, 2).restore(ckpts.items.StandardCheckpointItem())

    assert tree["params"]["encoder"]["w"].tolist() == [[2.0, 2.0]] * 4


def test_14_items_of_kauldron_itself_are_taken(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one:
        one.save(CheckpointState(state(), Wrapped("item", {"hours": 2.0}), Wrapped("value", object())), step=0)
        live = Wrapped("value", object())
        back = one.restore(CheckpointState(state(), Wrapped("item", {"hours": 0.0}), live))

        assert back.timer.value == {"hours": 2.0} and back.ds_iter is live


def test_13_data_that_a_handler_of_orbax_alone_stores_is_refused(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one, pytest.raises(TypeError, match="handler of Orbax alone"):
        one.save(CheckpointState(state(), Wrapped("it", 1), None), step=1, force=True)
    assert one.all_steps == []


def test_what_was_imported_from_orbax_is_restored(tmp_path: Path) -> None:
    """It has None where an optimizer's state is empty, and of Grain's iterators the file that they wrote."""
    position = np.frombuffer(b'{"at": 7}', np.uint8)
    old = {"params": {"w": jnp.ones(2)}, "opt_state": [{"mu": jnp.full(2, 3.0)}, None]}
    with mp.Checkpointer(tmp_path / "checkpoints", save="first", step_format=mp.StepFormat(prefix="ckpt_")) as saver:
        saver.save(4, {"default": old, "timer": {"seconds": 2.0}, "ds_iter": {"process_0-of-1.json": position}})
    empty = {"params": {"w": jnp.zeros(2)}, "opt_state": ({"mu": jnp.zeros(2)}, optax.EmptyState())}

    with checkpointer(tmp_path) as one:
        back = one.restore(CheckpointState(empty, Chrono(0), Batches()), donate=False)
        assert back.ds_iter.at == 7 and back.timer.seconds == 2
        assert back.train_state["opt_state"][0]["mu"][0] == 3 and back.train_state["opt_state"][1] == optax.EmptyState()
        with pytest.raises(ValueError, match="opt_state"):
            one.restore(CheckpointState({"params": empty["params"]}, Chrono(0), Batches()))


def test_nothing_to_restore_is_an_error_or_the_same_state(tmp_path: Path) -> None:
    one, given = checkpointer(tmp_path), state()

    with pytest.raises(FileNotFoundError):
        one.restore(given)
    assert one.restore(given, noop_if_missing=True) is given
    assert one.latest_step is None and one.all_steps == []
    with pytest.raises(FileNotFoundError):
        saved(tmp_path, 1).restore(given, step=9)


def test_what_is_due(tmp_path: Path) -> None:
    one = checkpointer(tmp_path, save_on_steps=[13])
    assert one.should_save(7)  # nothing is there yet
    assert not checkpointer(tmp_path, never_save_step_zero=True).should_save(0)
    assert one.maybe_save(state(), step=7) is True

    assert [step for step in range(31) if one.should_save(step)] == [10, 13, 20, 30]
    assert one.maybe_save(state(), step=8) is False
    assert one.save(state(), step=8) is False
    assert one.maybe_save(state(), step=8, force=True) is False  # as the original: `force` is for `save`
    assert one.save(state(), step=8, force=True) is True
    one.close()


def test_the_newest_stay_and_what_other_fields_keep(tmp_path: Path) -> None:
    with checkpointer(tmp_path, max_to_keep=2, keep_period=4) as one:
        for step in range(1, 8):
            one.save(state(), step=step, force=True)
    assert one.all_steps == [4, 6, 7]

    with checkpointer(tmp_path / "time", max_to_keep=1, keep_time_interval=dt.timedelta(days=1)) as one:
        for step in range(4):
            one.save(state(), step=step, force=True)
    assert one.all_steps == [0, 3]

    class Even:
        def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
            return [checkpoint.step % 2 == 0 for checkpoint in checkpoints]

    for name, policy in (("orbax", Even()), ("own", mp.OnSteps([0, 2]))):
        with checkpointer(tmp_path / name, max_to_keep=1, preservation_policy=policy) as one:
            for step in range(4):
                one.save(state(), step=step, force=True)
        assert one.all_steps == [0, 2, 3]


def test_another_process_may_write_once_the_first_waited(tmp_path: Path) -> None:
    program = (
        "import numpy as np; from milepost.compat import kauldron as k\n"
        f"with k.Checkpointer(workdir={str(tmp_path)!r}, save_interval_steps=10) as c: c.save({{}}, step=10)"
    )
    one = checkpointer(tmp_path)
    one.save(state(), step=0)
    refused = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    one.wait_until_finished()
    subprocess.run([sys.executable, "-c", program], check=True)

    assert "ConflictError" in refused.stderr
    assert one.all_steps == [0, 10]


def test_create_false_makes_no_folder(tmp_path: Path) -> None:
    one = checkpointer(tmp_path, create=False)

    assert one.latest_step is None
    with pytest.raises(FileNotFoundError):
        one.save(state(), step=0)
    assert list(tmp_path.iterdir()) == []


def test_others_cannot_read_the_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, 1)

    assert (tmp_path / "checkpoints").stat().st_mode & 0o007 == 0


def test_a_group_of_processes_is_refused(tmp_path: Path) -> None:
    options = ckpts.MultiprocessingOptions(active_processes={0, 1})

    with pytest.raises(ValueError, match="one process"):
        checkpointer(tmp_path, multiprocessing_options=options).save(state(), step=0)


def test_delete_and_metadata(tmp_path: Path) -> None:
    with saved(tmp_path, 1, 2) as one:
        found = one.item_metadata()
        assert found["params"]["encoder"]["w"].shape == (4, 2)
        assert found["params"]["encoder"]["w"].dtype == np.float32
        one.save(state(), step=3, force=True)
        one.delete(3)
        one.delete(1)
        assert one.all_steps == [2] and one.latest_step == 2
        with pytest.raises(FileNotFoundError):
            one.delete(1)


def test_the_noop_checkpointer() -> None:
    one, given = ckpts.NoopCheckpointer(), state()

    assert one.restore(given) is given and not one.maybe_save(given, step=0) and not one.should_save(0)
    with pytest.raises(ValueError, match="state"):
        one.restore(None)
    with pytest.raises(ValueError, match="force"):
        one.maybe_save(given, step=0, force=True)
    assert list(one.iter_new_checkpoints()) == []


# Following.


def test_12_a_follower_sees_the_newest_each_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = checkpointer(tmp_path)
    steps = iter([(1, 2), (3,)])

    def nothing_new() -> bool:
        more = next(steps, None)
        for step in more or ():
            writer.save(state(), step=step, force=True)
        writer.wait_until_finished()
        return more is None

    follower = checkpointer(tmp_path, create=False)
    seen = list(follower.iter_new_checkpoints(seconds_to_sleep=0, timeout=0, timeout_fn=nothing_new))

    assert seen == [2, 3]
    writer.close()
    assert not list(tmp_path.rglob("_SNAPSHOTS*"))


def test_the_wait_for_a_newer_step_begins_after_the_shortest_interval(tmp_path: Path) -> None:
    writer = saved(tmp_path, 1)
    found: list[int] = []
    for step in writer.iter_new_checkpoints(min_interval_secs=0.02, seconds_to_sleep=0, timeout=0):
        found.append(step)
        if step < 3:
            saved(tmp_path, step + 1)

    assert found == [1, 2, 3]


def test_a_step_that_is_evaluated_is_never_deleted(tmp_path: Path) -> None:
    with checkpointer(tmp_path, max_to_keep=1) as writer:
        writer.save(state(1), step=1)
        writer.wait_until_finished()
        follower = checkpointer(tmp_path)
        for step in follower.iter_new_checkpoints(seconds_to_sleep=0, timeout=0):
            if step == 1:
                for later in (10, 20, 30):
                    writer.maybe_save(state(later), step=later)
                writer.wait_until_finished()
                assert follower.all_steps == [1, 30]
            assert same(follower.restore(state(), step=step), state(step))
        writer.save(state(), step=40)
        writer.wait_until_finished()

        assert follower.all_steps == [40]


# Transforms.


class Add(ckpts.InitTransform):
    def __init__(self, to: str) -> None:
        self.to = to

    def transform(self, state: Any) -> Any:
        return [*state, self.to]


def test_transforms_run_in_order_and_errors_say_whose_they_are() -> None:
    both = ckpts.MultiTransform(first=Add("a"), second=Add("b"))
    assert both.transform([]) == ["a", "b"] and both.transform_after_optimizer(["x"]) == ["x"]
    assert ckpts.NoopTransform().transform(both) is both

    with pytest.raises(TypeError, match="^init_transform 'second' failed: "):
        ckpts.MultiTransform(first=ckpts.NoopTransform(), second=Add("b")).transform(None)


def test_2_parts_of_another_run_go_to_new_places(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    with ckpts.PartialKauldronLoader(
        workdir=tmp_path, new_to_old={"params.encoder": "params.encoder", "opt_state": "opt_state"}
    ) as loader:
        before = loader.transform(state())
        after = loader.transform_after_optimizer(before)

    assert type(before) is TrainState
    assert before.params["encoder"]["w"][0, 0] == 5 and before.params["head"]["kernel"][0, 0] == 0
    assert before.opt_state["mu"][0] == 0 and after.opt_state["mu"][0] == 5


def test_another_name_in_the_source_is_found(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    new = {"params": {"backbone": {"w": np.zeros((4, 2), np.float32)}}}
    loader = ckpts.PartialKauldronLoader(workdir=tmp_path, new_to_old={"params.backbone": "params.encoder"})

    assert loader.transform(new)["params"]["backbone"]["w"][0, 0] == 5
    assert new["params"]["backbone"]["w"][0, 0] == 0


@pytest.mark.parametrize("glob", ["head.**", "head/*", "**.kernel"])
def test_both_sides_are_checked_but_for_what_is_ignored(tmp_path: Path, glob: str) -> None:
    saved(tmp_path, 5)
    model = state()
    other = model.replace(params={"encoder": model.params["encoder"], "new": {"kernel": jnp.zeros(2)}})

    def load(**ignored: Any) -> Any:
        return ckpts.PartialKauldronLoader(workdir=tmp_path, **ignored).transform(other)

    with pytest.raises(ValueError, match="new/kernel"):
        load(ignore_restored_keys=[glob])
    with pytest.raises(ValueError, match="head/kernel"):
        load(ignore_model_keys=["new.**"])
    loaded = load(ignore_model_keys=["new.**"], ignore_restored_keys=[glob])
    assert loaded.params["encoder"]["w"][0, 0] == 5 and loaded.params["new"]["kernel"][0] == 0


def test_a_run_with_the_same_model_loads_simply(tmp_path: Path) -> None:
    saved(tmp_path, 5, 6)
    plain = ckpts.SimpleCheckpointLoader(workdir=tmp_path)
    whole = ckpts.SimpleCheckpointLoader(workdir=tmp_path, step=5, load_opt_state=True)

    loaded = plain.transform(state())
    assert loaded.params["head"]["kernel"][0, 0] == 6 and loaded.collections["mean"][0] == 6 and loaded.step == 0
    assert plain.transform_after_optimizer(state()).opt_state["mu"][0] == 0
    assert whole.transform_after_optimizer(state()).opt_state["mu"][0] == 5


def test_keys_to_ignore_are_ignored_on_their_side_alone(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    model = state()
    other = model.replace(params={**model.params, "head": {"kernel": jnp.zeros((7, 7))}})
    load = partial(ckpts.PartialKauldronLoader, workdir=tmp_path)

    fresh_head = load(ignore_restored_keys=["head.*"]).transform(other)
    assert fresh_head.params["head"]["kernel"].shape == (7, 7) and fresh_head.params["encoder"]["w"][0, 0] == 5
    assert load(ignore_model_keys=["head.*"]).transform(model).params["head"]["kernel"][0, 0] == 5  # it is saved
    with pytest.raises(ValueError, match="head/kernel"):
        load(ignore_model_keys=["head.*"]).transform(other)


def test_a_path_may_lead_through_the_items_of_a_tuple(tmp_path: Path) -> None:
    def made(value: float) -> Any:
        return {"params": {"layers": ({"w": np.full(2, value)}, {"w": np.full(2, value)})}, "opt_state": ()}

    with checkpointer(tmp_path) as one:
        one.save(made(3), step=0)
    loader = ckpts.PartialKauldronLoader(workdir=tmp_path, new_to_old={"params.layers[1]": "params.layers[0]"})

    first, second = loader.transform(made(0))["params"]["layers"]
    assert first["w"][0] == 0 and second["w"][0] == 3


# Weaknesses of the original, by number; 17 (evaluators) is outside of this door.


def test_1_saving_says_whether_it_did(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one:
        assert one.maybe_save(state(), step=0) is True and one.save(state(), step=10) is True
        assert one.maybe_save(state(), step=11) is False and one.save(state(), step=12) is False


def test_5_what_thins_out_with_age_is_the_same_each_time(tmp_path: Path) -> None:
    kept: list[list[int]] = []
    for name in "abc":
        with checkpointer(tmp_path / name, preservation_policy=mp.Spaced(3)) as one:
            for step in range(10):
                one.save({}, step=step, force=True)
        kept.append(list(one.all_steps))

    assert kept[0] == kept[1] == kept[2] and {0, 9} <= set(kept[0]) and len(kept[0]) < 10


def test_10_the_last_step_can_be_saved_with_its_metrics_whatever_is_due(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one:
        one.save(state(), step=10)
        assert one.save(state(), step=17, force=True, metrics={"loss": 0.5}) is True

    reasons = {step: each.reason for step, each in mp.open(tmp_path / "checkpoints").items()}
    assert reasons == {10: "every 10 steps", 17: "forced"} and one.latest_step == 17


def test_11_a_checkpoint_of_step_0_is_restored_as_any_other(tmp_path: Path) -> None:
    one = saved(tmp_path, 0)
    assert one.latest_step == 0

    with checkpointer(tmp_path / "new") as other:
        other.save(state(7), step=0)
        assert same(other.restore(state(), noop_if_missing=True), state(7))


def test_15_the_page_names_what_there_is() -> None:
    page = (Path(__file__).parent.parent / "docs" / "doors" / "kauldron.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and "| not here" not in line]
    named = {name for row in rows for name in re.findall(r"`\.?(?:items\.)?(\w+)`", row.split(" | ")[0])}
    there = {
        *ckpts.__all__,
        *dir(ckpts.Checkpointer),
        *dir(ckpts.items),
        *inspect.signature(ckpts.Checkpointer).parameters,
        "_fake_refs",
    }

    assert named - there == set() and set(ckpts.__all__) - named - {"items", "MultiprocessingOptions"} == set()


def test_3_the_newest_stays_next_to_the_best(tmp_path: Path) -> None:
    with checkpointer(tmp_path, max_to_keep=2, best_metric_path="eval.accuracy") as one:
        for step, accuracy in enumerate([0.1, 0.9, 0.3, 0.8, 0.2]):
            one.save(state(), step=step, force=True, metrics={"eval": {"accuracy": np.float32(accuracy)}})
    assert one.all_steps == [1, 3, 4] and one.latest_step == 4

    with checkpointer(tmp_path / "min", max_to_keep=1, best_metric_path="*.loss", best_mode="min") as one:
        for step, loss in enumerate([0.5, 0.1, 0.3]):
            one.save(state(), step=step, force=True, metrics={"eval": {"loss": loss}})
    assert one.all_steps == [1, 2]


def test_4_metrics_survive_a_restart(tmp_path: Path) -> None:
    for step, accuracy in enumerate([0.1, 0.9, 0.2, 0.3]):
        with checkpointer(tmp_path, max_to_keep=1, best_metric_path="accuracy") as one:
            one.save(state(), step=step, force=True, metrics={"accuracy": accuracy})

    assert one.all_steps == [1, 3]


def test_6_the_latest_is_the_same_for_every_handle(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one:
        one.save(state(), step=3, force=True)
        one.save(state(), step=1, force=True)
        one.wait_until_finished()

        assert one.latest_step == checkpointer(tmp_path).latest_step == 3
        assert one.all_steps == [1, 3]


def test_7_a_state_that_does_not_fit_is_not_freed(tmp_path: Path) -> None:
    one, given = saved(tmp_path, 1), state()
    wrong = given.replace(params={"encoder": {"w": jnp.zeros(3)}})

    with pytest.raises(ValueError, match="head/kernel"):
        one.restore(wrong)
    assert not wrong.params["encoder"]["w"].is_deleted()
    assert same(one.restore(given), state(1, 1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    kept = state()
    one.restore(kept, donate=False)
    assert same(kept, state())


def test_8_a_step_that_is_there_and_a_wrong_metric_are_said_at_once(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one:
        one.save(state(), step=1)
        with pytest.raises(ValueError, match="step 1 is in"):
            one.save(state(), step=1, force=True)
        with pytest.raises(ValueError, match="metrics: a value of type object"):
            one.save(state(), step=2, force=True, metrics={"eval": object()})
        with pytest.raises(ValueError, match="expected a dict"):
            one.save(state(), step=2, force=True, metrics=3)


def test_9_metrics_are_stored_whatever_decides_what_stays(tmp_path: Path) -> None:
    with checkpointer(tmp_path) as one:
        one.save(state(), step=1, metrics={"loss": jnp.float32(0.5), "hist": np.arange(2), "bf": jnp.bfloat16(1)})

    found = mp.open(tmp_path / "checkpoints")[1].metrics
    assert found["loss"] == 0.5 and found["bf"] == 1.0 and found["hist"].tolist() == [0, 1]


def test_checkpoints_of_the_original_are_not_taken_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "ckpt_1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "ckpt_1" / "_CHECKPOINT_METADATA").touch()

    with pytest.raises(mp.FormatError, match="Kauldron itself"):
        checkpointer(tmp_path).restore(state(), noop_if_missing=True)


# Kauldron itself.

PROGRAM = Path(__file__).parent / "programs" / "kauldron_training.py"
WITH_KAULDRON = pytest.mark.skipif(
    find_spec("kauldron") is None, reason="Kauldron is not installed; docs/doors/kauldron.md says how"
)


def ran(which: str, workdir: Path, what: str) -> str:
    """Return what Kauldron's own Trainer prints with one checkpointer or the other."""
    command = [sys.executable, PROGRAM, which, workdir, what]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what a run prints that was left alone, with Kauldron's own checkpointer."""
    return ran("theirs", tmp_path_factory.mktemp("whole"), "0")


@WITH_KAULDRON
@pytest.mark.parametrize("which", ["theirs", "ours"])
def test_kauldrons_trainer_goes_on_with_the_same_numbers(which: str, whole: str, tmp_path: Path) -> None:
    ran(which, tmp_path, "5")

    assert ran(which, tmp_path, "0") == whole


@WITH_KAULDRON
def test_kauldrons_trainer_goes_on_from_what_the_original_wrote(whole: str, tmp_path: Path) -> None:
    ran("theirs", tmp_path / "old", "5")
    orbax.import_checkpoints(tmp_path / "old" / "checkpoints", tmp_path / "new" / "checkpoints")

    assert ran("ours", tmp_path / "new", "0") == whole


@WITH_KAULDRON
def test_kauldrons_evaluation_job_says_the_same_with_either_checkpointer(tmp_path: Path) -> None:
    for which in ("theirs", "ours"):
        ran(which, tmp_path / which, "3")

    assert ran("ours", tmp_path / "ours", "eval") == ran("theirs", tmp_path / "theirs", "eval")


@WITH_KAULDRON
def test_every_field_of_kauldrons_checkpointer_is_there_with_its_default() -> None:
    original = import_module("kauldron.checkpoints")
    for name in ("Checkpointer", "NoopCheckpointer", "PartialKauldronLoader", "SimpleCheckpointLoader"):
        ours = inspect.signature(getattr(ckpts, name)).parameters
        for field in inspect.signature(getattr(original, name)).parameters.values():
            same_default = ours[field.name].default == field.default or "factory" in str(field.default)
            assert same_default and ours[field.name].kind is field.kind, f"{name}.{field.name}"
