# SPDX-License-Identifier: Apache-2.0
"""The front door of Earth2Studio: its names and what they promise, and what is better behind ours."""

from __future__ import annotations

import contextvars
import dataclasses
import datetime as dt
import enum
import inspect
import json
import random
import subprocess
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import forecasts
import milepost as mp
from forecasts import Killed, Model, ModelState, Noise, NoiseState, Output
from milepost.compat import earth2studio as e2s
from milepost.compat.earth2studio import Checkpoint, NullCheckpoint, bind_checkpoint_state

TIME = np.datetime64("2026-01-01")
STEPS, MEMBERS = 2, 3


@dataclasses.dataclass
class Counter:
    value: Any = 0


@dataclasses.dataclass
class Other:
    value: Any = None


class Season(enum.Enum):
    DRY = 1
    WET = 2


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NPROCS"):
        monkeypatch.delenv(name, raising=False)


def equal(left: dict[Any, Any], right: dict[Any, Any]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


# --- names and signatures


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [
        (p.name, p.default) for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY
    ]


EMPTY = inspect.Parameter.empty


def test_every_name_is_there() -> None:
    assert set(e2s.__all__) == {
        "Checkpoint", "CheckpointEntry", "CheckpointError", "CheckpointLevel", "CheckpointSerializationError",
        "CheckpointSession", "CheckpointState", "CheckpointStateCollision", "CheckpointStateSchemaError",
        "LoadedState", "NullCheckpoint", "PendingCheckpointState", "bind_checkpoint_state", "default_checkpoint_path",
    }  # fmt: skip


def test_the_signatures_are_those_of_the_documents() -> None:
    assert parameters(Checkpoint) == [
        ("name", EMPTY), ("path", None), ("mode", "overwrite"), ("flush_interval", 1), ("history_size", None),
        ("level", 2), ("rank", None), ("world_size", None), ("device", "cpu"),
    ]  # fmt: skip
    assert torch.device("cpu") == Checkpoint("x").device  # the documented default, without importing PyTorch for it
    assert parameters(Checkpoint.select) == [("self", EMPTY), ("row", EMPTY)]
    assert parameters(e2s.CheckpointSession) == [("catalog", EMPTY), ("entry", None)]
    assert parameters(e2s.CheckpointState) == [
        ("state", EMPTY), ("checkpoint", None), ("session", None), ("state_loaded", False),
    ]  # fmt: skip
    assert parameters(bind_checkpoint_state) == [("state", EMPTY)]
    assert parameters(NullCheckpoint) == []
    for name in ("active", "catalog", "rank_path"):
        assert isinstance(inspect.getattr_static(Checkpoint, name), property)
    assert [field.name for field in dataclasses.fields(e2s.CheckpointEntry)] == [
        "commit_id", "labels", "metadata", "metadata_keys", "write_count", "saved_at", "rank", "world_size",
        "state_ids",
    ]  # fmt: skip
    assert [field.name for field in dataclasses.fields(e2s.LoadedState)] == ["path", "manifest"]
    assert parameters(e2s.PendingCheckpointState) == [
        ("checkpoint", EMPTY), ("state_id", EMPTY), ("state", EMPTY), ("reusable", False),
    ]  # fmt: skip
    assert get_args(e2s.CheckpointLevel) == (0, 1, 2)


def test_the_errors_are_runtime_errors_of_one_family() -> None:
    for kind in (e2s.CheckpointStateCollision, e2s.CheckpointSerializationError, e2s.CheckpointStateSchemaError):
        assert issubclass(kind, e2s.CheckpointError)
    assert issubclass(e2s.CheckpointError, RuntimeError)


# --- the checkpoint


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "both"}, {"flush_interval": 0}, {"history_size": 0}, {"level": True}, {"level": 3}, {"rank": 1}],
)
def test_the_constructor_refuses_what_is_out_of_range(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Checkpoint("run", tmp_path, **wrong)


def test_the_constructor_touches_no_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path / "run", mode="append")

    assert not (tmp_path / "run").exists()
    assert checkpoint.catalog == ()
    assert not (tmp_path / "run").exists()


def test_the_default_path_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EARTH2STUDIO_CACHE", str(tmp_path))
    assert Checkpoint("run").path == tmp_path / "checkpoints" / "run" == e2s.default_checkpoint_path("run")
    monkeypatch.delenv("EARTH2STUDIO_CACHE")
    assert e2s.default_checkpoint_path("run") == Path.home() / ".cache" / "earth2studio" / "checkpoints" / "run"


def test_overwrite_keeps_one_row_and_append_as_many_as_asked_for(tmp_path: Path) -> None:
    for mode, history, rows in (("overwrite", None, [5]), ("append", None, [1, 2, 3, 4, 5]), ("append", 2, [4, 5])):
        checkpoint = Checkpoint("run", tmp_path / f"{mode}{history}", mode=mode, history_size=history)
        with checkpoint as session:
            for _ in range(5):
                session.write()
        assert [entry.write_count for entry in checkpoint.catalog] == rows
    assert Checkpoint("run", tmp_path, history_size=7).history_size == 1


def test_a_write_commits_when_the_absolute_count_fills_the_interval(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append", flush_interval=3)
    with checkpoint as session:
        assert [session.write(i=i) is not None for i in range(4)] == [False, False, True, False]
        assert session.flush() is not None
        assert session.flush() is None
    with checkpoint as session:
        assert session.write_count == 4
        assert session.write() is None
        assert session.write() is not None  # the sixth
    with Checkpoint("run", tmp_path / "never", flush_interval=None) as session:
        assert [session.write() for _ in range(4)] == [None] * 4
        assert session.flush().write_count == 4


def test_a_flush_with_metadata_makes_a_row_and_no_write(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    with checkpoint as session:
        session.write(a=1)
        session.flush(b=2)
        session.flush(c=3)
        session.write(a=4)
    assert [entry.write_count for entry in checkpoint.catalog] == [1, 1, 1, 2]
    assert checkpoint.catalog[-1].metadata == {"a": 4, "b": 2, "c": 3}  # they stay for the rows to come


def test_metadata_is_not_taken_over_from_the_selected_row(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    with checkpoint as session:
        session.write(a=1)
    with checkpoint as session:
        assert session.metadata == {"a": 1}
        session.write(b=2)
        assert session.metadata == {"b": 2}


def test_leaving_commits_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, flush_interval=5)
    with checkpoint as session:
        session.write()
    assert checkpoint.catalog == ()


def test_rows_that_are_all_damaged_are_left_beside_a_new_line(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.write(i=0)
    manifest = tmp_path / "0" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes()[:-40])
    with pytest.warns(RuntimeWarning, match="left out"):
        session = Checkpoint("run", tmp_path).__enter__()
    session.write(i=1)
    session.__exit__()
    with pytest.warns(RuntimeWarning, match="left out"):
        assert [entry.metadata for entry in Checkpoint("run", tmp_path).catalog] == [{"i": 1}]
    assert manifest.exists()


def test_a_failed_commit_takes_the_write_back(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        state = session.bind(Counter(1))
        session.write(a=1)
        state.value = object()
        with pytest.raises(e2s.CheckpointSerializationError, match="object"):
            session.write(a=2, b=3)
        assert session.write_count == 1
        state.value = 2
        session.write()
        assert session.metadata == {"a": 1}


def test_select_takes_rows_as_a_list_does(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    with pytest.raises(IndexError, match="No checkpoint entries match this selection."):
        checkpoint.select(0)
    with checkpoint as session:
        for i in range(3):
            session.write(i=i)
    assert [checkpoint.select(row).metadata["i"] for row in (0, -1, -3)] == [0, 2, 0]
    with pytest.raises(IndexError):
        checkpoint.select(3)
    with checkpoint.select(0) as session:
        session.write(i=9)
    assert [entry.metadata["i"] for entry in checkpoint.catalog] == [0, 1, 2, 9]  # a row after the others


def test_entering_gives_the_session_and_makes_it_active(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path)
    with checkpoint as session:
        assert isinstance(session, e2s.CheckpointSession)
        assert (checkpoint.active, session.is_active, bool(session), session.commit_id) == (session, True, False, None)
        assert Checkpoint("run", tmp_path).active is None  # the object counts, not the path
        with checkpoint as again:
            assert again is session
        entry = session.write(lead_time=np.timedelta64(6, "h"))
        assert (session.exists, session.commit_id, session.lead_time) == (True, entry.commit_id, entry.lead_time)
    assert checkpoint.active is None


def test_a_row_says_what_it_holds(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, rank=1, world_size=2)
    assert checkpoint.rank_path == tmp_path / "rank_000001"
    with checkpoint as session:
        session.bind(Counter())
        session.write(lead_time=np.timedelta64(6, "h"), n=np.array([3]), t=torch.tensor([4.0]))
    (entry,) = checkpoint.catalog
    assert entry.commit_id.startswith("commit_00000001_")
    assert dt.datetime.fromisoformat(entry.saved_at).utcoffset() == dt.timedelta(0)
    assert (entry.rank, entry.world_size, entry.write_count) == (1, 2, 1)
    assert entry.metadata == {"lead_time": np.timedelta64(6, "h"), "n": 3, "t": 4.0}
    assert entry.metadata_keys == entry.artifacts == ("lead_time", "n", "t")
    assert entry.state_ids == (f"{Counter.__module__}.Counter",)
    assert checkpoint.select(0).metadata_value("n") == checkpoint.select(0).artifact("n") == 3
    with pytest.raises(KeyError):
        checkpoint.select(0).metadata_value("m")


def test_the_text_of_a_checkpoint_is_a_table_of_its_rows(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    assert repr(checkpoint).splitlines()[0] == 'Checkpoint("run")'
    assert "catalog: empty" in repr(checkpoint)
    with checkpoint as session:
        session.write(lead_time=np.timedelta64(6, "h"))
        session.write(lead_time=np.timedelta64(12 * 3600 * 10**9, "ns"))
    head, first, second = (line.split() for line in repr(checkpoint).splitlines()[-3:])
    assert head == ["id", "lead_time", "write_count", "saved_at"]
    assert first[:4] == ["0", "6", "hours", "1"]
    assert second[:4] == ["1", "12", "hours", "2"]
    assert "rank: 0/1" in repr(checkpoint)


# --- states


def test_binding_gives_a_proxy_that_is_the_dataclass_to_its_component(tmp_path: Path) -> None:
    state = Counter(1)
    with Checkpoint("run", tmp_path) as session:
        proxy = bind_checkpoint_state(state)
        assert session.bind(state) is proxy is session.bind(proxy)
        proxy.value = 2
        assert (state.value, repr(proxy), proxy.checkpoint_dataclass) == (2, repr(state), state)
        assert (proxy.checkpoint_level, proxy.checkpoint_flush_interval, proxy.checkpoint_write_count) == (2, 1, 0)
        assert (proxy.checkpoint_is_flush_due, proxy.checkpoint_selected) == (True, False)
        assert proxy.checkpoint_enabled
        assert proxy.device == proxy.checkpoint_device == torch.device("cpu")
        session.write(lead_time=5)
        assert (proxy.checkpoint_selected, proxy.checkpoint_lead_time) == (True, 5)
        for name in ("device", "checkpoint_level"):
            with pytest.raises(AttributeError):
                setattr(proxy, name, 1)
        for wrong in (3, Counter):
            with pytest.raises(TypeError):
                bind_checkpoint_state(wrong)
    assert (proxy.checkpoint_write_count, proxy.checkpoint_selected) == (0, False)


def test_a_state_is_restored_in_place_when_it_is_bound(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(np.arange(3)))
        session.write()
    state = Counter()
    with Checkpoint("run", tmp_path) as session:
        proxy = bind_checkpoint_state(state)
        assert proxy.checkpoint_state_loaded
        np.testing.assert_array_equal(state.value, np.arange(3))


def test_a_state_bound_before_is_restored_at_the_beginning_of_the_block(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(7))
        session.write()
    checkpoint = Checkpoint("run", tmp_path)
    proxy = bind_checkpoint_state(Counter())
    assert proxy.checkpoint_level == 2
    with pytest.warns(UserWarning, match="constructor"):
        checkpoint.__enter__()
    assert (proxy.value, proxy.checkpoint_state_loaded) == (7, True)
    checkpoint.__exit__()


def test_a_model_may_be_made_again_for_a_second_block(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path)
    with checkpoint as session:
        session.bind(Counter(7))
        session.write()
    with checkpoint as session:
        assert session.bind(Counter()).value == 7
        with pytest.raises(e2s.CheckpointStateCollision):
            session.bind(Counter())


def test_without_a_checkpoint_a_state_is_just_wrapped() -> None:
    proxy = contextvars.Context().run(bind_checkpoint_state, Counter(3))

    assert (proxy.value, proxy.checkpoint_level, proxy.checkpoint_enabled) == (3, 0, False)


def test_the_null_checkpoint_does_nothing_and_is_false() -> None:
    null = NullCheckpoint()
    with null as a, null as b:
        b.write_count = 5
        assert (a, b.catalog, b.write(x=1), b.flush(), b.write_count, b.exists) == (null, null, None, None, 0, False)
    assert (bool(null), null.level, null.metadata, null.labels, null.lead_time) == (False, 0, {}, {}, None)
    assert not null.is_active


def test_level_0_neither_writes_nor_reads_states(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path, level=0) as session:
        session.bind(Counter(5))
        session.write(a=1)
    assert Checkpoint("run", tmp_path).catalog[0].state_ids == ()
    with Checkpoint("run", tmp_path) as session:
        assert session.bind(Counter()).value == 0
        session.write()
    with Checkpoint("run", tmp_path, level=0) as session:
        assert not session.bind(Counter(1)).checkpoint_state_loaded


# --- workflows, killed at every write

Start = dict[str, Any]


def run(workflow: str, root: Path, output: Output, options: Start, *, batch_size: int = 1, level: int = 2) -> None:
    """Run a workflow as a new process would: a new checkpoint, and components made in its block."""

    def body() -> None:
        checkpoint = Checkpoint("forecast", root, level=level, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a level below 2 begins again
            with checkpoint as session:
                model, noise = Model(), Noise()
                if workflow == "ensemble":
                    forecasts.ensemble(TIME, STEPS, MEMBERS, model, noise, output, batch_size, session)
                elif workflow == "diagnostic":
                    forecasts.diagnostic(TIME, STEPS, model, np.cumsum, output, session)
                else:
                    forecasts.deterministic(TIME, STEPS, model, output, session)

    contextvars.Context().run(body)


def killed_and_resumed(workflow: str, root: Path, kills: int, options: Start, **more: Any) -> None:
    whole = Output({})
    run(workflow, root / "whole", whole, options, **more)
    assert len(whole.kept) == whole.writes == kills
    for kill in range(1, kills + 1):
        for after in (False, True):
            path, kept = root / f"{kill}{after}", dict[Any, Any]()
            with pytest.raises(Killed):
                run(workflow, path, Output(kept, kill, after=after), options, **more)
            run(workflow, path, Output(kept), options, **more)
            assert equal(kept, whole.kept), f"killed {'after' if after else 'before'} write {kill}"


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("workflow", ["deterministic", "diagnostic"])
def test_a_forecast_killed_at_every_write_equals_the_uninterrupted_one(
    tmp_path: Path, workflow: str, level: int
) -> None:
    killed_and_resumed(workflow, tmp_path, STEPS + 1, {}, level=level)


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, 1),
        ({}, 2),
        ({"flush_interval": 2}, 1),
        ({"flush_interval": 2}, 2),
        ({"flush_interval": None}, 2),
        ({"mode": "append", "history_size": 2}, 2),
    ],
)
def test_an_ensemble_killed_at_every_write_equals_the_uninterrupted_one(
    tmp_path: Path, options: Start, level: int
) -> None:
    killed_and_resumed("ensemble", tmp_path, MEMBERS * (STEPS + 1), options, level=level)


def test_an_ensemble_in_batches_killed_at_every_write_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    killed_and_resumed("ensemble", tmp_path, MEMBERS * (STEPS + 1), {}, batch_size=2)


def test_an_ensemble_killed_again_and_again_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    for level in (1, 2):
        whole, kept, starts = Output({}), dict[Any, Any](), 0
        run("ensemble", tmp_path / f"whole{level}", whole, {}, level=level)
        while starts < 30:
            starts += 1
            try:
                # At level 1 a member begins again each time, so a run has to get through one of them.
                run("ensemble", tmp_path / f"{level}", Output(kept, 2 if level == 2 else 5), {}, level=level)
                break
            except Killed:
                continue
        assert starts > 2
        assert equal(kept, whole.kept)


@pytest.mark.parametrize("level", [1, 2])
def test_the_perturbations_of_earth2studio_need_no_change_for_that(tmp_path: Path, level: int) -> None:
    kind = dataclasses.make_dataclass("State", [("generator_state", Any, None)])
    kind.__module__ = "earth2studio.perturbation.gaussian"

    def members(root: Path, output: Output) -> None:
        with Checkpoint("forecast", root, level=level) as session, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a level below 2 begins again
            forecasts.ensemble(TIME, STEPS, MEMBERS, Model(), Noise(kind()), output, 1, session)

    whole = Output({})
    contextvars.Context().run(members, tmp_path / "whole", whole)
    for kill in range(1, whole.writes + 1):
        kept: dict[Any, Any] = {}
        with pytest.raises(Killed):
            contextvars.Context().run(members, tmp_path / str(kill), Output(kept, kill))
        contextvars.Context().run(members, tmp_path / str(kill), Output(kept))
        assert equal(kept, whole.kept), f"killed at write {kill}"


def test_a_process_that_dies_at_a_write_is_resumed(tmp_path: Path) -> None:
    program = (
        "import os, sys; import forecasts; from milepost.compat.earth2studio import Checkpoint\n"
        "class Dying(forecasts.Output):\n"
        "    def write(self, key, value):\n"
        "        super().write(key, value)\n"
        "        if self.writes == 3: os._exit(9)\n"
        "with Checkpoint('forecast', sys.argv[1]) as session:\n"
        "    forecasts.deterministic(forecasts.np.datetime64('2026-01-01'), 2, forecasts.Model(), Dying({}), session)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "killed")]
    assert subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode == 9
    whole, kept = Output({}), dict[Any, Any]()
    run("deterministic", tmp_path / "whole", whole, {})
    run("deterministic", tmp_path / "killed", Output(kept), {})
    assert list(kept) == list(whole.kept)[2:]
    assert equal(kept, {key: whole.kept[key] for key in kept})


@pytest.mark.skipif(find_spec("earth2studio") is None, reason="earth2studio is not installed")
def test_the_workflows_of_earth2studio_itself_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).parent / "earth2studio_side.py", tmp_path]

    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert said.count(": the same ") == 6


# --- what is better: the numbers are those of the semantics page


def test_1_and_3_a_restored_value_is_used_up_by_the_first_write_a_new_item_or_new_values(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(ModelState(1, ("a",), (2,)))
        session.bind(NoiseState(5))
        session.write()

    def fresh() -> tuple[Any, Any, Any]:
        session = Checkpoint("run", tmp_path).select(-1)
        return session, session.bind(ModelState()), session.bind(NoiseState())

    session, model, noise = fresh()
    session.write()
    assert (model.checkpoint_state_loaded, noise.checkpoint_state_loaded) == (False, False)
    session, model, noise = fresh()
    session.write_count = 0
    assert (model.checkpoint_state_loaded, noise.checkpoint_state_loaded) == (False, True)  # the next draw needs it
    session, model, noise = fresh()
    model.x = 2
    assert model.checkpoint_state_loaded
    model.coord_keys, model.coord_values = (), ()
    assert not model.checkpoint_state_loaded


def test_2_random_states_begin_as_the_item_began_and_go_on_as_the_last_one_ended(tmp_path: Path) -> None:
    for path, before, completed, restored in (
        ("inside", (), (), 10),
        ("ended", (), (0,), 20),
        ("one array of members", np.array([]), np.array([0]), 20),
        ("inside by count", 0, 0, 10),
        ("ended by count", 0, 1, 20),
        ("not said", None, None, 10),
    ):
        with Checkpoint("run", tmp_path / path) as session:
            noise = session.bind(NoiseState(10))
            session.write_count = 0
            noise.generator_state = 20  # drawn
            session.write(completed_ensembles=before)
            session.write(completed_ensembles=completed)
        assert Checkpoint("run", tmp_path / path).select(-1).bind(NoiseState()).generator_state == restored


def test_3_a_restored_value_is_not_used_by_a_call_beside_the_iterator(tmp_path: Path) -> None:
    def called(model: Model, x: Any) -> Any:
        restored = model.checkpoint.checkpoint_state_loaded
        return model.checkpoint.x if restored else x

    with Checkpoint("run", tmp_path) as session:
        iterator = Model().create_iterator(np.ones(3), {"lead_time": np.timedelta64(0, "h")})
        next(iterator)
        session.write()
    with Checkpoint("run", tmp_path) as session:
        model = Model()
        next(model.create_iterator(np.zeros(3), {"lead_time": np.timedelta64(0, "h")}))
        session.write()
        np.testing.assert_array_equal(called(model, np.full(3, 7.0)), np.full(3, 7.0))


@pytest.mark.parametrize("extra", [{}, {"note": 1}, {"lead_time": "again"}])
def test_4_a_write_of_ones_own_does_not_shift_the_place_to_go_on_from(tmp_path: Path, extra: Start) -> None:
    class Noted:
        """The session, to which the program writes once more at each lead time."""

        def __init__(self, session: Any) -> None:
            self.session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def __enter__(self) -> Any:
            self.session.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.session.__exit__(*error)

        def write(self, **metadata: Any) -> None:
            self.session.write(**metadata)
            self.session.write(**{name: metadata.get(name, value) for name, value in extra.items()})

    def forecast(root: Path, output: Output) -> None:
        checkpoint = Checkpoint("forecast", root, mode="append")
        with checkpoint as session:
            forecasts.deterministic(TIME, 4, Model(), output, Noted(session))

    whole = Output({})
    contextvars.Context().run(forecast, tmp_path / "whole", whole)
    for kill in range(1, whole.writes + 1):
        kept: dict[Any, Any] = {}
        with pytest.raises(Killed):
            contextvars.Context().run(forecast, tmp_path / str(kill), Output(kept, kill))
        contextvars.Context().run(forecast, tmp_path / str(kill), Output(kept))
        assert equal(kept, whole.kept), f"killed at write {kill}"


def test_4_an_older_row_goes_on_from_its_own_place(tmp_path: Path) -> None:
    whole, again = Output({}), Output({})
    run("deterministic", tmp_path, whole, {"mode": "append"})

    def older() -> None:
        with Checkpoint("forecast", tmp_path, mode="append").select(0) as session:
            forecasts.deterministic(TIME, STEPS, Model(), again, session)

    contextvars.Context().run(older)
    assert list(again.kept) == list(whole.kept)[1:]
    assert equal(again.kept, {key: whole.kept[key] for key in again.kept})


def test_5_the_outer_block_goes_on_after_an_inner_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path)
    with checkpoint as session:
        proxy = session.bind(Counter())
        session.write()
        with checkpoint:
            pass
        assert (proxy.checkpoint_write_count, proxy.checkpoint_selected) == (1, True)
        assert checkpoint.active is session


def test_6_two_states_of_one_class_collide_unless_they_have_names(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        bind_checkpoint_state(Counter(1))
        with pytest.raises(e2s.CheckpointStateCollision, match="name="):
            bind_checkpoint_state(Counter(2))
        bind_checkpoint_state(Counter(3), name="second")
        session.write()
    with Checkpoint("run", tmp_path):
        assert bind_checkpoint_state(Counter(), name="second").value == 3
        assert bind_checkpoint_state(Counter()).value == 1
    checkpoint = Checkpoint("run", tmp_path / "before")
    bind_checkpoint_state(Counter())
    with pytest.raises(e2s.CheckpointStateCollision):
        bind_checkpoint_state(Counter())
    with checkpoint as session:
        assert set(session.bound_states) == {f"{Counter.__module__}.Counter"}


def test_6_a_named_state_survives_the_renaming_of_its_class(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(3), name="counter")
        session.write()
    renamed = dataclasses.make_dataclass("Renamed", [("value", "Any", 0)])
    with Checkpoint("run", tmp_path) as session:
        assert session.bind(renamed(), name="counter").value == 3


def test_7_a_saved_state_that_nobody_bound_stays_in_the_next_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(1))
        session.bind(Other(generator))
        session.write()
    for _ in range(3):
        with Checkpoint("run", tmp_path) as session:
            session.bind(Counter())
            session.write()
            session.write()
    with Checkpoint("run", tmp_path) as session:
        assert session.bind(Other()).value.random() == generator.random()


def test_8_two_handles_on_one_path_lose_nothing_of_each_other(tmp_path: Path) -> None:
    one, two = (Checkpoint("run", tmp_path, mode="append") for _ in range(2))
    with one as first, two as second:
        for i in range(3):
            first.write(i=("one", i))
            second.write(i=("two", i))
    assert [entry.metadata["i"] for entry in one.catalog] == [(who, i) for i in range(3) for who in ("one", "two")]
    assert all(one.select(row).exists for row in range(6))


def test_8_another_process_is_told_that_the_path_is_taken(tmp_path: Path) -> None:
    program = (
        "import sys; from milepost.compat import earth2studio as e2s\n"
        "with e2s.Checkpoint('run', sys.argv[1]) as session:\n"
        "    try: session.write()\n"
        "    except e2s.CheckpointError as error: sys.exit('locked' in str(error) and session.write_count == 1 and 7)\n"
    )
    with Checkpoint("run", tmp_path) as session:
        session.write()
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
        assert done.returncode == 7
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 0


def test_8_a_selected_row_stays_until_its_states_are_read(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(np.arange(5)))
        session.write()
    reader = Checkpoint("run", tmp_path).select(-1)
    with Checkpoint("run", tmp_path) as session:
        session.write()
        session.write()
    np.testing.assert_array_equal(reader.bind(Counter()).value, np.arange(5))


@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_RANK": "3"},
        {"SLURM_PROCID": "2"},
        {"RANK": "1"},
        {"WORLD_SIZE": "4"},
        {"LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
    ],
)
def test_9_half_detected_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="rank"):
        Checkpoint("run")
    assert Checkpoint("run", rank=0, world_size=1).rank == 0


@pytest.mark.parametrize(
    ("variables", "given", "found"),
    [
        ({}, {}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, {}, (2, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, {"rank": 1}, (1, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, {"world_size": 8}, (2, 8)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, {}, (1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, {}, (3, 4)),
        ({"WORLD_SIZE": "1"}, {}, (0, 1)),
        ({}, {"world_size": 1}, (0, 1)),
    ],
)
def test_9_the_rank_is_found_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], given: dict[str, int], found: tuple[int, int]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    checkpoint = Checkpoint("run", **given)
    assert (checkpoint.rank, checkpoint.world_size) == found


def test_9_physicsnemo_is_asked_when_the_program_uses_it_and_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class DistributedManager:
        started = False
        rank, world_size, distributed = 3, 4, True

        @classmethod
        def is_initialized(cls) -> bool:
            return cls.started

    module = types.ModuleType("physicsnemo.distributed")
    module.DistributedManager = DistributedManager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert Checkpoint("run").world_size == 1
    DistributedManager.started = True
    assert (Checkpoint("run").rank, Checkpoint("run").world_size) == (3, 4)


def test_10_another_number_of_processes_is_told_so(tmp_path: Path) -> None:
    for rank in range(2):
        with Checkpoint("run", tmp_path, rank=rank, world_size=2) as session:
            session.write()
    assert len(Checkpoint("run", tmp_path, rank=1, world_size=2).catalog) == 1
    for rank, size in ((0, 1), (0, 4), (3, 4)):
        with pytest.raises(e2s.CheckpointError, match="process"):
            Checkpoint("run", tmp_path, rank=rank, world_size=size).__enter__()


def test_11_a_damaged_byte_is_found_and_a_lost_row_is_no_surprise(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    with checkpoint as session:
        state = session.bind(Counter(np.arange(1000.0)))
        session.write(i=0)
        state.value = state.value + 1
        session.write(i=1)
    pack = next((tmp_path / "1").glob("*.safetensors"))
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[-5] ^= 1
    pack.write_bytes(data)
    with pytest.raises(e2s.CheckpointError, match="damaged|digest"):
        checkpoint.select(-1).bind(Counter())
    kept = Counter()
    checkpoint.select(0).bind(kept)
    np.testing.assert_array_equal(kept.value, np.arange(1000.0))


def test_11_after_a_damaged_record_the_run_goes_on_from_the_row_before(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    with checkpoint as session:
        session.write(i=0)
        session.write(i=1)
    manifest = tmp_path / "1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes()[:-40])
    with pytest.warns(RuntimeWarning, match="left out"):
        session = checkpoint.select(-1)
    assert session.metadata == {"i": 0}
    session.write(i=2)
    with pytest.warns(RuntimeWarning, match="left out"):
        assert [entry.metadata["i"] for entry in checkpoint.catalog] == [0, 2]


def test_12_a_path_that_belongs_to_another_run_is_refused(tmp_path: Path) -> None:
    with Checkpoint("one", tmp_path) as session:
        session.write(i=1)
    for use in (lambda c: c.catalog, lambda c: c.__enter__(), lambda c: e2s.CheckpointSession(c).write()):
        with pytest.raises(e2s.CheckpointError, match="another run"):
            use(Checkpoint("two", tmp_path))
    assert Checkpoint("one", tmp_path).catalog[0].metadata == {"i": 1}


VALUES: dict[str, Any] = {
    "none": None, "bool": True, "int": 2**80, "float": -0.0, "nan": float("nan"), "text": "t2m", "bytes": b"\x00\xff",
    "complex": 1 - 2j, "path": PurePath("a/b"), "set": {1, 2}, "frozenset": frozenset({"a"}),
    "tuple": (1, (2, [3])), "dict": {"a": {"b": (1,)}}, "time": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "date": dt.date(2026, 1, 1), "delta": dt.timedelta(hours=6), "datetime64": TIME, "lead": np.timedelta64(6, "h"),
    "dtype": np.dtype("f4"), "torch dtype": torch.bfloat16, "device": torch.device("cpu"),
}  # fmt: skip
ARRAYS: dict[str, Any] = {
    "numpy": np.arange(6.0).reshape(2, 3), "text": np.array(["t2m", "z500"]),
    "times": np.array(["2026-01-01"], "M8[ns]"), "bf16": np.ones(3, jnp.bfloat16), "jax": jnp.arange(4.0),
    "jax bf16": jnp.ones(3, jnp.bfloat16), "torch": torch.arange(4.0),
    "torch bf16": torch.ones(3, dtype=torch.bfloat16), "fp8": torch.ones(3).to(torch.float8_e4m3fn),
    "complex": np.array([1j]), "empty": np.zeros((0, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_13_values_come_back_as_what_they_are(tmp_path: Path, name: str) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(VALUES[name]))
        session.write(it=VALUES[name])
    with Checkpoint("run", tmp_path) as session:
        for found in (session.bind(Counter()).value, session.metadata["it"]):
            assert repr(found).replace("PosixPath", "PurePosixPath").replace("PurePure", "Pure") == repr(VALUES[name])


@pytest.mark.parametrize("name", ARRAYS)
def test_13_arrays_of_every_framework_and_dtype_come_back(tmp_path: Path, name: str) -> None:
    array = ARRAYS[name]
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter([array]))
        session.write(it=(array, 1))
    with Checkpoint("run", tmp_path) as session:
        for found in (session.bind(Counter()).value[0], session.metadata["it"][0]):
            assert (type(found), found.dtype, found.shape) == (type(array), array.dtype, array.shape)
            assert found.tolist() == array.tolist()


@dataclasses.dataclass
class Rich:
    season: Season = Season.DRY
    chosen: Season | None = None
    torch_random: Any = None
    numpy_random: Any = None
    python_random: Any = None


def test_13_enums_and_random_generators_come_back(tmp_path: Path) -> None:
    state = Rich(Season.WET, Season.WET, torch.Generator(), np.random.default_rng(1), random.Random(2))
    with Checkpoint("run", tmp_path) as session:
        session.bind(state)
        session.write()
    own = np.random.default_rng()
    with Checkpoint("run", tmp_path) as session:
        again = session.bind(Rich(numpy_random=own))
        assert (again.season, again.chosen, again.numpy_random) == (Season.WET, Season.WET, own)
        assert own.random() == state.numpy_random.random()
        assert again.python_random.random() == state.python_random.random()
        drawn = [torch.rand(2, generator=each.torch_random) for each in (again, state)]
        assert torch.equal(*drawn)


def test_13_what_would_not_come_back_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        state = session.bind(Counter())
        for wrong in (Season.WET, lambda: 0, np.array([object()]), {"$kind": 1}):
            state.value = wrong
            with pytest.raises(e2s.CheckpointSerializationError):
                session.write()
    assert Checkpoint("run", tmp_path).catalog == ()


def test_13_the_door_opens_without_pytorch() -> None:
    program = (
        "import sys; import milepost.compat.earth2studio as e2s; e2s.Checkpoint('run'); e2s.NullCheckpoint().device;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@dataclasses.dataclass(frozen=True)
class Inner:
    x: Any = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    inner: Inner = Inner()
    y: Any = 0


def test_14_frozen_dataclasses_are_restored_nested_ones_in_place(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Frozen(Inner(3), 4))
        session.bind(Other([Inner(5)]))
        session.write()
    state = Frozen(Inner(), 0)
    inner = state.inner
    with Checkpoint("run", tmp_path) as session:
        session.bind(state)
        assert (state, inner.x) == (Frozen(Inner(3), 4), 3)
        assert session.bind(Other()).value == [{"x": 5}]  # a plain dict where none stands


def test_15_an_added_field_is_an_error_or_lenient_a_warning(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(dataclasses.make_dataclass("S", [("a", int, 0)])(1), name="s")
        session.write()
    grown = dataclasses.make_dataclass("S", [("a", int, 0), ("b", int, 7)])
    bare = dataclasses.make_dataclass("S", [("b", int), ("a", int, 0)])
    changed = dataclasses.make_dataclass("S", [("a", float, 0)])
    with Checkpoint("run", tmp_path) as session, pytest.raises(e2s.CheckpointStateSchemaError, match="b: not saved"):
        session.bind(grown(), name="s")
    with Checkpoint("run", tmp_path, on_schema="lenient") as session:
        for wrong in (bare(1), changed()):
            with pytest.raises(e2s.CheckpointStateSchemaError):
                session.bind(wrong, name="s")
        with pytest.warns(RuntimeWarning, match="b was not saved"):
            state = session.bind(grown(), name="s")
        assert (state.a, state.b) == (1, 7)
    with pytest.raises(ValueError, match="on_schema"):
        Checkpoint("run", tmp_path, on_schema="any")  # type: ignore[arg-type]


def test_15_the_order_of_fields_does_not_matter(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(dataclasses.make_dataclass("S", [("a", int, 0), ("b", int, 0)])(1, 2), name="s")
        session.write()
    turned = dataclasses.make_dataclass("S", [("b", int, 0), ("a", int, 0)])
    with Checkpoint("run", tmp_path) as session:
        state = session.bind(turned(), name="s")
        assert (state.a, state.b) == (1, 2)


def test_16_metadata_keeps_its_types_and_large_arrays_are_written_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    scores = np.random.default_rng(0).normal(size=100_000)
    with checkpoint as session:
        for i in range(3):
            session.write(nan=float("nan"), pair=(1, [2]), scores=scores, i=i)
    for row, entry in enumerate(checkpoint.catalog):
        assert entry.metadata["pair"] == (1, [2])
        np.testing.assert_array_equal(checkpoint.select(row).metadata["scores"], scores)
    for path in tmp_path.rglob("*.json"):
        assert path.stat().st_size < 20_000
        json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert sum({each.stat().st_ino: each.stat().st_size for each in tmp_path.rglob("*.safetensors")}.values()) < 1.1e6


def test_17_what_does_not_change_is_stored_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path, mode="append")
    with checkpoint as session:
        session.bind(Counter(np.random.default_rng(0).normal(size=100_000)))
        for _ in range(4):
            session.write()
    assert sum({each.stat().st_ino: each.stat().st_size for each in tmp_path.rglob("*.safetensors")}.values()) < 1.1e6


def test_18_the_records_of_a_commit_do_not_grow_with_the_rows(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path, mode="append") as session:
        for _ in range(20):
            session.write(i=1)
    sizes = [sum(f.stat().st_size for f in (tmp_path / str(step)).iterdir()) for step in (1, 19)]
    assert abs(sizes[1] - sizes[0]) < 50


def test_19_labels_can_be_set_and_rows_are_kept_by_label(tmp_path: Path) -> None:
    checkpoint = Checkpoint("run", tmp_path)
    with checkpoint as session:
        for member in range(3):
            session.labels["member"] = member
            session.write(step=0)
            session.write(step=1)
    assert [(entry.labels, entry.metadata) for entry in checkpoint.catalog] == [
        ({"member": member}, {"step": 1}) for member in range(3)
    ]
    assert checkpoint.select(1).labels == {"member": 1}
    assert "member" in repr(checkpoint)


def test_20_the_rows_are_checkpoints_of_milepost(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path, mode="append") as session:
        session.bind(Counter(np.arange(3)), name="counter")
        session.write(lead_time=np.timedelta64(6, "h"))
        session.write(lead_time=np.timedelta64(12, "h"))
    catalog = mp.open(tmp_path)
    assert list(catalog) == [0, 1]
    assert catalog[1].metadata["earth2studio"]["metadata"] == {"lead_time": np.timedelta64(12, "h")}
    assert catalog[1].verify().leaves > 0
    assert any(path.endswith("fields/value") for path in catalog[1].leaves)
    catalog.delete(0)
    assert len(Checkpoint("run", tmp_path, mode="append").catalog) == 1


def test_21_a_state_that_waits_for_another_checkpoint_is_told(tmp_path: Path) -> None:
    one = Checkpoint("one", tmp_path / "one")
    Checkpoint("two", tmp_path / "two")
    bind_checkpoint_state(Counter(1))
    with pytest.warns(RuntimeWarning, match="Counter: bound to 'two'.*not saved by 'one'"):
        one.__enter__()
    one.__exit__()


def test_21_a_component_made_in_a_thread_is_bound_to_the_open_session(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session, ThreadPoolExecutor(1) as pool:
        proxy = pool.submit(bind_checkpoint_state, Counter(5)).result()
        assert session.bound_states == {proxy.checkpoint_state_id: proxy}
        session.write()
    with Checkpoint("run", tmp_path) as session, Checkpoint("other", tmp_path / "other"), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(bind_checkpoint_state, Counter()).result().checkpoint_enabled  # which one, nobody knows
    with Checkpoint("run", tmp_path):
        assert bind_checkpoint_state(Counter()).value == 5


def test_23_a_component_that_does_not_opt_in_is_bound_from_outside(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Held:
        """Components as they are: what has a state of its own is saved by it, and restored in place."""

        model: Any
        noise: Any
        queue: Any = None

    def made(seed: int) -> Held:
        torch.manual_seed(seed)
        return Held(torch.nn.Linear(2, 1), np.random.default_rng(seed), {"inner": [1]})

    first, second = made(1), made(2)
    first.noise.random(3)
    with Checkpoint("run", tmp_path) as session:
        session.bind(first, name="held")
        session.write()
    model, noise = second.model, second.noise
    with Checkpoint("run", tmp_path) as session:
        session.bind(second, name="held")
    assert second.model is model
    assert torch.equal(model.weight, first.model.weight)
    assert noise.random() == first.noise.random()


def test_22_a_late_bind_says_what_it_means(tmp_path: Path) -> None:
    with Checkpoint("run", tmp_path) as session:
        session.bind(Counter(1))
        session.write()
    with Checkpoint("run", tmp_path) as session:
        session.write()
        with pytest.warns(RuntimeWarning, match="after writes"):
            state = session.bind(Counter())
        assert (state.value, state.checkpoint_state_loaded) == (1, False)


def test_rows_of_the_original_are_not_begun_anew_beside(tmp_path: Path) -> None:
    (tmp_path / "catalog.json").write_text('{"version": 1, "entries": []}')

    with pytest.raises(e2s.CheckpointError, match="Earth2Studio itself"):
        Checkpoint("run", tmp_path).__enter__()


def test_the_example_restarts_a_forecast_after_its_first_step(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "earth2studio_restart.py"

    def started(folder: str, steps: int) -> str:
        command = [sys.executable, "-W", "error", example, tmp_path / folder, "--steps", str(steps)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert started("whole", 3).startswith("begins")
    assert started("resumed", 1).startswith("begins")
    assert started("resumed", 3).startswith("goes on after 6 hours")
    fields = [sorted((tmp_path / folder / "fields").iterdir()) for folder in ("whole", "resumed")]
    assert [path.name for path in fields[0]] == ["000h.npy", "006h.npy", "012h.npy", "018h.npy"]
    assert [path.read_bytes() for path in fields[0]] == [path.read_bytes() for path in fields[1]]
