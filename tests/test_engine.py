# SPDX-License-Identifier: Apache-2.0
"""What the engine does not do: bytes that are not read, hashed or written again, requests that are not made."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import milepost as mp
from milepost.stores.local import LocalStore
from milepost.testing.recorder import Recorder

MiB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


def params(seed: float, leaves: int = 6, nbytes: int = MiB) -> dict[str, Any]:
    return {f"w{i}": jnp.full(nbytes // 4, seed + i, jnp.float32) for i in range(leaves)}


def packs(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def written(recorder: Recorder) -> int:
    return sum(len(call.data) for call in recorder.calls if call.name == "write")


class Gets:
    """A local store that counts what is asked of it."""

    def __init__(self, where: Path) -> None:
        self._store = LocalStore(where)
        self.counts: Counter[str] = Counter()
        self.nbytes = 0

    def get(self, key: str, **options: Any) -> memoryview:
        data = self._store.get(key, **options)
        self.counts["pack" if key.endswith(".safetensors") else "record"] += 1
        self.nbytes += data.nbytes if key.endswith(".safetensors") else 0
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


# Unchanged leaves


def test_of_an_unchanged_immutable_state_no_byte_is_written_but_the_manifest(root: Path) -> None:
    state = params(1)
    with mp.Checkpointer(root) as saver:
        saver.save(0, state).result()
        with Recorder(root) as recorder:
            saver.save(1, state).result()

    assert written(recorder) < 20_000
    assert [call.path for call in recorder.calls if call.name == "create" and "/.tmp" in call.path][1:] == []
    assert packs(root / "0") == packs(root / "1")
    assert (root / "0/leaves.json").stat().st_ino == (root / "1/leaves.json").stat().st_ino
    assert mp.open(root)[1].verify()


def aliased() -> tuple[np.ndarray[Any, Any], jax.Array]:
    """A NumPy array and a JAX array over the same memory."""
    memory = np.empty(MiB + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + MiB].view(np.float32)
    array[:] = 1
    return array, jax.device_put(array)


@pytest.mark.parametrize("copy", ["auto", "always"])
def test_the_bytes_of_an_immutable_array_that_was_saved_are_not_looked_at_unless_all_are_copied(
    root: Path, copy: Any
) -> None:
    array, state = aliased()
    with mp.Checkpointer(root, copy=copy) as saver:
        saver.save(0, {"w": state}).result()
        array[:] = 2  # against JAX's contract: only who looks sees it
        if float(state[0]) != 2.0:
            pytest.skip("this JAX copies what it is given")
        saver.save(1, {"w": state}).result()

    assert mp.open(root)[1].load()["w"][0] == (1.0 if copy == "auto" else 2.0)


def test_what_was_loaded_is_linked_by_the_first_save_after_a_resume(root: Path) -> None:
    mp.save(root, params(1), step=0)
    with mp.Checkpointer(root) as saver:
        last = saver.catalog.latest()
        assert last is not None
        state = last.load(like=params(0))
        with Recorder(root) as recorder:
            saver.save(1, state).result()

    assert written(recorder) < 20_000
    assert packs(root / "0") == packs(root / "1")


def test_what_was_loaded_is_not_taken_for_what_lies_in_its_slot_since(root: Path) -> None:
    mp.save(root, params(1), step=0)
    with mp.Checkpointer(root) as saver:
        state = saver.catalog[0].load(like=params(0))
        with mp.Checkpointer(root) as other:
            other.catalog.delete(0)
            other.save(0, params(5)).result()
        saver.save(1, state).result()

    assert mp.open(root)[1].load()["w0"][0] == 1


def test_of_what_was_loaded_long_ago_nothing_is_remembered(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        for step in range(12):
            saver.save(step, params(step, leaves=1, nbytes=64)).result()
    catalog = mp.open(root)

    for step in catalog:
        catalog[step].load(like=params(0, leaves=1, nbytes=64))

    assert len(catalog[11]._opened.root.loaded) == 8


def test_what_was_cast_while_it_was_loaded_is_written(root: Path) -> None:
    mp.save(root, params(1), step=0)
    with mp.Checkpointer(root) as saver:
        last = saver.catalog.latest()
        assert last is not None
        like = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params(0))
        saver.save(1, last.load(like=like, dtype="cast")).result()

    assert not packs(root / "0").keys() & packs(root / "1").keys()
    assert mp.open(root)[1].load()["w2"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["jax", "numpy"])
def test_of_a_state_that_changes_in_part_the_changed_leaves_are_written(root: Path, kind: str) -> None:
    state = params(1, leaves=50, nbytes=256 << 10)
    if kind == "numpy":
        state = {name: np.array(leaf) for name, leaf in state.items()}
    with mp.Checkpointer(root) as saver:
        saver.save(0, state).result()
        state = state | {"w7": state["w7"] + 1}
        with Recorder(root) as recorder:
            saver.save(1, state).result()

    changed = 256 << 10
    records = sum(len(call.data) for call in recorder.calls if call.name == "write" and len(call.data) < 100_000)
    assert written(recorder) - records <= 1.05 * changed
    loaded = mp.load(root)
    assert all(np.array_equal(loaded[name], leaf) for name, leaf in state.items())


def test_a_pack_of_which_little_is_left_is_written_anew(root: Path) -> None:
    state = params(1)
    with mp.Checkpointer(root) as saver:
        saver.save(0, state).result()
        state = params(100) | {"w0": state["w0"]}
        saver.save(1, state).result()

    assert not packs(root / "0").keys() & packs(root / "1").keys()
    assert mp.open(root)[1].verify()
    assert np.array_equal(mp.load(root)["w0"], state["w0"])


def test_when_the_step_that_holds_them_was_removed_by_hand_unchanged_arrays_are_written(root: Path) -> None:
    state = params(1)
    with mp.Checkpointer(root) as saver:
        saver.save(0, state).result()
        shutil.rmtree(root / "0")
        saver.save(1, state).result()

    assert mp.open(root)[1].verify()
    assert np.array_equal(mp.load(root)["w3"], state["w3"])


def test_an_array_that_was_donated_since_it_was_saved_is_refused(root: Path) -> None:
    state = params(1)
    with mp.Checkpointer(root) as saver:
        saver.save(0, state).result()
        state["w1"].delete()
        with pytest.raises(mp.UnsupportedLeafError, match="w1: the array was deleted or donated"):
            saver.save(1, state)


def test_a_tree_that_has_changed_its_shape_is_planned_anew(root: Path) -> None:
    trees: list[dict[str, Any]] = [
        {"a": np.zeros(10, np.float32), "b": np.ones(20, np.int8)},
        {"a": np.zeros(11, np.float32), "b": np.ones(20, np.int8)},
        {"b": np.ones(20, np.int16), "c": np.ones(3)},
        {"a": jnp.zeros(10), "b": np.ones(20, np.int8)},
    ]
    with mp.Checkpointer(root) as saver:
        for step, tree in enumerate(trees):
            saver.save(step, tree).result()

    for step, tree in enumerate(trees):
        loaded = mp.open(root)[step].load()
        assert loaded.keys() == tree.keys()
        for name, leaf in tree.items():
            assert loaded[name].dtype == leaf.dtype
            np.testing.assert_array_equal(loaded[name], leaf)


# Reading


def test_many_small_leaves_are_few_reads(root: Path) -> None:
    tree = {f"w{i}": np.full(100 + i % 50, i, np.int32) for i in range(5_000)}
    mp.save(root, tree)
    store: Any = Gets(root)

    loaded = mp.open(store)[0].load()

    assert store.counts["pack"] <= 3
    assert all(np.array_equal(loaded[name], leaf) for name, leaf in tree.items())


@pytest.mark.parametrize("in_place", [False, True])
def test_every_byte_is_read_once(root: Path, in_place: bool) -> None:
    tree = {"big": np.arange(5 * MiB, dtype=np.int32), **{f"w{i}": np.full(30_000, i, np.int64) for i in range(40)}}
    nbytes = sum(leaf.nbytes for leaf in tree.values())
    mp.save(root, tree)
    store: Any = Gets(root)
    target = {name: np.zeros_like(leaf) for name, leaf in tree.items()}

    if in_place:
        mp.open(store)[0].load_into(target)
    else:
        target = mp.open(store)[0].load()

    assert nbytes <= store.nbytes <= 1.01 * nbytes
    assert all(np.array_equal(target[name], leaf) for name, leaf in tree.items())


def test_a_damaged_small_leaf_is_named_and_does_not_take_its_neighbours_along(root: Path) -> None:
    tree = {f"w{i}": np.full(10_000, i, np.int64) for i in range(40)}
    mp.save(root, tree)
    (pack,) = (root / "0").glob("*.safetensors")
    data = bytearray(pack.read_bytes())
    data[data.index(np.full(5, 17, np.int64).tobytes()) + 8] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    checkpoint = mp.open(root)[0]

    with pytest.raises(mp.CorruptionError, match="w17"):
        checkpoint.load()
    loaded = checkpoint.load(exclude="w17")

    assert all(np.array_equal(loaded[name], leaf) for name, leaf in tree.items() if name != "w17")


def test_a_read_that_fails_says_which_arrays_were_being_filled(root: Path) -> None:
    tree = {f"w{i}": np.full(MiB // 8, i, np.int64) for i in range(8)}
    mp.save(root, tree)
    (pack,) = (root / "0").glob("*.safetensors")
    data = bytearray(pack.read_bytes())
    data[data.index(np.full(5, 6, np.int64).tobytes()) + 8] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    target = {name: np.zeros_like(leaf) for name, leaf in tree.items()}

    with pytest.raises(mp.CorruptionError, match="w6") as caught:
        mp.open(root)[0].load_into(target)

    (note,) = caught.value.__notes__
    assert "w0" in note
    assert "w7" in note  # it was read ahead


@pytest.mark.parametrize("shift", [0, 4 * MiB])
def test_leaves_that_are_read_into_common_memory_are_not_read_at_once(root: Path, shift: int) -> None:
    size = 24 * MiB
    mp.save(root, {"a": np.full(size, 1, np.uint8), "b": np.full(size, 2, np.uint8)}, step=0)
    memory = np.zeros(size + shift, np.uint8)
    target = {"a": memory[:size], "b": memory[shift:]}

    mp.open(root)[0].load_into(target)

    assert (target["b"] == 2).all()
    assert (target["a"][: shift or None] == 1).all()  # with one address, it was given memory of its own


def test_memory_that_was_loaded_may_be_changed(root: Path) -> None:
    mp.save(root, {f"w{i}": np.full(1_000, i) for i in range(2_000)})

    loaded = mp.load(root)
    for leaf in loaded.values():
        np.add(leaf, 1, out=leaf)

    assert all(leaf[0] == int(name[1:]) + 1 for name, leaf in loaded.items())
    assert mp.open(root)[0].verify()


# Where the time goes


def test_the_anatomy_of_a_save_says_where_its_bytes_and_its_time_went(root: Path) -> None:
    state = {"a": np.zeros(3 * MiB, np.float32), "b": np.ones(MiB, np.uint8)}
    nbytes = 13 * MiB
    with mp.Checkpointer(root) as saver:
        first = saver.save(0, state)
        first.result()
        state["b"][:] = 2
        second = saver.save(1, state)
        second.result()

    assert first.anatomy.nbytes == second.anatomy.nbytes == nbytes
    assert first.anatomy.copied_nbytes == first.anatomy.hashed_nbytes == first.anatomy.written_nbytes == nbytes
    assert nbytes < first.anatomy.new_nbytes < nbytes + 20_000
    assert second.anatomy.written_nbytes == MiB
    assert second.anatomy.hashed_nbytes == nbytes
    for anatomy in (first.anatomy, second.anatomy):
        parts = anatomy.captured_s, anatomy.hashed_s, anatomy.written_s, anatomy.synced_s, anatomy.committed_s
        assert all(seconds > 0 for seconds in parts)


def test_of_what_has_changed_as_much_is_digested_twice_as_tells_that_it_has(root: Path) -> None:
    state = {"a": np.zeros(10 * MiB, np.float32)}
    with mp.Checkpointer(root) as saver:
        saver.save(0, state).result()
        state["a"][0] = 1
        pending = saver.save(1, state)
        pending.result()

    assert pending.anatomy.hashed_nbytes == 44 * MiB


def test_a_lazy_load_maps_each_pack_once(root: Path) -> None:
    tree = {f"w{i}": np.full(64, i) for i in range(3_000)}  # more than there are file descriptors
    mp.save(root, tree)

    loaded = mp.open(root)[0].load(lazy=True)

    assert all(leaf[7] == int(name[1:]) for name, leaf in loaded.items())


class Priorities(logging.Handler):
    """Notes the priority of the thread that says that a step is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("saved step"):
            self.found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priority of a thread")
@pytest.mark.parametrize("background", [False, True])
def test_a_save_in_the_background_lets_everything_else_go_first(
    root: Path, background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "milepost")
    priorities = Priorities()
    logging.getLogger("milepost").addHandler(priorities)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    with mp.Checkpointer(root, limits=mp.Limits(background=background)) as saver:
        saver.save(0, params(1)).result()
    logging.getLogger("milepost").removeHandler(priorities)

    assert priorities.found == [19 if background else mine]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
