# SPDX-License-Identifier: Apache-2.0
"""Restart of rollouts: bound states and progress, saved at marks, restored once; items by label."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import milepost as mp
from milepost import Level, Session
from milepost.testing.recorder import Recorder

MEMBERS, STEPS = 4, 6


class Killed(BaseException):
    """Stands for a kill: nothing in the program handles it."""


@dataclasses.dataclass
class Model:
    """A rollout model: its field, and an array that grows."""

    x: Any = None
    history: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    seed: int = 0
    table: Any = None


def ensemble(root: Path, level: Level, *, stop_after: int | None = None, share: slice = slice(None)) -> dict[Any, Any]:
    """Run an ensemble whose noise goes on from member to member; stop after so many marks of this run."""
    output: dict[Any, Any] = {}
    marks = 0
    with Session(root, level=level) as session:
        noise = session.bind("noise", np.random.default_rng(3), level=Level.ITEM)
        model = session.bind("model", Model())
        for labels in session.pending([{"member": m} for m in range(MEMBERS)])[share]:
            with session.item(**labels) as item:
                first = item.progress.get("step", -1) + 1
                if first == 0:
                    model.x, model.history = noise.normal(size=3), []
                for step in range(first, STEPS):
                    model.x = 0.9 * model.x + noise.normal(size=3)
                    model.history.append(float(model.x[0]))
                    output[labels["member"], step] = (model.x.copy(), list(model.history))
                    session.mark(step=step)
                    marks += 1
                    if marks == stop_after:
                        raise Killed
    return output


def equal(left: dict[Any, Any], right: dict[Any, Any]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[key][0], right[key][0]) and left[key][1] == right[key][1] for key in left
    )


@pytest.mark.parametrize("level", [Level.ITEM, Level.ROLLOUT])
def test_a_resumed_ensemble_equals_the_uninterrupted_one_killed_at_every_mark(tmp_path: Path, level: Level) -> None:
    whole = ensemble(tmp_path / "whole", level)
    for kill in range(1, MEMBERS * STEPS + 1):
        root = tmp_path / f"kill{kill}"
        output: dict[Any, Any] = {}
        with pytest.raises(Killed):
            ensemble(root, level, stop_after=kill)
        output = ensemble(tmp_path / "again", level) if kill == 0 else {}
        resumed = ensemble(root, level)
        # What the killed run wrote is written again where it was not finished, and is the same.
        assert all(equal({key: whole[key]}, {key: resumed[key]}) for key in resumed)
        done = {(m, s) for m in range(kill // STEPS if kill % STEPS else kill // STEPS - 1) for s in range(STEPS)}
        assert set(whole) - set(resumed) <= done | {(m, s) for m, s in whole if m * STEPS + s < kill}
        output.update(resumed)
        assert ensemble(root, level) == {}  # nothing is left to do


def seeded(root: Path, worker: int, workers: int, *, stop_after: int | None = None) -> dict[Any, Any]:
    """Run a share of an ensemble whose noise depends on the member alone."""
    output: dict[Any, Any] = {}
    marks = 0
    items = [{"member": m, "time": np.datetime64("2026-01-01")} for m in range(MEMBERS)]
    with Session(root) as session:
        model = session.bind("model", Model())
        for labels in session.pending(items[worker::workers]):
            with session.item(**labels) as item:
                noise = session.bind(f"noise{labels['member']}", np.random.default_rng(labels["member"]))
                first = item.progress.get("step", -1) + 1
                if first == 0:
                    model.x, model.history = np.zeros(3), []
                for step in range(first, STEPS):
                    model.x = 0.9 * model.x + noise.normal(size=3)
                    model.history.append(float(model.x[0]))
                    output[labels["member"], step] = (model.x.copy(), list(model.history))
                    session.mark(step=step)
                    marks += 1
                    if marks == stop_after:
                        raise Killed
    return output


def test_any_number_of_workers_finishes_what_any_other_number_began(tmp_path: Path) -> None:
    whole = seeded(tmp_path / "whole", 0, 1)
    for kill in range(1, 2 * STEPS):
        output: dict[Any, Any] = {}
        root = tmp_path / f"kill{kill}"
        for worker in range(3):
            with pytest.raises(Killed):
                seeded(root, worker, 3, stop_after=min(kill, STEPS if worker else kill))
        output |= seeded(root, 0, 1)
        assert all(equal({key: whole[key]}, {key: output[key]}) for key in output)
        assert {row.labels["member"] for row in Session(root).items() if row.done} == set(range(MEMBERS))


def test_progress_and_state_come_back_after_the_last_saved_mark(root: Path) -> None:
    with Session(root, save="every 2 steps") as session:
        model = session.bind("model", Model())
        for step in range(5):
            model.x = np.full(2, float(step))
            assert session.mark(lead=np.timedelta64(6 * step, "h"), shape=(step, 1)) is (step in (1, 3))
            if step == 4:
                break
    with Session(root) as session:
        model = session.bind("model", Model())
        assert session.restored("model")
        assert session.marks == 5  # the end of the block saved the last one
        assert session.progress == {"lead": np.timedelta64(24, "h"), "shape": (4, 1)}
        np.testing.assert_array_equal(model.x, [4.0, 4.0])


def test_after_an_exception_marks_that_were_not_saved_are_dropped(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), Session(root, save="every 2 steps") as session:
        model = session.bind("model", Model())
        for step in range(3):
            model.x = step
            session.mark(step=step)
        model.x = "half-way to the next mark"
        raise ZeroDivisionError
    with Session(root) as session:
        assert session.bind("model", Model()).x == 1
        assert session.progress == {"step": 1}


def test_progress_is_what_it_was_at_the_mark(root: Path) -> None:
    written = ["a.nc"]
    with Session(root, save="every 100 steps") as session:
        session.mark(written=written)
        written.append("half of b.nc")
    assert Session(root).progress == {"written": ["a.nc"]}


def test_on_exit_drop_saves_nothing_at_the_end(root: Path) -> None:
    with Session(root, save="every 2 steps", on_exit="drop") as session:
        for step in range(3):
            session.mark(step=step)
    assert Session(root).progress == {"step": 1}
    with pytest.raises(ValueError, match="on_exit='keep': expected"):
        Session(root, on_exit="keep")  # pyright: ignore[reportArgumentType]


def test_a_restored_state_is_applied_once(root: Path) -> None:
    with Session(root) as session:
        session.bind("model", Model(x=1))
        session.mark()
    with Session(root) as session:
        model = session.bind("model", Model())
        model.x = 2
        assert session.bind("model", model).x == 2
        session.mark()
    with Session(root) as session:
        assert session.bind("model", Model()).x == 2


def test_two_components_of_one_class_are_told_apart_by_name(root: Path) -> None:
    with Session(root) as session:
        session.bind("a", Model(x=1))
        session.bind("b", Model(x=2))
        with pytest.raises(mp.StructureError, match="named 'a' is bound already"):
            session.bind("a", Model())
        session.mark()
    with Session(root) as session:
        assert session.bind("b", Model()).x == 2
        assert session.bind("a", Model()).x == 1


@pytest.mark.parametrize("level", list(Level))
def test_the_level_decides_what_is_saved(root: Path, level: Level) -> None:
    with Session(root, level=level) as session:
        session.bind("noise", np.random.default_rng(0), level=Level.ITEM)
        session.bind("model", Model(x=1))
        session.mark(step=1)
    names = {path.split("/")[1] for path in mp.open(root).latest().leaves}  # pyright: ignore[reportOptionalMemberAccess]
    assert names == {Level.PROGRESS: set(), Level.ITEM: {"noise"}, Level.ROLLOUT: {"noise", "model"}}[level]


def test_fields_may_have_a_level_of_their_own(root: Path) -> None:
    @dataclasses.dataclass
    class Component:
        seed: int = 0
        field: Any = dataclasses.field(default=None, metadata={"level": Level.ROLLOUT})

    with Session(root, level=Level.ITEM) as session:
        session.bind("c", Component(5, np.ones(3)), level=Level.ITEM)
        session.mark()
    with Session(root, level=Level.ITEM) as session:
        component = session.bind("c", Component(), level=Level.ITEM)
        assert (component.seed, component.field) == (5, None)


def test_frozen_dataclasses_dicts_and_objects_with_state_are_restored_in_place(root: Path) -> None:
    with Session(root) as session:
        session.bind("frozen", Frozen(3, torch.arange(2)))
        session.bind("dict", {"a": 1, "t": torch.ones(2)})
        session.bind("module", torch.nn.Linear(2, 1)).weight.data.fill_(7)
        session.mark()
    with Session(root) as session:
        frozen, module = Frozen(), torch.nn.Linear(2, 1)
        assert session.bind("frozen", frozen) is frozen
        assert frozen.seed == 3
        assert torch.equal(frozen.table, torch.arange(2))
        state = session.bind("dict", {"other": 1})
        assert state["a"] == 1
        assert isinstance(state["t"], torch.Tensor)
        assert bool((session.bind("module", module).weight == 7).all())


def test_a_component_bound_late_is_restored_with_a_warning(root: Path) -> None:
    with Session(root) as session:
        session.bind("model", Model(x=1))
        session.mark()
    with Session(root) as session:
        session.mark()
        with pytest.warns(RuntimeWarning, match="'model' is bound after marks of this run"):
            assert session.bind("model", Model()).x == 1


def test_a_state_that_nobody_binds_again_is_not_lost(root: Path) -> None:
    with Session(root) as session:
        session.bind("model", Model(x=torch.ones(2)))
        session.mark()
    with Session(root) as session:
        session.mark()
        session.mark()
    with Session(root) as session:
        assert torch.equal(session.bind("model", Model()).x, torch.ones(2))


def test_a_saved_component_with_other_fields_is_refused(root: Path) -> None:
    @dataclasses.dataclass
    class Other:
        y: int = 0

    with Session(root) as session:
        session.bind("model", Model(x=1))
        session.mark()
    with Session(root) as session:
        with pytest.raises(mp.StructureError, match="Saved: x, history. Here: y"):
            session.bind("model", Other())
        session.mark()
    with Session(root) as session:
        assert session.bind("model", Model()).x == 1, "what did not fit is not lost"


def test_another_models_rows_are_refused(root: Path) -> None:
    with Session(root, identity={"weights": "a1"}) as session:
        session.mark()
    with pytest.raises(mp.StructureError, match="weights: there 'a1', here 'b2'"):
        Session(root, identity={"weights": "b2"})


def test_a_session_resumes_from_any_row_and_branches_there(root: Path) -> None:
    with Session(root, keep="all") as session:
        model = session.bind("model", Model())
        for step in range(4):
            model.x = step
            session.mark(step=step)
    row = mp.open(root)[2]
    with Session(root, keep="all", resume=row) as session:
        assert session.bind("model", Model()).x == 1
        assert session.resumed_from is row
        session.mark(step=20)
    catalog = mp.open(root)
    assert catalog.latest().metadata["progress"] == {"step": 20}  # pyright: ignore[reportOptionalMemberAccess]
    assert catalog[3].info.parent == "2"
    assert catalog[4].info.superseded


def test_resume_none_refuses_rows_that_are_there(root: Path) -> None:
    with Session(root, resume=None) as session:
        session.mark()
    with pytest.raises(mp.StructureError, match="has rows already"):
        Session(root, resume=None)


def test_rows_are_kept_by_policy(root: Path) -> None:
    with Session(root, keep="last 3") as session:
        for step in range(6):
            session.mark(step=step)
    assert list(mp.open(root)) == [4, 5, 6]
    for _ in range(2):  # the second goes on from a row that has no states to claim
        with Session(root / "one") as session:
            for step in range(6):
                session.mark(step=step)
    assert list(mp.open(root / "one")) == [12]


def test_labels_of_every_type_name_an_item_and_come_back(root: Path) -> None:
    labels = {"member": 3, "time": np.datetime64("2026-01-01T06"), "run": "a/b %", "day": dt.date(2026, 1, 2)}
    with Session(root) as session, session.item(**labels) as item:
        assert not item.done
        session.mark(step=1)
    assert item.done
    rows = Session(root).items()
    assert [row.labels for row in rows] == [labels]
    assert rows[0].done
    with Session(root) as session:
        assert session.pending([labels, {"member": 4}]) == [{"member": 4}]
        assert session.item(**labels).done
        with pytest.raises(ValueError, match="a label is text, a number or a date"):
            session.item(member=[1])
        with pytest.raises(ValueError, match="needs labels"):
            session.item()


def test_labels_of_two_types_with_one_folder_are_refused(root: Path) -> None:
    with Session(root) as session:
        with session.item(member=3):
            session.mark()
        with pytest.raises(mp.StructureError, match="3 and '3' have the same folder"), session.item(member="3"):
            pass


def test_an_item_that_another_worker_holds_is_a_conflict(root: Path) -> None:
    with Session(root) as session, session.item(member=1):
        session.commit()
        held = mp.open(root / "items" / "member=1")
        with pytest.raises(mp.ConflictError):
            _in_child(f"import milepost as mp\nmp.open({str(root / 'items' / 'member=1')!r}).delete(0)")
        assert list(held) == [0]


def test_a_second_worker_is_refused_when_it_enters_an_item(root: Path) -> None:
    with Session(root, keep="all") as session, session.item(member=1):
        session.mark(step=1)
        session.commit()
        with pytest.raises(mp.ConflictError, match="another process writes there"):
            _in_child(f"import milepost as mp\nwith mp.Session({str(root)!r}) as s, s.item(member=1): print('entered')")
        session.mark(step=2)
    assert [(row.done, row.progress) for row in Session(root).items()] == [(True, {"step": 2})]


def test_an_item_that_was_finished_meanwhile_is_not_begun_again(root: Path) -> None:
    with Session(root, keep="all") as session:
        item = session.item(member=1)
        _in_child(f"import milepost as mp\nwith mp.Session({str(root)!r}) as s, s.item(member=1): s.mark(step=7)")
        assert not item.done
        with item:
            assert item.done


def test_items_are_listed_in_the_order_of_their_labels(root: Path) -> None:
    with Session(root) as session:
        for member in (10, 9, "spare", 2):
            with session.item(member=member):
                pass
    assert [row.labels["member"] for row in Session(root).items()] == [2, 9, 10, "spare"]


def _in_child(program: str) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if "ConflictError" in done.stderr:
        raise mp.ConflictError(done.stderr)


def test_a_finished_item_is_not_begun_again(root: Path) -> None:
    with Session(root) as session, session.item(member=1):
        session.mark(step=1)
    with Session(root) as session, session.item(member=1) as item:
        assert item.done
    assert [row.marks for row in Session(root).items()] == [1]


def test_progress_level_starts_an_interrupted_item_again(root: Path) -> None:
    with pytest.raises(Killed), Session(root, level=Level.PROGRESS) as session, session.item(member=1):
        session.mark(step=1)
        raise Killed
    with Session(root, level=Level.PROGRESS) as session, session.item(member=1) as item:
        assert item.progress == {}
        session.mark(step=1)


def test_an_item_within_an_item_is_refused(root: Path) -> None:
    with Session(root) as session:
        with session.item(member=1):
            with (
                pytest.raises(mp.StructureError, match="is entered within the item {'member': 1}"),
                session.item(time=2),
            ):
                pass
            session.mark(step=1)
        assert session.marks == 0
    assert [(row.labels, row.done) for row in Session(root).items()] == [({"member": 1}, True)]


def test_marks_within_an_item_that_is_done_are_refused(root: Path) -> None:
    with Session(root) as session:
        with session.item(member=1):
            session.mark(step=1)
        with session.item(member=1), pytest.raises(mp.StructureError, match="is done"):
            session.mark(step=2)
        assert session.marks == 0
        session.mark(step=3)
    assert Session(root).progress == {"step": 3}


def test_an_item_that_could_not_be_entered_leaves_the_session_as_it_was(root: Path) -> None:
    class Broken:
        def state_dict(self) -> dict[str, Any]:
            raise ZeroDivisionError

        def load_state_dict(self, state: Any) -> None: ...

    with Session(root, level=Level.ITEM) as session:
        session.bind("model", Broken(), level=Level.ITEM)
        with pytest.raises(ZeroDivisionError), session.item(member=1):
            pass
        assert session.catalog is session._main.saver.catalog
        with pytest.raises(ZeroDivisionError), session.item(member=1):
            pass


def halfway(root: Path, level: Level, *, stop: int | None) -> dict[Any, Any]:
    """Run one member with noise of its own; stop after so many marks."""
    output: dict[Any, Any] = {}
    with Session(root, level=level) as session:
        noise = session.bind("noise", np.random.default_rng(3), level=Level.ITEM)
        model = session.bind("model", Model(x=0.0))
        with session.item(member=0) as item:
            for step in range(item.progress.get("step", -1) + 1, STEPS):
                model.x = 0.9 * model.x + noise.normal()
                output[step] = model.x
                session.mark(step=step)
                if step == stop:
                    raise Killed
    return output


@pytest.mark.parametrize("second", list(Level))
@pytest.mark.parametrize("first", list(Level))
def test_an_item_goes_on_right_in_a_session_of_another_level(root: Path, first: Level, second: Level) -> None:
    whole = halfway(root / "whole", Level.ROLLOUT, stop=None)
    for level, stop in ((first, 2), (second, 3), (second, 4)):
        with pytest.raises(Killed):
            halfway(root / "run", level, stop=stop)

    resumed = halfway(root / "run", first, stop=None)

    assert resumed == {step: whole[step] for step in resumed}
    assert set(whole) - set(resumed) <= set(range(5))


def test_an_item_that_is_left_because_the_run_stops_is_not_done(root: Path) -> None:
    def run(*, stop_at: int | None) -> list[int]:
        seen: list[int] = []
        with Session(root, save="every 100 steps, on preemption") as session:
            for labels in session.pending([{"member": m} for m in range(2)]):
                with session.item(**labels) as item:
                    for step in range(item.progress.get("step", -1) + 1, 3):
                        seen.append(10 * labels["member"] + step)
                        if seen[-1] == stop_at:
                            signal.raise_signal(signal.SIGTERM)
                        session.mark(step=step)
                        if session.stopping:
                            break
                if session.stopping:
                    break
        return seen

    assert run(stop_at=1) == [0, 1]
    assert [(row.done, row.progress) for row in Session(root).items()] == [(False, {"step": 1})]
    assert run(stop_at=None) == [2, 10, 11, 12]
    assert all(row.done for row in Session(root).items())


def test_bind_without_a_session_returns_the_state(root: Path) -> None:
    model = Model()
    assert mp.bind("model", model) is model
    with Session(root) as session:
        mp.bind("model", model)
        model.x = 4
        session.mark()
    with Session(root):
        assert mp.bind("model", Model()).x == 4


def test_a_null_session_saves_nothing_and_takes_every_call(root: Path) -> None:
    session = Session.null()
    with session as same:
        assert same is session
        model = session.bind("model", Model(), level=Level.ITEM)
        assert not session.restored("model")
        for labels in session.pending([{"member": 1}]):
            with session.item(**labels) as item:
                assert not item.done
                assert session.mark(step=3) is False
        session.commit()
    assert model.x is None
    assert session.progress == {"step": 3}
    assert not session
    assert not root.exists()


def test_commit_saves_a_mark_that_was_not_due(root: Path) -> None:
    with Session(root, save="every 100 steps") as session:
        session.mark(step=1)
        session.commit()
        assert mp.open(root).latest().metadata["progress"] == {"step": 1}  # pyright: ignore[reportOptionalMemberAccess]


def test_nothing_warns_in_the_ordinary_case(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with Session(root) as session:
                session.bind("model", Model(x=1))
                session.mark()


# --- damaged rows


def damage(root: Path, step: int, file: str = "manifest.json") -> None:
    """Flip a byte in the middle of a file of a row; of its pack with `*.safetensors`."""
    (path,) = (root / str(step)).glob(file)
    data = bytearray(path.read_bytes())
    place = len(data) - 3 if file.endswith("safetensors") else len(data) // 2
    data[place] ^= 0x5A
    path.chmod(0o644)
    path.write_bytes(data)


def begun(root: Path, *, marks: int, **options: Any) -> dict[Any, Any]:
    """Run the first members of an ensemble and stop after so many marks."""
    with pytest.raises(Killed):
        ensemble(root, Level.ROLLOUT, stop_after=marks, **options)
    return {}


@pytest.mark.parametrize("file", ["manifest.json", "*.safetensors"])
@pytest.mark.parametrize(("member", "step"), [(1, STEPS + 1), (2, 3)])
def test_a_damaged_row_of_one_item_makes_that_one_begin_anew_and_stops_no_other(
    root: Path, file: str, member: int, step: int
) -> None:
    whole = ensemble(root / "whole", Level.ROLLOUT)
    begun(root / "run", marks=2 * STEPS + 3)
    item = root / "run" / "items" / f"member={member}"
    damage(item, step, file)
    if file != "manifest.json" and member == 1:  # the end of an item is read by nobody but the one after it
        assert not Session(root / "run").items()[1].damaged
        return

    with pytest.warns(RuntimeWarning, match=f"member={member}.*begins anew. Nothing was deleted"):
        resumed = ensemble(root / "run", Level.ROLLOUT)

    assert set(resumed) >= {(member, each) for each in range(STEPS)}
    assert all(equal({key: whole[key]}, {key: resumed[key]}) for key in resumed)
    assert ensemble(root / "run", Level.ROLLOUT) == {}


def test_an_item_with_a_damaged_row_goes_on_from_its_newest_whole_one(root: Path) -> None:
    with pytest.raises(Killed), Session(root, keep="all") as session, session.item(member=1):
        for step in range(4):
            session.bind("model", Model(x=step)) if step == 0 else None
            session.mark(step=step)
        raise Killed
    for step in (3, 4):
        damage(root / "items" / "member=1", step)

    with Session(root, keep="all") as session:
        with pytest.warns(RuntimeWarning, match=r"step 4.*it goes on from its row 2|/4/.*it goes on from its row 2"):
            assert session.pending([{"member": 1}]) == [{"member": 1}]
        with pytest.warns(RuntimeWarning, match="goes on from its row 2"), session.item(member=1) as item:
            assert item.progress == {"step": 1}
            session.mark(step=2)
    catalog = mp.open(root / "items" / "member=1")
    assert catalog.latest().metadata["progress"] == {"step": 2}  # pyright: ignore[reportOptionalMemberAccess]
    assert (root / "items" / "member=1" / "4" / "manifest.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was damaged is no longer in the line
        assert Session(root).pending([{"member": 1}]) == []


def test_the_items_of_a_session_are_listed_with_those_that_are_damaged(root: Path) -> None:
    with Session(root) as session:
        for member in (1, 2):
            with session.item(member=member):
                session.mark(step=0)
    damage(root / "items" / "member=1", 2)
    (root / "items" / "member=2" / "milepost.json").chmod(0o644)
    (root / "items" / "member=2" / "milepost.json").write_text("{}")

    with pytest.warns(RuntimeWarning) as warned:
        rows = Session(root).items()

    assert [(row.labels, row.done, row.damaged) for row in rows] == [
        ({"member": "1"}, False, True),
        ({"member": "2"}, False, True),
    ]
    assert "counts as not begun" in str(warned[1].message)


def test_an_item_that_cannot_be_read_stops_no_other_and_is_an_error_for_who_enters_it(root: Path) -> None:
    with pytest.raises(Killed), Session(root) as session:
        for member in range(2):
            with session.item(member=member):
                session.mark(step=0)
                if member:
                    raise Killed
    item = root / "items" / "member=1"
    (item / "1").rename(item / "7")

    with Session(root) as session:
        with pytest.warns(RuntimeWarning, match="member=1.*counts as not begun"):
            assert session.pending([{"member": member} for member in range(3)]) == [{"member": 1}, {"member": 2}]
        with (
            pytest.warns(RuntimeWarning, match="counts as not begun"),
            pytest.raises(mp.FormatError, match="is the manifest of step 1"),
            session.item(member=1),
        ):
            pass
        with session.item(member=2):
            session.mark(step=0)


# --- any row


def told(root: Path, count: int) -> None:
    with Session(root, keep="all") as session:
        model = session.bind("model", Model())
        for step in range(count):
            model.x = step
            session.mark(step=step, lead=np.timedelta64(6 * step, "h"))


@pytest.mark.parametrize(
    ("which", "step"),
    [(0, 0), (2, 2), (-1, 4), (-4, 1), ({"step": 3}, 3), ({"lead": np.timedelta64(12, "h"), "step": 2}, 2)],
)
def test_a_session_resumes_from_a_row_by_place_or_by_what_its_mark_said(root: Path, which: Any, step: int) -> None:
    told(root, 5)
    with Session(root, keep="all", resume=which) as session:
        assert session.bind("model", Model()).x == step == session.progress["step"]
        session.mark(step=99)
    catalog = mp.open(root)
    latest = catalog.latest()
    assert latest is not None
    assert (latest.step, latest.metadata["progress"]) == (step + 2, {"step": 99})
    assert latest.info.parent == str(step + 1)


def test_places_count_the_rows_of_the_line(root: Path) -> None:
    told(root, 5)
    with Session(root, keep="all", resume=1) as session:
        session.mark(step=20)
        session.mark(step=30)
    with Session(root, keep="all", resume=-3, on_exit="drop") as session:
        assert session.progress["step"] == 1
    with Session(root, keep="all", resume=3, on_exit="drop") as session:
        assert session.progress["step"] == 30


def test_a_row_that_is_not_there_is_said(root: Path) -> None:
    told(root, 2)
    for which, said in ((2, "no row 2"), (-3, "no row -3"), ({"step": 7}, "no row whose mark said")):
        with pytest.raises(mp.NotFoundError, match=said):
            Session(root, resume=which)  # pyright: ignore[reportArgumentType]
    with pytest.raises(mp.NotFoundError):
        Session(root / "none", resume=-1)
    assert not (root / "none").exists()
    damage(root, 2)
    with pytest.raises(mp.CorruptionError):
        Session(root, resume=-1)
    assert Session(root, resume=-2).progress["step"] == 0


def test_each_item_keeps_rows_of_its_own_and_resumes_from_any(root: Path) -> None:
    for keep, left in (("all", [0, 1, 2, 3, 4]), ("last 2", [3, 4]), (None, [4])):
        path = root / str(keep)
        with Session(path, keep=keep) as session:
            for member in range(2):
                with session.item(member=member):
                    for step in range(3):
                        session.mark(step=step)
        for member in range(2):
            assert list(mp.open(path / "items" / f"member={member}")) == left
    with Session(root / "all", keep="all") as session:
        with session.item(member=1).from_row({"step": 1}) as item:
            assert not item.done
            assert item.resumed_from is not None
            assert item.progress == {"step": 1}
            session.mark(step=22)
        assert item.done
    rows = mp.open(root / "all" / "items" / "member=1")
    assert rows[3].info.parent == "2"
    assert rows[3].metadata["progress"] == {"step": 22}


def test_an_item_is_not_resumed_from_a_row_without_its_state(root: Path) -> None:
    with Session(root, level=Level.ITEM, keep="all") as session:
        with session.item(member=1):
            session.mark(step=0)
        with (
            pytest.raises(mp.StructureError, match="without all its state\n  Choose the item's row 0"),
            session.item(member=1).from_row(-2),
        ):
            pass
        with session.item(member=1).from_row(0) as item:
            assert (item.done, item.progress) == (False, {})


# --- why a row was saved


def test_the_last_row_says_that_it_is_the_last(root: Path) -> None:
    with Session(root, save="every 2 steps", keep="all") as session:
        for step in range(3):
            session.mark(step=step)
        with session.item(member=1):
            session.mark(step=0)
    assert [row.reason for row in mp.open(root).values()] == ["every 2 steps", "final"]
    assert [row.reason for row in mp.open(root / "items" / "member=1").values()] == ["begins", "final"]


def test_an_emergency_save_says_so(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), Session(root, save="every 9 steps", keep="all") as session:
        session.mark(step=0)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            session.commit(reason=mp.policy.EMERGENCY)
            raise
    assert [(row.reason, row.metadata["progress"]) for row in mp.open(root).values()] == [("emergency", {"step": 0})]


def test_a_new_line_begins_beside_rows_none_of_which_is_whole(root: Path) -> None:
    with mp.Checkpointer(root, save="first") as saver:
        for step in (3, 5):
            saver.save(step, {"x": step}).result()
    damage(root, 3)
    damage(root, 5)

    with mp.Checkpointer(root, save="first", resume_from="nothing") as saver:
        assert saver.due(0) is not None
        saver.save(0, {"x": 0}).result()
        saver.save(3, {"x": 30}).result()

    catalog = mp.open(root)
    assert catalog.latest().load() == {"x": 30}  # pyright: ignore[reportOptionalMemberAccess]
    assert catalog[0].info.parent is None
    assert (root / "5" / "manifest.json").exists()


def test_every_verb_of_a_session_is_there_without_one(root: Path) -> None:
    with Session(root) as session, session.item(member=1) as item:
        null = Session.null()
        with null, null.item(member=1) as same:
            for real, other in ((session, null), (item, same)):
                names = {name for name in dir(real) if not name.startswith("_")}
                assert names - {"null"} <= set(dir(other))
            assert same.from_row(-1) is same
            other = Model(x=1)
            assert mp.bind("model", other) is other
        assert not session.restored("model")
        assert session.bind("model", Model()) is not other, "it was not bound to the session around"


# --- many rows


def calls_of_a_mark(root: Path, keep: str, rows: int) -> list[str]:
    """Return what the last of so many marks asked of the file system, sorted."""
    with Session(root, keep=keep) as session:
        for step in range(rows - 1):
            session.mark(step=step)
        session.commit()
        with Recorder(root) as recorder:
            session.mark(step=rows)
            session.commit()
    return sorted(call.name for call in recorder.calls)


def test_a_mark_costs_the_same_however_many_rows_there_are(root: Path) -> None:
    few, many = (calls_of_a_mark(root / str(rows), "all", rows) for rows in (10, 1_000))
    assert few == many

    few, many = (calls_of_a_mark(root / f"last{n}", f"last {n}", n + 20) for n in (5, 200))
    assert few == many


def test_opening_a_session_reads_the_same_records_however_many_rows_there_are(root: Path) -> None:
    def opened(path: Path, rows: int) -> list[str]:
        told(path, rows)
        with Recorder(path) as recorder, Session(path, keep="all") as session:
            assert session.progress["step"] == rows - 1
        return [call.name for call in recorder.calls]

    assert opened(root / "few", 5) == opened(root / "many", 200)
    with Recorder(root / "many") as recorder:
        Session(root / "many", keep="all", resume=-20)
    assert len(recorder.calls) < 20 * 10


def test_items_that_are_done_are_told_by_two_listings_however_many_there_are(root: Path) -> None:
    items = [{"member": member} for member in range(30)]

    def calls(first: int, last: int) -> list[str]:
        with Session(root) as session:
            for labels in items[first:last]:
                with session.item(**labels):
                    session.mark(step=0)
            with Recorder(root) as recorder:
                assert session.pending(items[:last]) == []
                assert session.pending(items[: last + 1]) == items[last : last + 1]
        return [call.name for call in recorder.calls]

    assert calls(0, 5) == calls(5, 29)


def test_an_item_that_is_begun_again_is_not_told_to_be_done(root: Path) -> None:
    with Session(root) as session:
        for member in range(3):
            with session.item(member=member):
                session.mark(step=0)
    items = [{"member": member} for member in range(3)]
    with pytest.raises(Killed), Session(root) as session, session.item(member=0).from_row(0):
        session.mark(step=0)
        raise Killed
    shutil.rmtree(root / "items" / "member=1")
    with Session(root) as session:
        assert session.pending(items) == items[:2]
        with session.item(member=0) as item:
            assert item.progress == {"step": 0}
        assert session.pending(items) == items[1:2]
