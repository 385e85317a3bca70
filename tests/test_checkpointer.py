# SPDX-License-Identifier: Apache-2.0
"""Saving a run: what `save` promises, what `due` answers, what happens when a write fails."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import milepost as mp
from milepost.errors import StorageError
from milepost.stores import Buffer, MemoryStore, Store, open_store


class Failing:
    """A store whose writes of some keys fail while `broken` says so; everything else is the real store's."""

    def __init__(self, store: Store, part: str = ".safetensors") -> None:
        self._store, self._part = store, part
        self.url = store.url
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: Iterable[Buffer], **options: Any) -> None:
        self._fail(key)
        self._store.put(key, data, **options)

    def claim(self, prefix: str) -> Any:
        return _FailingClaim(self._store.claim(prefix), self._fail)

    def _fail(self, key: str) -> None:
        if self.broken and self._part in key:
            raise StorageError(f"{key}: no space left on device", code="exhausted")


class _FailingClaim:
    def __init__(self, claim: Any, fail: Any) -> None:
        self._claim, self._fail = claim, fail

    def put(self, name: str, data: Iterable[Buffer], **options: Any) -> None:
        self._fail(name)
        self._claim.put(name, data, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self._claim.close()


class Blocking(Failing):
    """A store that holds back the packs until it is told to go on."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.gate = threading.Event()

    def _fail(self, key: str) -> None:
        if ".safetensors" in key:
            assert self.gate.wait(30)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def tree(value: float = 1.0) -> dict[str, Any]:
    return {"w": np.full((8, 4), value), "n": 3}


# --- save


def test_save_returns_a_checkpoint_that_is_durable(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        checkpoint = saver.save(7, tree(), metrics={"loss": 0.5}, metadata={"git": "abc"}).result()

    assert (checkpoint.step, checkpoint.metrics, checkpoint.metadata) == (7, {"loss": 0.5}, {"git": "abc"})
    assert checkpoint.reason == "asked for"
    np.testing.assert_array_equal(mp.load(root)["w"], tree()["w"])


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_arrays_may_be_overwritten_when_save_returns(memory: MemoryStore, framework: str) -> None:
    store = Blocking(memory)
    make = {"numpy": np.array, "torch": torch.tensor, "jax": jnp.array}[framework]
    array = make([1.0, 2.0, 3.0])

    with mp.Checkpointer(store) as saver:
        pending = saver.save(0, {"a": array})
        if framework == "jax":
            array.delete()
        else:
            array[:] = 99.0
        assert not pending.done()
        store.gate.set()
        saved = pending.result().load()["a"]

    np.testing.assert_array_equal(saved, [1.0, 2.0, 3.0])


def test_a_numpy_array_that_jax_aliases_is_copied_with_copy_always(memory: MemoryStore) -> None:
    store = Blocking(memory)
    memory_of = np.frombuffer(bytearray(64 * 100 + 64), np.uint8)
    owner = memory_of[-memory_of.ctypes.data % 64 :][: 64 * 100].view(np.float32)
    owner[:] = 1.0
    array = jnp.asarray(owner)

    with mp.Checkpointer(store, copy="always") as saver:
        pending = saver.save(0, {"a": array})
        owner[:] = 2.0
        store.gate.set()
        saved = pending.result().load()["a"]

    np.testing.assert_array_equal(saved, np.ones(1600, np.float32))


def test_donated_arrays_are_copied(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, donated=True) as saver:
        array = jnp.ones((100, 100))
        saver.save(0, {"a": array}).result()
        held = saver._arena._memory

    assert held is not None and len(held) >= array.nbytes


def test_without_donation_a_jax_array_is_held_not_copied(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver:
        saver.save(0, {"a": jnp.ones((100, 100))}).result()
        held = saver._arena._memory

    assert held is None or len(held) < 40_000


def test_a_save_over_the_memory_limit_is_written_before_it_returns(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, limits=mp.Limits(memory_bytes=100)) as saver:
        array = np.arange(1_000.0)
        pending = saver.save(0, {"a": array, "t": torch.arange(10)})

        assert pending.done()
        assert saver._arena._memory is None
        np.testing.assert_array_equal(pending.result().load()["a"], array)


def test_a_save_within_the_memory_limit_goes_on_in_the_background(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store, limits=mp.Limits(memory_bytes=1_000_000)) as saver:
        pending = saver.save(0, {"a": np.arange(1_000.0)})
        assert not pending.done()
        store.gate.set()


def test_the_next_save_waits_for_the_one_before(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store) as saver:
        first = saver.save(0, tree())
        threading.Timer(0.05, store.gate.set).start()
        saver.save(1, tree())

        assert first.done()
    assert list(saver.catalog) == [0, 1]


def test_a_wait_longer_than_the_limit_is_a_typed_error_and_loses_nothing(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store, limits=mp.Limits(timeout_s=0.01)) as saver:
        saver.save(0, tree())
        with pytest.raises(mp.StorageError, match="not over after") as caught:
            saver.save(1, tree())
        assert caught.value.code == "timeout"
        store.gate.set()
        saver.wait()
        saver.save(1, tree())
    assert list(saver.catalog) == [0, 1]


def test_writes_keep_to_the_bandwidth_limit() -> None:
    from milepost.engine.transfer import Pace

    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(1_000_000, clock=lambda: now[0], sleep=sleep)
    pieces = [bytes(piece) for piece in pace.paced(memoryview(bytes(3_000_000)))]

    assert b"".join(pieces) == bytes(3_000_000)
    assert 2.8 < sum(slept) <= 3.0


def test_the_bandwidth_limit_reaches_the_store(memory: MemoryStore) -> None:
    sizes: list[int] = []

    class Counting(Failing):
        def claim(self, prefix: str) -> Any:
            claim = self._store.claim(prefix)
            put = claim.put
            claim.put = lambda name, data, **options: put(
                name, (sizes.append(len(part)) or part for part in data), **options
            )
            return claim

    with mp.Checkpointer(Counting(memory), limits=mp.Limits(bandwidth_bytes_per_s=1e9)) as saver:
        saver.save(0, {"a": np.zeros(50_000_000, np.uint8)}).result()

    assert len(sizes) > 1


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_concurrency_is_how_many_threads_read_a_large_leaf(memory: MemoryStore, concurrency: int) -> None:
    threads: set[int] = set()
    together = threading.Barrier(concurrency)

    class Counting(Failing):
        def get(self, key: str, **options: Any) -> memoryview:
            if ".safetensors" in key and threading.get_ident() not in threads:
                threads.add(threading.get_ident())
                together.wait(30)  # passed only when so many are here at once
            return self._store.get(key, **options)

    with mp.Checkpointer(Counting(memory), limits=mp.Limits(concurrency=concurrency)) as saver:
        saver.save(0, {"a": np.zeros(40 << 20, np.uint8)}).result()
        saver.catalog.latest().load()  # pyright: ignore[reportOptionalMemberAccess]

    assert len(threads) == concurrency


@pytest.mark.parametrize("step", [-1, 2**63, 1.5, "3", True])
def test_a_step_is_an_integer_from_0_to_2_63(memory: MemoryStore, step: Any) -> None:
    with mp.Checkpointer(memory) as saver, pytest.raises(ValueError, match="a step is an integer from 0"):
        saver.save(step, tree())


def test_numpy_and_jax_integers_are_steps(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver:
        saver.save(np.int64(3), tree())
        saver.save(jnp.int32(4), tree())
    assert list(saver.catalog) == [3, 4]


def test_a_leaf_that_cannot_be_stored_is_told_with_its_path_before_anything_is_written(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        with pytest.raises(mp.UnsupportedLeafError, match=r"model/act: a builtins\.function cannot be sto") as caught:
            saver.save(0, {"model": {"w": np.ones(3), "act": lambda x: x}})
        assert "equinox.filter" in str(caught.value)
    assert len(mp.open(root)) == 0


def test_a_step_that_is_there_is_not_saved_again(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver:
        saver.save(5, tree())
        with pytest.raises(mp.ConflictError, match="has step 5 already.*\n.*overwrite=True") as caught:
            saver.save(5, tree())
        assert caught.value.code == "exists"


def test_overwrite_replaces_a_step(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(5, tree(1.0))
        saver.save(5, tree(2.0), overwrite=True).result()

    assert mp.load(root)["w"][0, 0] == 2.0
    assert sorted(path.name for path in root.iterdir() if path.name.startswith("5")) == ["5.g2"]


def test_a_step_behind_the_latest_is_refused(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver:
        saver.save(5, tree())
        with pytest.raises(mp.ConflictError, match="step 3 lies behind the latest, 5\n.*resume_from") as caught:
            saver.save(3, tree())
        assert caught.value.code == "behind"


def test_a_step_may_be_added_behind_the_latest_which_stays_the_latest(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, save="every 2 steps") as saver:
        saver.save(5, tree(5))
        saver.save(3, tree(3), behind=True)
        assert saver.due(4) is None  # the newest step is still 5
    with mp.Checkpointer(memory) as saver:  # a newer writer adds one, too
        saver.save(1, tree(1), behind=True).result()
        catalog = mp.open(memory)

        assert list(catalog) == [1, 3, 5]
        assert catalog.latest().step == 5  # pyright: ignore[reportOptionalMemberAccess]
        assert not any(catalog[step].info.superseded for step in catalog)


def test_a_root_may_share_its_folder_unless_something_there_is_named_like_a_step(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "logs2024").mkdir()
    with pytest.raises(mp.FormatError, match="not empty"):
        mp.Checkpointer(tmp_path)
    (tmp_path / "7").mkdir()
    with pytest.raises(mp.FormatError, match="found 7/"):
        mp.Checkpointer(tmp_path, shared=True)
    (tmp_path / "7").rmdir()

    with mp.Checkpointer(tmp_path, shared=True, metadata={"model": "small"}) as saver:
        saver.save(0, tree())

    assert (tmp_path / "config.json").exists() and (tmp_path / "logs2024").exists()
    runs = mp.open(tmp_path)
    assert runs.metadata == {"model": "small"} and runs.step_format == mp.StepFormat()


def test_the_saved_tree_can_be_looked_at_without_reading(memory: MemoryStore) -> None:
    state = {"w": np.ones(3, np.float32), "layers": [jnp.zeros(2, jnp.bfloat16), (torch.ones(1), 7)], 3: {}}
    with mp.Checkpointer(memory) as saver:
        saved = saver.save(0, state).result().tree

    assert saved.keys() == state.keys() and saved[3] == {}
    assert isinstance(saved["layers"][1], tuple)
    leaves = [saved["w"], saved["layers"][0], *saved["layers"][1]]
    assert [leaf.origin for leaf in leaves] == ["numpy", "jax", "torch", ""]
    assert [leaf.dtype for leaf in leaves] == [np.float32, jnp.bfloat16, np.float32, None]
    assert leaves[3].read() == 7


def test_resume_from_branches(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver:
        for step in (1, 2, 3):
            saver.save(step, tree(step))
    with mp.Checkpointer(memory, resume_from=mp.open(memory)[1]) as saver:
        saver.save(2, tree(20)).result()
        catalog = mp.open(memory)

        assert catalog.latest().step == 2  # pyright: ignore[reportOptionalMemberAccess]
        assert catalog[2].load()["w"][0, 0] == 20
        assert catalog[3].info.superseded
        assert catalog[2].info.parent == "1"
        assert list(catalog) == [1, 2, 3]


def test_a_read_only_checkpointer_writes_nothing(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(1, tree())
    before = sorted(path for path in root.rglob("*"))

    with mp.Checkpointer(root, read_only=True, save="every 1 steps") as saver:
        assert saver.due(5) is None
        with pytest.raises(mp.ConflictError, match="read_only"):
            saver.save(5, tree())
        assert saver.catalog.latest().step == 1  # pyright: ignore[reportOptionalMemberAccess]
    assert sorted(path for path in root.rglob("*")) == before


def test_read_only_of_nothing_is_not_found_and_makes_nothing(root: Path) -> None:
    with pytest.raises(mp.NotFoundError, match="does not exist"):
        mp.Checkpointer(root, read_only=True)
    assert not root.exists()


def test_a_root_keeps_the_step_format_that_it_was_made_with(root: Path) -> None:
    with mp.Checkpointer(root, step_format=mp.StepFormat("step_", 8)) as saver:
        saver.save(42, tree())

    assert (root / "step_00000042").is_dir()
    assert list(mp.open(root)) == [42]
    with pytest.raises(mp.FormatError, match="names its steps otherwise"):
        mp.Checkpointer(root, step_format=mp.StepFormat())


def test_another_runs_state_is_refused_with_the_difference(root: Path) -> None:
    mp.Checkpointer(root, metadata={"model": "gpt-2", "layers": 12}).close()
    mp.Checkpointer(root, metadata={"model": "gpt-2", "layers": 12}).close()

    with pytest.raises(mp.StructureError, match="layers: there 12, here 24"):
        mp.Checkpointer(root, metadata={"model": "gpt-2", "layers": 24})


@pytest.mark.parametrize(("option", "value"), [("busy", "maybe"), ("copy", "never")])
def test_a_wrong_choice_names_the_right_ones(memory: MemoryStore, option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option}='{value}': expected one of"):
        mp.Checkpointer(memory, **{option: value})  # pyright: ignore[reportArgumentType]


def test_the_defaults_are_told_in_the_log_once(memory: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "milepost"), mp.Checkpointer(memory) as saver:
        saver.save(0, tree())
        saver.save(1, tree())

    told = [record.getMessage() for record in caplog.records if "as none was given" in record.getMessage()]
    assert len(told) == 2
    assert "first, every 10 min, on preemption" in told[0] and "all" in told[1]
    assert sum("saved step" in record.getMessage() for record in caplog.records) == 2


# --- failures in the background


def test_a_failed_write_is_raised_once_at_the_next_touch(memory: MemoryStore) -> None:
    store = Failing(memory)
    with mp.Checkpointer(store) as saver:
        saver.save(0, tree()).result()
        store.broken = True
        saver.save(1, tree(2.0))
        with pytest.raises(mp.StorageError, match="no space left"):
            saver.wait()
        saver.wait()  # told once
        store.broken = False
        saver.save(1, tree(3.0))  # and the work goes on

    assert list(saver.catalog) == [0, 1]
    assert saver.catalog[1].load()["w"][0, 0] == 3.0


def test_the_next_save_raises_the_failure_of_the_one_before_and_is_not_begun(memory: MemoryStore) -> None:
    store = Failing(memory)
    with mp.Checkpointer(store) as saver:
        store.broken = True
        saver.save(0, tree())
        with pytest.raises(mp.StorageError):
            saver.save(1, tree())
        store.broken = False
        saver.save(1, tree())
    assert list(saver.catalog) == [1]


def test_a_failure_that_result_told_is_not_told_again(memory: MemoryStore) -> None:
    store = Failing(memory)
    with mp.Checkpointer(store) as saver:
        store.broken = True
        pending = saver.save(0, tree())
        with pytest.raises(mp.StorageError):
            pending.result()
        store.broken = False
        saver.save(1, tree())
    assert pending.failed


def test_the_end_of_the_with_raises_a_failure(memory: MemoryStore) -> None:
    store = Failing(memory)
    with pytest.raises(mp.StorageError, match="no space left"), mp.Checkpointer(store) as saver:
        store.broken = True
        saver.save(0, tree())


def test_an_error_of_the_body_is_not_hidden_by_a_failed_save(memory: MemoryStore) -> None:
    store = Failing(memory)
    with pytest.raises(ZeroDivisionError) as caught, mp.Checkpointer(store) as saver:
        store.broken = True
        saver.save(0, tree())
        raise ZeroDivisionError
    assert "Besides, the save in flight failed" in caught.value.__notes__[0]


def test_an_error_of_the_body_loses_no_save(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), mp.Checkpointer(root) as saver:
        saver.save(0, tree())
        raise ZeroDivisionError
    assert list(mp.open(root)) == [0]


def test_nothing_of_a_failed_save_stays(memory: MemoryStore) -> None:
    store = Failing(memory, "leaves.json")
    with mp.Checkpointer(store) as saver:
        store.broken = True
        with pytest.raises(mp.StorageError):
            saver.save(0, tree()).result()
    assert not [info.key for info in memory.list("") if info.key.startswith("0/")]


def test_a_foreign_error_in_the_background_comes_as_a_save_failure_with_its_cause(memory: MemoryStore) -> None:
    class Broken(Failing):
        def _fail(self, key: str) -> None:
            if ".safetensors" in key:
                raise RuntimeError("boom")

    with mp.Checkpointer(Broken(memory)) as saver:
        with pytest.raises(mp.SaveFailedError, match="step 0 failed: RuntimeError: boom") as caught:
            saver.save(0, tree()).result()
        assert isinstance(caught.value.__cause__, ExceptionGroup)


def test_callbacks_run_when_the_save_is_over(memory: MemoryStore) -> None:
    store = Blocking(memory)
    called: list[tuple[int, bool]] = []
    with mp.Checkpointer(store) as saver:
        pending = saver.save(3, tree())
        pending.add_done_callback(lambda done: called.append((done.step, done.done())))
        with pytest.raises(TimeoutError):
            pending.result(timeout_s=0.001)
        store.gate.set()
        pending.result()
        pending.add_done_callback(lambda done: called.append((done.step, True)))
    assert called == [(3, True), (3, True)]


def test_a_cancelled_save_leaves_nothing_and_its_step_can_be_saved_again(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store) as saver:
        pending = saver.save(3, tree(1.0))
        assert pending.cancel() and pending.cancel()
        store.gate.set()
        with pytest.raises(mp.SaveFailedError, match="step 3 was cancelled") as caught:
            pending.result()
        assert caught.value.code == "cancelled" and pending.cancelled and "cancelled" in repr(pending)
        assert not [info.key for info in memory.list("") if info.key.startswith("3/")]
        saver.save(3, tree(2.0))
    assert mp.load(memory)["w"][0, 0] == 2.0


def test_a_cancelled_save_is_no_failure_for_those_who_did_not_ask(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store) as saver:
        for step in (1, 2):
            store.gate.clear()
            assert saver.save(step, tree()).cancel()
            store.gate.set()
            if step == 1:
                saver.wait()
    assert not list(mp.open(memory))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_being_published_cannot_be_cancelled(memory: MemoryStore) -> None:
    publishing, told = threading.Event(), threading.Event()

    class Publishing(Failing):
        def _fail(self, key: str) -> None:
            if key == "manifest.json":
                publishing.set()
                assert told.wait(30)

    with mp.Checkpointer(Publishing(memory)) as saver:
        pending = saver.save(0, tree())
        assert publishing.wait(30)
        assert not pending.cancel()
        told.set()
        pending.result()
        assert not pending.cancel() and not pending.cancelled
    assert list(mp.open(memory)) == [0]


def test_a_handle_that_was_dropped_without_close_does_not_lock_its_own_process_out(root: Path) -> None:
    mp.Checkpointer(root).save(0, tree()).result()
    gc.collect()
    with mp.Checkpointer(root) as saver:
        saver.save(1, tree())
    assert list(mp.open(root)) == [0, 1]


def _python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_the_last_save_is_not_lost_when_the_interpreter_exits_without_close(root: Path) -> None:
    code = """
import sys, numpy as np, milepost as mp
saver = mp.Checkpointer(sys.argv[1], limits=mp.Limits(bandwidth_bytes_per_s=4e6))
saver.save(0, {"w": np.ones(250_000)})
"""
    done = _python(code, str(root))

    assert done.returncode == 0, done.stderr
    assert list(mp.open(root)) == [0]
    mp.open(root)[0].verify()


def test_a_failure_at_interpreter_exit_is_told(root: Path) -> None:
    code = """
import sys, resource, numpy as np, milepost as mp
saver = mp.Checkpointer(sys.argv[1])
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
saver.save(0, {"w": np.ones(250_000)})
"""
    done = _python(code, str(root))

    assert "was not saved" in done.stderr
    assert len(mp.open(root)) == 0


# --- when


def test_due_gives_the_reason_that_the_checkpoint_shows(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, save="every 5 steps") as saver:
        assert saver.due(3) is None
        assert saver.due(5) == saver.due(5) == "every 5 steps"
        assert saver.save(5, tree()).result().reason == "every 5 steps"
        assert saver.due(6) is None
        assert saver.due(7, last=True) == "last"
        assert saver.save(7, tree()).result().reason == "last"


def test_due_after_a_restart_counts_from_the_latest(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, save="every 5 steps") as saver:
        saver.save(12, tree())
    with mp.Checkpointer(memory, save="every 5 steps") as saver:
        assert saver.due(13) is None
        assert saver.due(15) is not None


def test_busy_skip_answers_no_while_a_save_is_written(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store, save="every 1 steps", busy="skip") as saver:
        saver.save(1, tree())
        assert saver.due(2) is None
        assert saver.due(2, last=True) is not None
        store.gate.set()
        saver.wait()
        assert saver.due(2) is not None


def test_busy_wait_answers_yes_while_a_save_is_written(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store, save="every 1 steps") as saver:
        saver.save(1, tree())
        assert saver.due(2) is not None
        store.gate.set()


def test_a_windows_saves_are_pinned(memory: MemoryStore) -> None:
    save = mp.Window(10, 20, pin="early").otherwise(mp.EveryNSteps(100))
    with mp.Checkpointer(memory, save=save, keep="last 1") as saver:
        for step in range(9, 30):
            if saver.due(step):
                saver.save(step, tree(step))
        saver.wait()
        assert list(saver.catalog) == [10, 11, 12, 14, 18]
        assert saver.catalog[10].info.pins == ("early",)


def test_retention_runs_after_each_commit(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory, keep="last 2, best 1 loss") as saver:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0]):
            saver.save(step, tree(step), metrics={"loss": loss})
    assert list(saver.catalog) == [1, 3, 4]


@pytest.mark.parametrize(("name", "stops"), [("SIGTERM", True), ("SIGUSR2", True), ("SIGUSR1", False)])
def test_a_signal_asks_for_a_save(memory: MemoryStore, name: str, stops: bool) -> None:
    before = signal.getsignal(getattr(signal, name))
    with mp.Checkpointer(memory, save=mp.OnPreemption()) as saver:
        assert saver.due(1) is None
        os.kill(os.getpid(), getattr(signal, name))
        assert not saver.stopping  # only once `due` has seen it: a save comes first
        assert saver.due(2) == f"on preemption ({name})"
        saver.save(2, tree())
        assert saver.stopping is stops
        assert saver.exit_code == (75 if stops else 0)
        assert (saver.due(3) is not None) is stops
    assert signal.getsignal(getattr(signal, name)) is before


def test_without_on_preemption_no_handler_is_installed(memory: MemoryStore) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with mp.Checkpointer(memory, save="every 5 steps"):
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_was_there_still_runs(memory: MemoryStore) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with mp.Checkpointer(memory, save=mp.OnPreemption()):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_off_the_main_thread_no_handler_is_installed_and_it_is_said(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: mp.Checkpointer(memory, save=mp.OnPreemption()).close())
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGTERM) is before
    assert "not on the main thread" in caplog.text


# --- one-offs


def test_save_and_load_of_one_tree(root: Path) -> None:
    assert mp.save(root, {"a": np.arange(3)}).step == 0
    assert mp.save(root, {"a": np.arange(4)}).step == 1
    assert mp.save(root, {"a": np.arange(5)}, step=10, metrics={"loss": 1.0}).metrics == {"loss": 1.0}

    np.testing.assert_array_equal(mp.load(root)["a"], np.arange(5))
    np.testing.assert_array_equal(mp.load(root, step=1)["a"], np.arange(4))
    assert isinstance(mp.load(root, {"a": torch.zeros(5, dtype=torch.int64)})["a"], torch.Tensor)


def test_loading_from_an_empty_root_says_so(root: Path) -> None:
    mp.Checkpointer(root).close()
    with pytest.raises(mp.NotFoundError, match="no checkpoint yet"):
        mp.load(root)
    with pytest.raises(mp.NotFoundError, match="no step 3\n  There is none at all"):
        mp.load(root, step=3)


# --- unchanged leaves


def test_unchanged_leaves_are_linked_not_written_again(root: Path) -> None:
    frozen = np.random.default_rng(0).random(100_000)
    with mp.Checkpointer(root) as saver:
        for step in range(4):
            saver.save(step, {"frozen": frozen, "head": np.full(10, step)})
    new = [saver.catalog[step].info.new_nbytes for step in range(4)]

    assert new[0] > frozen.nbytes
    assert all(nbytes < 20_000 for nbytes in new[1:])
    inodes = {path.stat().st_ino for path in root.glob("*/*.safetensors") if path.stat().st_size > frozen.nbytes}
    assert len(inodes) == 1


def test_a_pack_under_half_alive_is_written_anew_apart_from_what_changes(root: Path) -> None:
    rng = np.random.default_rng(0)
    tree = {name: rng.random(1_000) for name in "abcd"}
    with mp.Checkpointer(root) as saver:
        saver.save(0, tree)
        for name in "abc":
            tree[name] = rng.random(1_000)
        saver.save(1, tree).result()
        files = {name for name, _, linked in saver.catalog.latest().info.files if linked}
        assert not files  # `d` alone is under half of the first pack
        tree["a"] = rng.random(1_000)
        info = saver.save(2, tree).result().info
        linked = {nbytes for name, nbytes, linked in info.files if linked and name.endswith("safetensors")}
        assert linked == {4096 + 3 * 8_000, 4096 + 8_000}  # abc's pack (2 of 3 alive), and d's own


def test_linking_works_across_restarts(root: Path) -> None:
    frozen = np.random.default_rng(0).random(100_000)
    for step in range(3):
        with mp.Checkpointer(root) as saver:
            saver.save(step, {"frozen": frozen, "head": np.full(10, step)})
    assert mp.open(root)[2].info.new_nbytes < 20_000


def test_an_identical_tree_links_its_leaf_table_too(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.save(0, tree())
        info = saver.save(1, tree()).result().info
    assert all(linked for _, _, linked in info.files)
    assert (root / "0/leaves.json").stat().st_ino == (root / "1/leaves.json").stat().st_ino


def test_a_pack_found_damaged_is_never_linked_again(root: Path) -> None:
    frozen = np.random.default_rng(0).random(100_000)
    with mp.Checkpointer(root) as saver:
        saver.save(0, {"frozen": frozen}).result()
        pack = next(root.glob("0/*.safetensors"))
        pack.chmod(0o644)
        data = bytearray(pack.read_bytes())
        data[-1] ^= 1
        pack.write_bytes(data)
        with pytest.raises(mp.CorruptionError):
            saver.catalog.latest().load()
        saver.save(1, {"frozen": frozen}).result().verify()


def test_a_base_that_was_deleted_by_hand_is_written_again(root: Path) -> None:
    import shutil

    frozen = np.random.default_rng(0).random(100_000)
    with mp.Checkpointer(root) as saver:
        saver.save(0, {"frozen": frozen}).result()
        shutil.rmtree(root / "0")
        saver.save(1, {"frozen": frozen}).result().verify()


def test_many_small_leaves_make_one_pack_and_no_call_each(root: Path) -> None:
    from milepost.testing.recorder import Recorder

    leaves = {f"layer{i}": np.full(4, i, np.float32) for i in range(20_000)}
    with mp.Checkpointer(root) as saver:
        saver.save(0, {"n": 1}).result()
        with Recorder(root) as calls:
            checkpoint = saver.save(1, leaves).result()

    assert len([name for name, _, _ in checkpoint.info.files if name.endswith(".safetensors")]) == 1
    assert len(calls.calls) < 60


def test_a_store_may_be_given_open(root: Path) -> None:
    store = open_store(root, create=True)
    with mp.Checkpointer(store) as saver:
        saver.save(0, tree())
    assert list(mp.open(str(root))) == [0]


def test_a_closed_checkpointer_saves_no_more(memory: MemoryStore) -> None:
    saver = mp.Checkpointer(memory)
    saver.save(1, tree())
    saver.close()
    with pytest.raises(mp.ConflictError, match="was closed") as caught:
        saver.save(2, tree())
    assert caught.value.code == "closed"


def test_a_checkpoint_names_the_one_before_it(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver:
        for step in (1, 2, 3):
            saver.save(step, tree(step))
        saver.wait()
        assert [saver.catalog[step].info.parent for step in (1, 2, 3)] == [None, "1", "2"]
    with mp.Checkpointer(memory, resume_from=mp.open(memory)[1]) as saver:
        saver.save(2, tree(20))
        saver.save(5, tree(50))
        saver.wait()
        assert [saver.catalog[step].info.parent for step in (2, 5)] == ["1", "2.g2"]


def test_metrics_that_cannot_be_stored_are_named(memory: MemoryStore) -> None:
    with mp.Checkpointer(memory) as saver, pytest.raises(mp.UnsupportedLeafError, match="metrics: a value of type"):
        saver.save(1, tree(), metrics={"f": lambda: 0})


def test_a_pending_save_shows_how_it_stands(memory: MemoryStore) -> None:
    store = Blocking(memory)
    with mp.Checkpointer(store) as saver:
        pending = saver.save(3, tree())
        assert repr(pending) == "<PendingSave of step 3, being written>"
        store.gate.set()
        pending.result()
        assert repr(pending) == "<PendingSave of step 3, committed>"


def test_the_lock_may_be_reserved_before_the_first_save(root: Path) -> None:
    with mp.Checkpointer(root) as saver:
        saver.reserve()
        program = f"import milepost as mp\nmp.save({str(root)!r}, 1)"
        assert "ConflictError" in _python(program).stderr
        saver.save(1, tree())
    assert list(mp.open(root)) == [1]
    assert _python(program).returncode == 0
