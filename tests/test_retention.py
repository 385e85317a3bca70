# SPDX-License-Identifier: Apache-2.0
"""What retention costs, counted in calls of the store, and that what it remembers is never out of date."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import milepost as mp
from milepost.model import format as fmt
from milepost.policy import Saved
from milepost.stores import MemoryStore, Store


class Counted:
    """A store that counts its calls, and lists what is read."""

    def __init__(self, store: Store) -> None:
        self._store, self.url = store, store.url
        self.calls: Counter[str] = Counter()
        self.read: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def called(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if name == "get":
                self.read.append(args[0])
            return method(*args, **options)

        return called

    def reset(self) -> None:
        self.calls.clear()
        self.read.clear()


def counted(store: Store) -> Any:
    return Counted(store)


def run_of(steps: int) -> MemoryStore:
    """A root with that many steps of an earlier process, made without saving each of them."""
    memory = MemoryStore()
    with mp.Checkpointer(memory) as saver:
        saver.save(1, {"w": np.zeros(3)}, metrics={"loss": 1.0})
    files = {info.key.removeprefix("1/"): bytes(memory.get(info.key)) for info in memory.list("1/")}
    manifest = fmt.unseal(files["manifest.json"], fmt.Manifest, "")
    for step in range(2, steps + 1):
        own = msgspec.structs.replace(manifest, step=step, id=f"{step:016x}", metrics={"loss": float(step)})
        for name, data in (files | {"manifest.json": fmt.seal(own)}).items():
            memory.put(f"{step}/{name}", [data])
    return memory


def save(saver: mp.Checkpointer, step: int) -> None:
    saver.save(step, {"w": np.full(3, float(step))}, metrics={"loss": float(step)}).result()
    saver.wait()


@pytest.mark.parametrize("keep", ["last 100000", "best 5 loss", "last 3, every 10 steps"])
def test_a_save_asks_the_store_as_often_after_a_thousand_kept_steps_as_after_ten(keep: str) -> None:
    asked: list[Counter[str]] = []
    for steps in (10, 1_000):
        store = counted(run_of(steps))
        with mp.Checkpointer(store, keep=f"{keep}, on steps {' '.join(map(str, range(steps + 1)))}") as saver:
            save(saver, 2_000)  # reads what is there
            store.reset()
            save(saver, 2_001)
            asked.append(store.calls.copy())
            assert len(mp.open(store)) >= steps

    assert asked[0] == asked[1]
    assert asked[0].total() < 30


def test_a_step_that_is_dropped_at_each_save_costs_the_same_however_many_stay() -> None:
    asked: list[Counter[str]] = []
    for steps in (10, 1_000):
        store = counted(run_of(steps))
        with mp.Checkpointer(store, keep=f"last {steps}") as saver:
            save(saver, 2_000)
            store.reset()
            save(saver, 2_001)
            asked.append(store.calls.copy())
        assert list(mp.open(store))[:2] == [3, 4]

    assert asked[0] == asked[1]


def test_the_steps_of_many_earlier_processes_cost_a_save_nothing() -> None:
    memory = MemoryStore()
    for step in range(12):
        mp.save(memory, {"w": np.full(3, float(step))})
    store = counted(memory)

    with mp.Checkpointer(store, keep="last 100") as saver:
        save(saver, 100)
        store.reset()
        save(saver, 101)

    assert not [key for key in store.read if key.split("/")[0] in map(str, range(12))]
    assert not [key for key in store.read if key.startswith("writers/") and key != "writers/13.json"]


def test_opening_five_thousand_steps_takes_a_few_calls() -> None:
    store = counted(run_of(5_000))

    latest = mp.open(store).latest()

    assert latest is not None and latest.step == 5_000
    assert store.read.count("5000/manifest.json") == 1
    assert len([key for key in store.read if key.endswith("/manifest.json")]) == 1
    assert store.calls.total() <= 12


# --- what is remembered is true


@pytest.fixture
def saver(root: Path) -> Any:
    with mp.Checkpointer(root, keep="last 2") as saver:
        yield saver


def test_a_pin_set_by_another_handle_between_two_saves_counts(root: Path, saver: mp.Checkpointer) -> None:
    for step in (1, 2):
        save(saver, step)
    mp.open(root).pin(2, "paper")
    for step in (3, 4):
        save(saver, step)

    # Pinned ones take none of the places: 1 stayed as long as it was one of the newest two that are not pinned.
    assert list(mp.open(root)) == [2, 3, 4]
    mp.open(root).unpin("paper")
    save(saver, 5)
    assert list(mp.open(root)) == [4, 5]


def test_metrics_that_come_late_count_at_the_next_save(root: Path) -> None:
    with mp.Checkpointer(root, keep="best 1 eval") as saver:
        for step in (1, 2, 3):
            save(saver, step)
        for step, score in ((1, 0.1), (2, 0.9), (3, 0.5)):
            mp.open(root).annotate(step, metrics={"eval": score})
        save(saver, 4)
        assert list(mp.open(root)) == [2, 4]

        mp.open(root).annotate(2, metrics={"eval": 0.0})  # it was measured wrongly
        mp.open(root).annotate(4, metrics={"eval": 0.3})
        save(saver, 5)
        assert list(mp.open(root)) == [4, 5]


def test_a_note_is_read_once(root: Path) -> None:
    histories: list[list[Saved]] = []

    class Watching:
        def keep(self, history: Any) -> dict[int, str]:
            histories.append(list(history))
            return {saved.step: "all" for saved in history}

    memory = MemoryStore()
    store = counted(memory)
    with mp.Checkpointer(store, keep=Watching()) as saver:
        for step in (1, 2):
            save(saver, step)
        mp.open(memory).annotate(1, metadata={"note": "good"})
        save(saver, 3)
        assert histories[-1][0].metadata == {"note": "good"}
        assert [key.partition("/")[0] for key in store.read if "note" in key][-3:] == ["noted", "noted", "1"]
        store.reset()
        save(saver, 4)
        assert not [key for key in store.read if key.startswith(("1/", "2/")) or key == "noted/1.json"]
    assert histories[-1][0].metadata == {"note": "good"}


def test_a_damaged_record_of_a_note_makes_retention_read_all_notes_again(root: Path, saver: mp.Checkpointer) -> None:
    for step in (1, 2):
        save(saver, step)
    mp.open(root).pin(1, "a")
    (root / "noted" / "1.json").chmod(0o644)
    (root / "noted" / "1.json").write_bytes(b"torn")
    for step in (3, 4):
        save(saver, step)

    assert list(mp.open(root)) == [1, 3, 4]


def test_a_pin_set_while_a_policy_decides_is_found_at_the_deletion(root: Path) -> None:
    class Slow:
        def keep(self, history: Any) -> dict[int, str]:
            if len(history) == 3:
                mp.open(root).pin(1, "just in time")
            return {history[-1].step: "newest"} if len(history) == 3 else {saved.step: "x" for saved in history}

    with mp.Checkpointer(root, keep=Slow()) as saver:
        for step in (1, 2, 3):
            save(saver, step)
    assert list(mp.open(root)) == [1, 3]


def test_a_step_that_was_deleted_by_hand_is_not_counted(root: Path, saver: mp.Checkpointer) -> None:
    import shutil

    for step in (1, 2):
        save(saver, step)
    shutil.rmtree(root / "2")
    save(saver, 3)
    assert list(mp.open(root)) == [1, 3]


def test_a_step_that_was_deleted_and_saved_again_is_judged_by_what_it_is_now(root: Path) -> None:
    with mp.Checkpointer(root, keep="best 1 loss") as saver:
        saver.save(1, {"w": 1}, metrics={"loss": 0.0})
        saver.save(2, {"w": 2}, metrics={"loss": 5.0}).result()
        saver.wait()
        saver.catalog.delete(1)
        saver.save(1, {"w": 3}, metrics={"loss": 9.0}, behind=True)
        saver.save(3, {"w": 4}, metrics={"loss": 7.0}).result()
        assert list(mp.open(root)) == [2, 3]


def test_an_overwritten_step_is_judged_by_its_new_metrics(root: Path) -> None:
    with mp.Checkpointer(root, keep="best 1 loss") as saver:
        saver.save(1, {"w": 1}, metrics={"loss": 0.0}).result()
        saver.save(1, {"w": 1}, metrics={"loss": 9.0}, overwrite=True).result()
        saver.save(2, {"w": 2}, metrics={"loss": 5.0}).result()
        saver.save(3, {"w": 2}, metrics={"loss": 7.0}).result()
        assert list(mp.open(root)) == [2, 3]
    assert not [path.name for path in root.iterdir() if path.name.startswith("1")]


def test_a_step_whose_manifest_was_damaged_since_it_was_read_stays(root: Path, saver: mp.Checkpointer) -> None:
    for step in (1, 2):
        save(saver, step)
    manifest = root / "1" / "manifest.json"
    manifest.chmod(0o644)
    data = bytearray(manifest.read_bytes())
    data[60] ^= 1
    manifest.write_bytes(data)
    for step in (3, 4):
        save(saver, step)

    assert {row.name for row in root.iterdir() if row.name.isdecimal()} == {"1", "3", "4"}


def test_nothing_is_remembered_once_the_lock_was_given_back(root: Path) -> None:
    with mp.Checkpointer(root, keep="last 2") as saver:
        for step in (1, 2):
            save(saver, step)
    with mp.Checkpointer(root, keep="all") as other:
        other.catalog.delete(2)
        other.save(2, {"w": 7}, pin="mine")
    with mp.Checkpointer(root, keep="last 1") as saver:
        for step in (3, 4):
            save(saver, step)

    assert list(mp.open(root)) == [2, 4]


def test_two_handles_of_one_process_may_prune_at_once(root: Path) -> None:
    with mp.Checkpointer(root, keep="last 3") as saver:
        for step in range(1, 10):
            saver.save(step, {"w": step})
            threads = [threading.Thread(target=mp.open(root).prune, args=("last 3",)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert list(mp.open(root)) == [7, 8, 9]
