# SPDX-License-Identifier: Apache-2.0
"""The front door of KempnerForge: its names, what its documents say, and what is better."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

import milepost as mp
from milepost.compat import kempnerforge
from milepost.compat.kempnerforge import (
    AsyncCheckpointer,
    AsyncCheckpointMode,
    CheckpointConfig,
    CheckpointManager,
    DynamicCheckpointWindow,
    ShutdownHandler,
    build_train_state,
    get_rng_state,
    registry,
    resolve_resume_path,
    restore_train_state,
    set_rng_state,
)
from milepost.compat.kempnerforge.async_checkpointer import staged


class Parts:
    """A model, its optimizer and a scheduler, some steps into a training."""

    def __init__(self, steps: int = 0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4])
        for _ in range(steps):
            self.train()

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.rand(5, 3)).square().sum().backward()
        self.optimizer.step()
        self.scheduler.step()

    def weights(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def moments(self, index: int) -> torch.Tensor:
        return self.optimizer.state_dict()["state"][index]["exp_avg"].clone()

    def manager(self, root: Path, **settings: Any) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(dir=str(root), **settings), self.model, self.optimizer)


class Loader:
    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def steps(root: Path) -> list[int]:
    return sorted(mp.open(root))


def damage(root: Path, step: int) -> None:
    """Flip a bit in every pack of a step."""
    for pack in (root / f"step_{step}").glob("*.safetensors"):
        data = bytearray(pack.read_bytes())
        data[-1] ^= 1
        pack.chmod(0o644)
        pack.unlink()  # its other names keep what they have
        pack.write_bytes(data)


# Names.


def test_names_and_signatures_are_those_of_the_documents() -> None:
    config = {f.name: f.default for f in dataclasses.fields(CheckpointConfig) if f.name != "exclude_from_loading"}
    assert config == {
        "dir": "checkpoints", "interval": 1000, "dyn_ckpt_window": None, "async_mode": AsyncCheckpointMode.disabled,
        "keep_last_n": 3, "load_path": None, "export_dtype": "bfloat16", "ignore_freeze_mismatch": False,
    }  # fmt: skip
    assert list(inspect.signature(CheckpointConfig).parameters)[-2:] == [
        "exclude_from_loading",
        "ignore_freeze_mismatch",
    ]
    assert CheckpointConfig().exclude_from_loading == []
    assert DynamicCheckpointWindow() == DynamicCheckpointWindow(start=0, stop=512, strategy="power2")
    assert {mode.name: mode.value for mode in AsyncCheckpointMode} == {
        "disabled": "disabled", "async_": "async", "async_pinned": "async_with_pinned_mem",
    }  # fmt: skip
    expected = {
        CheckpointManager: "config model optimizer process_group=None pp_rank=None",
        CheckpointConfig.should_save: "self step",
        CheckpointConfig.is_dynamic_milestone: "self step",
        DynamicCheckpointWindow: "start=0 stop=512 strategy=power2",
        DynamicCheckpointWindow.is_milestone: "self step",
        CheckpointManager.save: "self step tokens_seen=0 scheduler=None dataloader=None extra=None",
        CheckpointManager.load: "self path=None scheduler=None dataloader=None exclude_keys=None"
        " vlm_freeze_expected=None",
        CheckpointManager.wait: "self",
        CheckpointManager.flush_pending_save: "self",
        CheckpointManager.peek_saved_step: "self path=None",
        CheckpointManager.apply_dataloader_state: "self loader",
        AsyncCheckpointer: "mode=disabled",
        AsyncCheckpointer.save: "self state_dict checkpoint_id process_group=None",
        ShutdownHandler: "timeout_sec=600",
        build_train_state: "step tokens_seen scheduler=None dataloader=None extra=None",
        restore_train_state: "state scheduler=None dataloader=None",
        resolve_resume_path: "dir",
    }
    for function, text in expected.items():
        parameters = inspect.signature(function).parameters.values()
        found = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
        assert " ".join(found) == text, function


# Configuration.


def test_a_window_decides_alone_inside_of_it_and_the_interval_outside() -> None:
    config = CheckpointConfig(interval=100, dyn_ckpt_window=DynamicCheckpointWindow(10, 30))

    assert [step for step in range(301) if config.should_save(step)] == [0, 10, 11, 12, 14, 18, 26, 100, 200, 300]
    assert [step for step in range(301) if config.is_dynamic_milestone(step)] == [10, 11, 12, 14, 18, 26]
    assert not CheckpointConfig().is_dynamic_milestone(0)


def test_wrong_configurations_are_value_errors() -> None:
    with pytest.raises(ValueError, match="interval"):
        CheckpointConfig(interval=0)
    with pytest.raises(ValueError, match="start"):
        DynamicCheckpointWindow(start=-1)
    with pytest.raises(ValueError, match="stop"):
        DynamicCheckpointWindow(start=5, stop=4)
    with pytest.raises(ValueError, match=r"registered: .*power2"):
        DynamicCheckpointWindow(strategy="fibonacci")


def test_strategies_are_registered_once_and_never_reach_outside_the_window() -> None:
    registry.register_dyn_ckpt_strategy("always")(lambda window, step: True)
    window = DynamicCheckpointWindow(0, 30, "always")

    assert window.is_milestone(30) and not window.is_milestone(1000)
    assert "always" in registry.list_dyn_ckpt_strategies()
    with pytest.raises(ValueError, match="registered already"):
        registry.register_dyn_ckpt_strategy("always")(lambda window, step: False)
    with pytest.raises(KeyError, match="power2"):
        registry.get_dyn_ckpt_strategy("none")


# Saving and loading.


@pytest.mark.parametrize("mode", list(AsyncCheckpointMode))
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(root: Path, mode: AsyncCheckpointMode) -> None:
    straight, loader = Parts(3), Loader()
    loader.seen = 3
    manager = straight.manager(root, async_mode=mode)
    assert manager.save(3, 300, straight.scheduler, loader, {"epoch": 2}) is None
    manager.wait()
    straight.train()

    other, again = Parts(seed=9), Loader()
    found = other.manager(root).load(resolve_resume_path(root), other.scheduler, again)
    other.train()

    assert found == (3, 300, {"epoch": 2})
    assert again.seen == 3
    assert same(straight.weights(), other.weights())
    assert straight.scheduler.state_dict() == other.scheduler.state_dict()
    assert torch.equal(straight.moments(0), other.moments(0))


def test_nothing_to_load_is_a_fresh_start(root: Path) -> None:
    parts = Parts()

    assert parts.manager(root).load() == (0, 0, {})
    assert parts.manager(root).peek_saved_step() is None
    assert resolve_resume_path(root) is None


def test_the_folder_looks_as_it_did(root: Path) -> None:
    manager = Parts(1).manager(root)
    manager.save(5)
    manager.save(7)

    assert os.readlink(root / "latest") == "step_7"
    assert resolve_resume_path(root) == root / "step_7"
    assert manager.peek_saved_step() == 7
    assert manager.peek_saved_step(root / "step_5") == 5


def test_a_path_wins_over_load_path_which_wins_over_the_newest(root: Path, tmp_path: Path) -> None:
    parts = Parts(1)
    for place, numbers in ((root, (1, 2)), (tmp_path / "other", (8, 9))):
        manager = parts.manager(place)
        for step in numbers:
            manager.save(step)
        manager.wait()
    configured = parts.manager(root, load_path=str(tmp_path / "other" / "step_8"))

    assert parts.manager(root).load()[0] == 2
    assert configured.load()[0] == 8
    assert configured.load(root / "step_1")[0] == 1
    assert configured.load(tmp_path / "other" / "latest")[0] == 9


def test_parts_can_be_left_out_by_exclude_keys(root: Path) -> None:
    saved, parts = Parts(2), Parts(seed=4)
    saved.manager(root).save(2)
    before = parts.weights()

    parts.manager(root).load(exclude_keys=["model"])
    assert same(parts.weights(), before) and torch.equal(parts.moments(0), saved.moments(0))


def test_a_loader_that_comes_later_gets_its_position_once(root: Path) -> None:
    parts, loader, late = Parts(1), Loader(), Loader()
    loader.seen = 4
    parts.manager(root).save(1, dataloader=loader)
    manager = parts.manager(root)
    manager.load()

    manager.apply_dataloader_state(None)
    manager.apply_dataloader_state(late)
    assert late.seen == 0  # cleared by the first, as it was
    manager.load()
    manager.apply_dataloader_state(late)
    assert late.seen == 4


def test_a_pipeline_stage_finds_its_own_part(root: Path) -> None:
    parts, other = Parts(1), Parts(seed=3)
    config = CheckpointConfig(dir=str(root))
    CheckpointManager(config, parts.model, parts.optimizer, pp_rank=1).save(4)

    assert CheckpointManager(config, other.model, other.optimizer, pp_rank=1).load()[0] == 4
    assert same(parts.weights(), other.weights())
    assert any(path.startswith("pp1/model/") for path in mp.open(root)[4].leaves)


def test_other_frozen_modules_are_refused_before_anything_changes(root: Path, caplog: Any) -> None:
    parts = Parts(1)
    frozen = [{"module": "vision", "frozen": True}, {"module": "old", "frozen": True}]
    parts.manager(root).save(1, extra={"vlm_freeze": frozen})
    parts.train()
    before = parts.weights()
    now = [{"module": "vision", "frozen": False}, {"module": "new", "frozen": True}]

    with pytest.raises(ValueError, match=r"vision: saved True, now False; only saved: old; only now: new"):
        parts.manager(root).load(vlm_freeze_expected=now)
    assert same(parts.weights(), before)
    assert parts.manager(root).load(vlm_freeze_expected=now[1:])[0] == 1  # compared where both know a module
    with caplog.at_level(logging.WARNING, "milepost"):
        assert parts.manager(root, ignore_freeze_mismatch=True).load(vlm_freeze_expected=now)[0] == 1
    assert "VLM freeze mismatch" in caplog.text


def test_freezing_rules_that_cannot_be_read_are_said_and_not_checked(root: Path, caplog: Any) -> None:
    parts = Parts(1)
    parts.manager(root).save(1)
    mp.open(root).annotate(1, metadata={"vlm_freeze": [{"name": "vision"}]})

    with caplog.at_level(logging.WARNING, "milepost"):
        assert parts.manager(root).load(vlm_freeze_expected=[{"module": "vision", "frozen": True}])[0] == 1
    assert "vlm_freeze cannot be read" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, when its compiler is imported
def test_a_compiled_model_and_a_plain_one_share_their_checkpoints(root: Path) -> None:
    trained, plain = Parts(1), Parts(seed=3)
    compiled = CheckpointManager(CheckpointConfig(dir=str(root)), torch.compile(trained.model), trained.optimizer)
    compiled.save(1)
    compiled.wait()

    plain.manager(root).load()
    assert same(plain.weights(), trained.weights())
    assert compiled.load()[0] == 1


def test_activation_checkpointing_does_not_change_the_names_to_exclude(root: Path) -> None:
    saved, parts = Parts(2), Parts(seed=4)
    saved.manager(root).save(2)
    parts.model[1] = checkpoint_wrapper(parts.model[1])

    parts.manager(root, exclude_from_loading=["1.weight"]).load()
    assert torch.equal(parts.model[1].bias, saved.model[1].bias)
    assert not torch.equal(parts.model[1].weight, saved.model[1].weight)
    assert sorted(parts.optimizer.state_dict()["state"]) == [0, 1, 3]


def test_a_manager_shows_what_it_was_made_of(root: Path) -> None:
    parts, config = Parts(), CheckpointConfig(dir=str(root))
    manager = CheckpointManager(config, parts.model, parts.optimizer)

    assert manager.config is config and manager.model is parts.model and manager.optimizer is parts.optimizer
    assert manager.base_dir == root


def test_random_states_come_back(root: Path) -> None:
    state = get_rng_state()
    assert {"python", "numpy", "torch_cpu"} <= state.keys()
    first = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    set_rng_state(state)
    Parts().manager(root)  # seeds torch
    set_rng_state(state)

    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first  # noqa: NPY002


def test_a_train_state_goes_there_and_back() -> None:
    loader, other = Loader(), Loader()
    loader.seen = 2
    state = build_train_state(5, 50, None, loader, {"best": 0.5})

    assert restore_train_state(state, None, other) == (5, 50, {"best": 0.5})
    assert other.seen == 2
    with pytest.raises(ValueError, match="rng"):
        build_train_state(5, 50, extra={"rng": 1})


# Weaknesses of the original, by number.


def test_1_pinned_mode_takes_device_tensors_through_page_locked_memory(caplog: Any) -> None:
    model, moved = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)), list[torch.Size]()
    model[1].weight = model[0].weight

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.shape)
        return tensor.detach().clone()

    taken = staged({"model": model}, move)["model"].state_dict()

    assert same(taken, model.state_dict())
    assert len(moved) == 3 and taken["0.weight"] is taken["1.weight"]
    if not torch.cuda.is_available():
        AsyncCheckpointer(AsyncCheckpointMode.async_)
        assert "CUDA" not in caplog.text
        AsyncCheckpointer(AsyncCheckpointMode.async_pinned)
        assert "there is no CUDA device" in caplog.text


@pytest.mark.parametrize("prefix", ["1", "1.", "model.1", "model.1."])
def test_2_exclude_from_loading_leaves_keys_as_they_are(root: Path, prefix: str) -> None:
    saved, parts = Parts(2), Parts(seed=4)
    saved.manager(root).save(2)
    before = parts.weights()

    parts.manager(root, exclude_from_loading=[prefix]).load()
    assert torch.equal(parts.model[0].weight, saved.model[0].weight)
    assert torch.equal(parts.model[1].weight, before["1.weight"])
    assert (2 in parts.optimizer.state_dict()["state"]) == prefix.startswith("model")  # the moments of 1.weight


def test_2_a_new_head_of_another_shape_loads_without_the_old_one(root: Path) -> None:
    saved, parts = Parts(2), Parts(seed=4)
    saved.manager(root).save(2)
    parts.model[1] = torch.nn.Linear(4, 7)
    parts.optimizer = torch.optim.AdamW(parts.model.parameters())

    with pytest.raises(mp.StructureError, match=r"1\.weight"):
        parts.manager(root).load()
    parts.manager(root, exclude_from_loading=["1"]).load()

    assert torch.equal(saved.model[0].weight, parts.model[0].weight)
    parts.model(torch.ones(1, 3)).sum().backward()
    parts.optimizer.step()  # with new moments for the head, and the saved ones for the rest
    assert [float(parts.optimizer.state[p]["step"]) for p in parts.model.parameters()] == [3, 3, 1, 1]


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_2_export_dtype_is_the_type_of_what_is_exported(tmp_path: Path, dtype: Any, expected: torch.dtype) -> None:
    parts = Parts(1)
    parts.model.register_buffer("count", torch.tensor([3]))

    path = parts.manager(tmp_path / "root", export_dtype=dtype).export(tmp_path / "hf")
    weights = load_file(path)
    assert weights["0.weight"].dtype == expected and weights["count"].tolist() == [3]
    assert torch.equal(weights["0.weight"], parts.model[0].weight.to(expected))


def test_2_tied_weights_are_exported_under_each_name_and_another_type_is_refused(tmp_path: Path) -> None:
    parts = Parts()
    parts.model.append(parts.model[0])

    weights = load_file(parts.manager(tmp_path, export_dtype="float32").export(tmp_path))
    assert torch.equal(weights["0.weight"], weights["2.weight"])
    with pytest.raises(ValueError, match="export_dtype='int8'"):
        parts.manager(tmp_path, export_dtype="int8").export(tmp_path)


def test_3_resuming_by_path_goes_back_past_a_damaged_checkpoint(root: Path) -> None:
    parts = Parts(1)
    manager = parts.manager(root)
    manager.save(1)
    good = parts.weights()
    parts.train()
    manager.save(2)
    manager.wait()
    (root / "step_9").mkdir()  # a save that never got further
    damage(root, 2)

    path = resolve_resume_path(root)
    assert path == root / "step_2"
    with pytest.warns(RuntimeWarning, match="going back"):
        assert parts.manager(root).load(path)[0] == 1
    assert same(parts.weights(), good)


def test_4_a_failed_save_is_said_once_and_the_next_one_works(root: Path) -> None:
    parts = Parts(1)
    manager = parts.manager(root, async_mode=AsyncCheckpointMode.async_)
    manager.save(1)
    manager.wait()
    moved = root.rename(root.with_name("moved"))
    root.write_text("a file where the folder was")
    try:
        with pytest.raises((mp.CheckpointError, OSError)):
            manager.save(2)
            manager.wait()
    finally:
        root.unlink()
        moved.rename(root)
    manager.wait()
    manager.save(3)
    manager.wait()

    assert steps(root) == [1, 3] and os.readlink(root / "latest") == "step_3"


def test_5_an_async_save_is_committed_when_it_is_written_without_another_call(root: Path) -> None:
    parts = Parts(1)
    manager = parts.manager(root, async_mode=AsyncCheckpointMode.async_)
    manager.save(1)
    found = next(iter(mp.open(root).watch(poll_s=0.01, timeout_s=30)))

    assert found.step == 1
    manager.wait()
    writer = AsyncCheckpointer(AsyncCheckpointMode.async_)
    writer.save({"w": torch.ones(2)}, root / "step_2")
    next(iter(mp.open(root).watch(after=1, poll_s=0.01, timeout_s=30)))
    writer.wait()
    assert not writer.is_pending


def test_6_a_step_saved_again_stays_whole_until_the_new_one_is(root: Path) -> None:
    parts = Parts(1)
    manager = parts.manager(root)
    manager.save(1)
    old = mp.open(root)[1]
    with old.lease():  # somebody is reading
        parts.train()
        manager.save(1, 10)
        old.verify()

    path = resolve_resume_path(root)
    assert path == root / "step_1.g2"
    assert parts.manager(root).load(path, exclude_keys=["model", "optimizer"])[:2] == (1, 10)


def test_6_training_on_from_an_older_step_replaces_the_newer_ones(root: Path) -> None:
    parts = Parts(1)
    manager = parts.manager(root)
    for step in (10, 20, 30):
        manager.save(step)
    assert manager.load(root / "step_10")[0] == 10
    manager.save(15)

    assert resolve_resume_path(root) == root / "step_15"
    assert parts.manager(root).load()[0] == 15


def test_7_weights_alone_can_be_loaded_by_leaving_the_optimizer_out(root: Path, tmp_path: Path) -> None:
    saved, parts = Parts(2), Parts(seed=4)
    mp.save(tmp_path / "weights", {"model": saved.model}, step=7)
    load_path = str(tmp_path / "weights")

    with pytest.raises(mp.StructureError):
        parts.manager(root, load_path=load_path).load()
    found = parts.manager(root, load_path=load_path, exclude_from_loading=["optimizer"]).load()
    assert found == (7, 0, {})  # 13: the step is known although there is no train state
    assert same(parts.weights(), saved.weights())


def test_9_milestones_take_no_place_of_the_last_n_and_stay_when_the_window_is_gone(root: Path) -> None:
    parts = Parts(1)
    window = DynamicCheckpointWindow(0, 4)
    manager = parts.manager(root, keep_last_n=2, interval=10, dyn_ckpt_window=window)
    for step in (0, 1, 2, 3, 4, 10, 20, 30):
        manager.save(step)
    assert steps(root) == [0, 1, 2, 4, 20, 30]
    assert mp.open(root)[4].reason == "milestone" and mp.open(root)[30].reason == "every 10 steps"
    (root / "step_bak").mkdir()
    manager.wait()

    later = parts.manager(root, keep_last_n=1)
    later.load()
    later.save(40)
    assert steps(root) == [0, 1, 2, 4, 40]


def test_keep_last_n_of_zero_keeps_all(root: Path) -> None:
    manager = Parts(1).manager(root, keep_last_n=0)
    for step in range(5):
        manager.save(step)

    assert steps(root) == [0, 1, 2, 3, 4]


def test_10_random_states_and_positions_are_those_of_each_process(root: Path) -> None:
    loader = Loader()
    Parts().manager(root).save(1, dataloader=loader)

    assert (root / "step_1" / "leaves.json").read_text().count('"per_process"') == 2


def test_11_nothing_that_is_stored_can_run(root: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.abort, ()

    with pytest.raises(mp.UnsupportedLeafError, match="evil"):
        Parts().manager(root).save(1, extra={"evil": Evil()})


def test_13_a_path_that_is_not_there_is_an_error(root: Path) -> None:
    parts = Parts()

    with pytest.raises(FileNotFoundError, match="nowhere"):
        parts.manager(root, load_path=str(root / "nowhere")).load()
    with pytest.raises(FileNotFoundError, match="step_5"):
        parts.manager(root).load(root / "step_5")


def test_15_checkpoints_can_be_listed_annotated_and_checked(root: Path) -> None:
    Parts(1).manager(root).save(1, 64)
    runs = mp.open(root)
    runs.annotate(1, metrics={"eval": {"loss": 0.5}})

    assert runs[1].metadata["tokens_seen"] == 64 and runs.best("eval.loss").step == 1
    assert runs[1].verify().leaves == len(runs[1].leaves)
    assert "latest" in str(runs)


def test_16_a_second_resume_within_an_epoch_is_aligned_with_fresh_optimizers(root: Path) -> None:
    parts, loader = Parts(2), Loader()
    for step in (2, 3):
        loader.seen = step
        manager = parts.manager(root)
        manager.save(step, dataloader=loader)
        manager.wait()
        moments, parts, loader = parts.moments(0), Parts(seed=5), Loader()
        assert parts.manager(root).load(dataloader=loader)[0] == step
        assert loader.seen == step and torch.equal(parts.moments(0), moments)
        parts.train()


def test_16_latest_never_points_at_what_is_not_there(root: Path) -> None:
    parts = Parts(1)
    manager = parts.manager(root, async_mode=AsyncCheckpointMode.async_, keep_last_n=2)
    for step in range(1, 6):
        manager.save(step)
        pointed = root / "latest"
        assert not pointed.is_symlink() or (pointed / "manifest.json").exists()
    manager.wait()

    assert os.readlink(root / "latest") == "step_5" and steps(root) == [4, 5]


def test_17_the_page_names_all_there_is_and_the_defaults_are_those_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "doors" / "kempnerforge.md").read_text()

    assert [name for name in kempnerforge.__all__ if f"| `{name}" not in page and f", `{name}`" not in page] == []
    assert CheckpointConfig().async_mode == "disabled" and CheckpointConfig(keep_last_n=0).keep_last_n == 0


def old_checkpoint(folder: Path, parts: Parts) -> None:
    """Write what KempnerForge writes, with the functions of PyTorch that it calls."""
    state = {
        "model": get_model_state_dict(parts.model),
        "optimizer": get_optimizer_state_dict(parts.model, parts.optimizer),
    }
    dcp.save(state, checkpoint_id=folder)
    torch.save(build_train_state(2, 20, parts.scheduler, None, {"epoch": 1}), folder / "train_state.pt")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_way_to_bring_old_checkpoints_along(tmp_path: Path) -> None:
    old, new, again = Parts(2), Parts(seed=7), Parts(seed=8)
    old_checkpoint(tmp_path / "old" / "step_2", old)
    with pytest.raises(mp.FormatError, match="KempnerForge itself"):
        new.manager(tmp_path / "old").load()

    dcp_to_torch_save(tmp_path / "old" / "step_2", tmp_path / "whole.pt")
    state = torch.load(tmp_path / "whole.pt")
    set_model_state_dict(new.model, state["model"])
    set_optimizer_state_dict(new.model, new.optimizer, optim_state_dict=state["optimizer"])
    train = torch.load(tmp_path / "old" / "step_2" / "train_state.pt", weights_only=False)
    step, tokens, extra = restore_train_state(train, new.scheduler)
    new.manager(tmp_path / "new").save(step, tokens, new.scheduler, extra=extra)

    assert again.manager(tmp_path / "new").load(scheduler=again.scheduler) == (2, 20, {"epoch": 1})
    assert same(again.weights(), old.weights()) and torch.equal(again.moments(3), old.moments(3))
    assert again.scheduler.state_dict() == old.scheduler.state_dict()


def test_checkpoints_of_the_original_are_not_taken_for_nothing(root: Path) -> None:
    (root / "step_5").mkdir(parents=True)
    (root / "step_5" / ".metadata").touch()

    with pytest.raises(mp.FormatError, match="KempnerForge itself"):
        resolve_resume_path(root)


def test_8_a_group_of_processes_is_refused_not_half_saved(root: Path) -> None:
    config = CheckpointConfig(dir=str(root))
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        alone = torch.distributed.new_group([0])
        CheckpointManager(config, None, None, process_group=alone)
        with pytest.raises(mp.StorageError, match="2 processes"):
            CheckpointManager(config, None, None)
        with pytest.raises(mp.StorageError, match="2 processes"):
            AsyncCheckpointer().save({}, root / "step_1")
    finally:
        torch.distributed.destroy_process_group()


# Shutdown.


def test_a_signal_sets_the_flag_and_finish_puts_everything_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    handler = ShutdownHandler(timeout_sec=60)
    handler.register()
    handler.register()
    assert not handler.should_shutdown()
    signal.raise_signal(signal.SIGUSR1)

    assert handler.should_shutdown() and handler.shutdown_requested
    assert handler.signal_received is signal.SIGUSR1
    handler.finish()
    handler.unregister()
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(("timeout", "code"), [("0.05", 1), ("0", 0)])
def test_a_process_that_does_not_finish_is_ended_unless_the_timeout_is_zero(timeout: str, code: int) -> None:
    program = (
        "import signal, threading; from milepost.compat.kempnerforge import ShutdownHandler as H\n"
        f"h = H({timeout}); h.register(); signal.raise_signal(signal.SIGTERM)\n"
        f"threading.Event().wait({20 if code else 0.2}); assert h.should_shutdown()"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == code
