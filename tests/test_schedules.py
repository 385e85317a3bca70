# SPDX-License-Identifier: Apache-2.0
"""Writers, readers, retention and sweepers in every order of their store calls.

What must hold is checked after every single call (`processes.Promises`). At the end, each order of steps that is known
to be wrong is put in place of the right one, to see that these checks would tell.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import milepost as mp
from milepost.engine import epochs
from milepost.engine.commit import Lock
from milepost.engine.opening import open_root
from milepost.engine.root import Root
from milepost.model import format as fmt
from milepost.testing.model import Call, Content, Disk, ModelStore
from milepost.testing.schedules import Explored, Process, TooManyStatesError, World, explore, filled
from milepost.testing.stores import StoreContract
from processes import (
    Promises,
    Work,
    annotator,
    attempt,
    deleter,
    leaseholder,
    pinner,
    pruner,
    reader,
    reader_of,
    readers_are_up_to_date,
    root_with,
    sweeper,
    what_was_said_stays,
    writer,
    zombie,
)

# The records that never change: reading one is no move.
SETTLED = ("milepost.json", "writers/")
TRIED: list[Explored] = []
both = pytest.mark.parametrize("locks", [True, False])


def explored(
    content: Content, processes: Mapping[str, Work], *checks: Callable[[World], None], **options: Any
) -> set[Any]:
    """Try all orders; return how they ended: who said what, without ids, whoever spoke first."""
    ends: set[Any] = set()

    def check(world: World) -> None:
        for each in checks:
            each(world)

    def at_end(world: World) -> None:
        ends.add(frozenset((who, *what[:2]) for who, what in world.said if what[0] not in ("looks", "sees")))

    TRIED.append(explore(content, processes, check, at_end=at_end, settled=SETTLED, **options))
    return ends


@pytest.fixture(scope="module", autouse=True)
def _say_how_many(record_testsuite_property: Callable[[str, object], None]) -> Any:
    yield
    states, orders = sum(each.states for each in TRIED), sum(each.orders for each in TRIED)
    record_testsuite_property("schedules", f"{states} states, {orders:.1e} orders")


# --- the exploration itself


class TestModelStore(StoreContract):
    """The store of an exploration is a store."""

    @pytest.fixture
    def store(self) -> ModelStore:
        return ModelStore(Disk().perform)

    def another(self, store: Any) -> ModelStore:
        return ModelStore(store._perform)


def putter(*keys: str) -> Work:
    def work(process: Process) -> None:
        for key in keys:
            process.store.put(key, [b"x"])

    return work


def nothing_to_check(world: World) -> None: ...


def test_every_order_of_independent_calls_is_tried_and_each_state_once() -> None:
    tried = explore(Content(), {"a": putter("a1", "a2", "a3"), "b": putter("b1", "b2")}, nothing_to_check)

    assert tried == Explored(states=4 * 3, orders=10, runs=4 + 3, looks=4 * 3)


def test_what_one_process_sees_of_another_makes_a_difference() -> None:
    """The classic: both read a number, then write it plus one."""

    def adder(process: Process) -> None:
        number = int(bytes(process.store.get("n")))
        process.store.put("n", [str(number + 1).encode()], mode="overwrite")

    def adds_up(world: World) -> None:
        assert bytes(world.store.get("n")) == b"2"

    content = filled(lambda store: store.put("n", [b"0"]))
    with pytest.raises(AssertionError) as caught:
        explore(content, {"a": adder, "b": adder}, nothing_to_check, at_end=adds_up)

    order = caught.value.__notes__[0].splitlines()
    assert order[0] == "The order was:"
    assert sorted(line.partition(":")[2].split()[0] for line in order[1:3]) == ["get", "get"]


def test_what_is_done_alone_is_one_move() -> None:
    def work(process: Process) -> None:
        with process.alone():
            process.store.put(f"{process.name}1", [])
        with process.alone():
            process.store.put(f"{process.name}2", [])
            process.store.put(f"{process.name}3", [])

    tried = explore(Content(), {"a": work, "b": work}, nothing_to_check)

    assert (tried.states, tried.orders) == (4, 2)


def test_sleeping_is_waiting_for_the_others() -> None:
    def sleeper(process: Process) -> None:
        while not list(process.store.list("")):
            time.sleep(3_600)
        process.say("awake")

    ends: list[World] = []
    explore(Content(), {"a": sleeper, "b": putter("key")}, nothing_to_check, at_end=ends.append)

    assert [world.saying("awake") for world in ends] == [[()]]


def test_a_killed_process_makes_no_further_call_and_holds_no_lock() -> None:
    def holder(process: Process) -> None:
        with process.store.hold("lock", exclusive=True, create=True):
            process.store.put("key", [])
            process.store.put("last", [])

    def asker(process: Process) -> None:
        try:
            process.store.hold("lock", exclusive=True).close()
            process.say("had it", "last" in [info.key for info in process.store.list("")])
        except mp.CheckpointError as error:
            process.say(error.code)

    ends: list[World] = []
    explore(Content(), {"a": holder, "b": asker}, nothing_to_check, at_end=ends.append, kill={"a"})

    said = {world.said[0][1] for world in ends}
    assert said == {("busy",), ("not_found",), ("had it", True), ("had it", False)}


def test_an_exploration_that_is_too_large_says_so() -> None:
    with pytest.raises(TooManyStatesError, match="more than 5 states"):
        explore(Content(), {"a": putter("a1", "a2"), "b": putter("b1", "b2")}, nothing_to_check, limit=5)


def test_a_process_that_does_not_do_the_same_again_is_told() -> None:
    count = itertools.count()

    def fickle(process: Process) -> None:
        process.store.list(f"{next(count)}/")
        process.store.list("")

    with pytest.raises(RuntimeError, match="a did not do the same"):
        explore(Content(), {"a": fickle}, nothing_to_check)


def test_what_a_process_raises_is_a_failure() -> None:
    def wrong(process: Process) -> None:
        process.store.get("nothing")

    with pytest.raises(mp.NotFoundError) as caught:
        explore(Content(), {"a": wrong}, nothing_to_check)

    assert caught.value.__notes__


# --- two writers


def test_of_two_writers_with_a_lock_one_is_refused_or_goes_on_after_the_other() -> None:
    ends = explored(root_with(1), {"a": writer(2), "b": writer(3)}, Promises())

    assert ends == {
        frozenset({("a", "saved", 2), ("b", "saved", 3)}),
        frozenset({("a", "saved", 2), ("b", "refused", "locked")}),
        frozenset({("a", "refused", "locked"), ("b", "saved", 3)}),
        frozenset({("a", "refused", "behind"), ("b", "saved", 3)}),
    }


def test_two_writers_without_a_lock_lose_nothing() -> None:
    ends = explored(root_with(1), {"a": writer(2), "b": attempt(3)}, Promises(), locks=False)

    assert frozenset({("a", "saved", 2), ("b", "refused", "fenced")}) in ends
    assert frozenset({("a", "refused", "fenced"), ("b", "saved", 3)}) in ends


def test_a_writer_takes_over_from_one_that_was_killed_at_any_call() -> None:
    explored(root_with(1), {"a": writer(2, 3), "b": writer(4)}, Promises(), kill={"a"})


def test_a_zombie_that_wakes_up_at_any_call_harms_nothing() -> None:
    explored(root_with(1), {"zombie": zombie(2, 3), "b": writer(3)}, Promises(), locks=False)


def test_two_writers_of_one_attempt_that_was_left_lose_nothing() -> None:
    explored(root_with(1, unfinished=2), {"a": sweeper(), "b": attempt(2)}, Promises(), locks=False)


def test_two_processes_make_one_root() -> None:
    def maker(process: Process) -> None:
        root = open_root(process.store, create=True)
        assert root.record is not None
        process.say("made", root.record.id)

    ends = explored(Content(), {"a": maker, "b": maker}, readers_are_up_to_date)

    assert all(len({identity for _, _, identity in end}) == 1 for end in ends)


# --- readers, retention, and what is said of a step


@both
def test_a_reader_is_given_the_latest_however_fast_steps_come_and_go(locks: bool) -> None:
    processes = {"writer": writer(2, 3, keep="last 1"), "reader": reader}

    ends = explored(root_with(1), processes, Promises(may_go=(1, 2)), readers_are_up_to_date, locks=locks)

    read = {said for end in ends for said in end if said[0] == "reader"}
    assert {("reader", "read", step) for step in (1, 2, 3)} <= read


@both
def test_a_step_that_is_pruned_while_it_is_read_is_whole_or_deleted(locks: bool) -> None:
    ends = explored(
        root_with(1, 2), {"a": pruner("last 1"), "reader": reader_of(1)}, Promises(may_go=(1,)), locks=locks
    )

    assert {said[:2] for end in ends for said in end if said[0] == "reader"} == {
        ("reader", "read"),
        ("reader", "deleted"),
        ("reader", "not found"),
    }


def test_a_step_that_is_held_can_be_read() -> None:
    explored(root_with(1, 2), {"a": pruner("last 1"), "reader": leaseholder(1)}, Promises(may_go=(1,)))


def test_retention_deletes_nothing_that_was_pinned_before_it_went() -> None:
    ends = explored(
        root_with(1, 2), {"a": pruner("last 1"), "b": pinner(1)}, Promises(may_go=(1,)), what_was_said_stays
    )

    assert frozenset({("a", "pruned"), ("b", "pinned", 1)}) in ends
    assert frozenset({("a", "pruned", 1), ("b", "refused", "deleted")}) in ends


def test_a_writer_that_remembers_a_step_hears_of_its_pin_before_it_goes() -> None:
    processes = {"a": writer(3, 4, keep="last 2"), "b": pinner(2)}
    ends = explored(root_with(1, 2), processes, Promises(may_go=(1, 2)), what_was_said_stays)

    assert any(("b", "pinned", 2) in end for end in ends)
    assert any(("b", "refused", "deleted") in end for end in ends)


def test_notes_of_several_processes_all_stay() -> None:
    explored(root_with(1), {"a": pinner(1), "b": annotator(1, "x"), "c": annotator(1, "y")}, what_was_said_stays)


@both
def test_there_is_no_moment_without_a_step_that_is_overwritten(locks: bool) -> None:
    def it_is_there(world: World) -> None:
        assert 1 in mp.open(world.store)

    processes = {"writer": writer(1, overwrite=True), "reader": reader_of(1)}
    ends = explored(root_with(1), processes, Promises(may_go=(1,)), it_is_there, locks=locks)

    assert not any(said[1] == "not found" for end in ends for said in end)


def test_two_writers_that_overwrite_one_step_leave_one_of_theirs() -> None:
    def it_is_there(world: World) -> None:
        assert 2 in mp.open(world.store)

    processes = {"zombie": zombie(2, 2, overwrite=True), "b": writer(2, overwrite=True)}
    explored(root_with(1), processes, Promises(may_go=(2,)), it_is_there, locks=False)


@both
def test_a_step_that_is_deleted_while_it_is_read_is_whole_or_deleted(locks: bool) -> None:
    explored(root_with(1, 2), {"a": deleter(2), "reader": reader}, Promises(may_go=(2,)), locks=locks)


@both
def test_deleting_beside_a_writer_takes_only_that_step(locks: bool) -> None:
    explored(root_with(1, 2), {"a": deleter(1), "b": writer(3)}, Promises(may_go=(1,)), locks=locks)


@both
def test_pruning_beside_a_writer_takes_only_what_is_old(locks: bool) -> None:
    explored(root_with(1, 2), {"a": pruner("last 1"), "b": writer(3)}, Promises(may_go=(1, 2)), locks=locks)


# --- branches


@both
def test_a_reader_beside_a_branch_is_given_the_old_line_or_the_new(locks: bool) -> None:
    processes = {"branch": writer(2, branch_from=1), "reader": reader}

    explored(root_with(1, 2, 3), processes, Promises(forward=False), locks=locks)


def test_a_zombie_of_the_line_before_a_branch_stays_out_of_it() -> None:
    processes = {"zombie": zombie(2, 3), "branch": writer(2, branch_from=1)}

    explored(root_with(1), processes, Promises(forward=False), locks=False)


@both
def test_what_a_branch_starts_from_may_be_deleted_beside_it(locks: bool) -> None:
    processes = {"branch": writer(2, branch_from=1), "a": deleter(1)}

    explored(root_with(1, 2), processes, Promises(may_go=(1,), forward=False), locks=locks)


# --- three processes


def test_an_attempt_that_three_writers_in_turn_may_sweep() -> None:
    processes = {"first": sweeper(late=True), "second": sweeper(late=True), "third": attempt(2)}

    explored(root_with(1, unfinished=2), processes, Promises(), locks=False)


def test_a_late_publisher_a_successor_and_a_reader() -> None:
    processes = {"late": attempt(2, late=True), "successor": attempt(2), "reader": reader}

    explored(root_with(1), processes, Promises(), readers_are_up_to_date, locks=False)


def test_a_killed_writer_its_successor_and_a_reader() -> None:
    processes = {"killed": attempt(2, late=True), "successor": writer(3), "reader": reader}

    explored(root_with(1), processes, Promises(), readers_are_up_to_date, kill={"killed"})


def test_a_late_generation_of_a_step_does_not_push_out_the_one_that_counts() -> None:
    def one_that_counts_is_there(world: World) -> None:
        root = open_root(world.store)
        latest = root.latest()
        assert latest is not None
        assert not root.superseded(*latest, root.head())

    processes = {"late": attempt(1, late=True), "successor": sweeper(), "retention": pruner("all")}
    explored(root_with(1), processes, Promises(forward=False), one_that_counts_is_there, locks=False)


def test_retention_a_pin_and_a_reader() -> None:
    processes = {"a": pruner("last 1"), "b": pinner(1), "reader": leaseholder(1)}

    explored(root_with(1, 2), processes, Promises(may_go=(1,)), what_was_said_stays)


def test_a_writer_with_retention_an_evaluation_and_a_reader() -> None:
    processes = {"writer": writer(2, keep="last 1"), "evaluation": annotator(1, "x"), "reader": reader}

    explored(root_with(1), processes, Promises(may_go=(1,)), readers_are_up_to_date)


# --- wrong orders, each of which the checks above must tell


class ChecksOnlyBefore(Lock):
    """Publishes without looking again whether another writer took over."""

    def publish(self, claim: Any, manifest: Any) -> None:
        self.check()
        claim.put(fmt.MANIFEST, [fmt.seal(manifest)])


class PublishesByName(Lock):
    """Puts the manifest by its key, not into the folder that was claimed."""

    def publish(self, claim: Any, manifest: Any) -> None:
        epochs.check(self._root.store, manifest.epoch)
        slot = self._root.steps.slot(manifest.step, manifest.generation)
        self._root.store.put(slot.key(fmt.MANIFEST), [fmt.seal(manifest)])
        epochs.check(self._root.store, manifest.epoch)


class TakesWithoutAFence(Lock):
    """Looks for the end of the line before anything keeps the writer before from going on."""

    def _take(self, resume_from: Any) -> Any:
        while True:
            record = epochs.create(self._root.store, self._declared(self._root.head(), resume_from))
            if record is not None:
                return record


class SweepsWhatIsNew(Lock):
    """Sweeps whatever has no manifest, of whichever epoch."""

    def _sweep(self) -> None:
        for slot in self._root.slots():
            if not self._root.committed(slot):
                self._root.store.retire(f"{slot.name}/")


class UsesNamesAgain(Lock):
    """Gives the names of swept slots to its own, although an older writer may still be about to sweep them."""

    def _is_alone(self) -> bool:
        return True

    def _take(self, resume_from: Any) -> Any:
        self._is_alone = lambda: False
        try:
            return super()._take(resume_from)
        finally:
            del self._is_alone


class DeletesFileByFile(Lock):
    """Deletes what is in a slot, its manifest last."""

    def retire(self, slot: Any, *, still: Any = None) -> bool:
        keys = [info.key for info in self._root.store.list(f"{slot.name}/")]
        for key in sorted(keys, key=lambda key: key.endswith(fmt.MANIFEST)):
            self._root.store._perform(Call("retire", key))
        return True


class RetiresWithoutALease(Lock):
    """Does not ask whether somebody reads."""

    def retire(self, slot: Any, *, still: Any = None) -> bool:
        self._root.store.retire(f"{slot.name}/")
        return True


class LooksBeforeItHolds(Lock):
    """Looks for pins while they can still be added."""

    def retire(self, slot: Any, *, still: Any = None) -> bool:
        return (still is None or still()) and super().retire(slot)


class RetiresBeforeItPublishes(Lock):
    """Makes room for the next generation of a step."""

    def claim(self, step: int) -> Any:
        for slot in self._root.slots():
            if slot.step == step:
                self.retire(slot)
        return super().claim(step)


class ListsOnce(Root):
    """Takes what it listed for what is there."""

    def latest(self, slots: Any = None, head: Any = None) -> Any:
        return self._newest(self.slots() if slots is None else slots, head or self.head())[0]


class ForgetsWhoCameLate(Root):
    """Takes the highest step for the latest, whoever saved it."""

    def superseded(self, slot: Any, manifest: Any, head: Any) -> bool:
        return slot.name in head.superseded


@pytest.mark.parametrize(
    ("wrong", "scenario"),
    [
        (ChecksOnlyBefore, test_a_zombie_that_wakes_up_at_any_call_harms_nothing),
        (PublishesByName, test_a_zombie_that_wakes_up_at_any_call_harms_nothing),
        (TakesWithoutAFence, test_two_writers_without_a_lock_lose_nothing),
        (SweepsWhatIsNew, test_two_writers_without_a_lock_lose_nothing),
        (UsesNamesAgain, test_two_writers_of_one_attempt_that_was_left_lose_nothing),
        (DeletesFileByFile, test_a_step_that_is_held_can_be_read),
        (RetiresWithoutALease, test_a_step_that_is_held_can_be_read),
        (LooksBeforeItHolds, test_retention_deletes_nothing_that_was_pinned_before_it_went),
        (RetiresBeforeItPublishes, lambda: test_there_is_no_moment_without_a_step_that_is_overwritten(True)),
        (ListsOnce, lambda: test_a_reader_is_given_the_latest_however_fast_steps_come_and_go(True)),
        (ForgetsWhoCameLate, test_a_zombie_of_the_line_before_a_branch_stays_out_of_it),
    ],
)
def test_a_wrong_order_is_told(wrong: type, scenario: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    right = wrong.__base__.__name__
    for module in ("catalog", "retention", "checkpointer", "engine.commit", "engine.opening"):
        if hasattr(importlib.import_module(f"milepost.{module}"), right):
            monkeypatch.setattr(f"milepost.{module}.{right}", wrong)

    with pytest.raises((AssertionError, mp.CheckpointError)) as caught:
        scenario()

    assert "The order was:" in caught.value.__notes__[-1]
