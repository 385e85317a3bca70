# SPDX-License-Identifier: Apache-2.0
"""Random programs of a user's kind behave the same through both doors as through Orbax, call by call."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milepost.compat.orbax as door
import milepost.compat.orbax_v1 as door_v1

ocp: Any = pytest.importorskip("orbax.checkpoint")

# The original warns of many things.
pytestmark = pytest.mark.filterwarnings("ignore")

CALLS = 9
METRICS = [None, {"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}]


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call gave, or the builtin types of what it raised."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 compared
        return [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]


# --- v0


def options_v0(api: Any, choose: random.Random) -> dict[str, Any]:
    policies = api.checkpoint_managers
    options: dict[str, Any] = {
        "enable_async_checkpointing": False,
        "save_interval_steps": choose.choice([1, 1, 2, 3]),
        "save_on_steps": choose.choice([None, [5, 8]]),
        "step_prefix": choose.choice([None, None, "ck"]),
        "step_format_fixed_length": choose.choice([None, None, 4]),
    }
    if choose.random() < 0.5:
        # Without `best_fn` Orbax stores no metrics, and so the doors differ.
        options |= {
            "best_fn": lambda metrics: metrics["loss"],
            "best_mode": choose.choice(["min", "max"]),
            "keep_checkpoints_without_metrics": choose.random() < 0.5,
        }
    if choose.random() < 0.2:
        options["should_save_fn"] = lambda step, _: step % 3 == 1
    if choose.random() < 0.3:
        preserved = [policies.LatestN(1), policies.EveryNSteps(4)]
        options["preservation_policy"] = choose.choice(
            [policies.LatestN(2), policies.AnyPreservationPolicy(preserved), policies.EveryNStepsClosest(4)]
        )
    else:
        options |= {"max_to_keep": choose.choice([0, 1, 2, 3, None]), "keep_period": choose.choice([None, None, 3])}
    return options


class ProgramV0:
    """A program against a manager of one of the libraries, and all that it sees."""

    def __init__(self, api: Any, folder: Path, seed: int) -> None:
        self.api, self.folder, self.choose = api, folder, random.Random(seed)
        self.options = options_v0(api, self.choose)
        self.step = self.choose.randrange(3)
        self.reopen()

    def run(self) -> list[Any]:
        told: list[Any] = []
        for _ in range(CALLS):
            what = self.choose.choice(["save", "save", "save", "save", "delete", "reload", "reopen", "restore"])
            told.append((what, outcome(getattr(self, what)), self.seen()))
        self.manager.close()
        return told

    def seen(self) -> Any:
        steps = list(self.manager.all_steps())
        metrics = [self.manager.metrics(step) for step in steps] if "best_fn" in self.options else None
        return steps, self.manager.latest_step(), self.manager.best_step(), metrics

    def save(self) -> Any:
        step, metrics, force = self.step, self.choose.choice(METRICS), self.choose.random() < 0.15
        self.step += self.choose.choice([1, 1, 2])
        tree = self.api.args.StandardSave({"w": np.full(2, step)})
        return self.manager.should_save(step), self.manager.save(step, args=tree, metrics=metrics, force=force)

    def delete(self) -> Any:
        return self.manager.delete(self.choose.choice(self.manager.all_steps() or [99]))

    def restore(self) -> Any:
        return self.manager.restore(None, args=self.api.args.StandardRestore())["w"].tolist()

    def reload(self) -> None:
        self.manager.reload()

    def reopen(self) -> None:
        if hasattr(self, "manager"):
            self.manager.close()
        options = self.api.CheckpointManagerOptions(**self.options)
        self.manager = self.api.CheckpointManager(self.folder, options=options)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_program_sees_the_same_through_the_v0_door(tmp_path: Path, seed: int) -> None:
    assert ProgramV0(door, tmp_path / "ours", seed).run() == ProgramV0(ocp, tmp_path / "theirs", seed).run()


# --- v1


def options_v1(api: Any, choose: random.Random) -> dict[str, Any]:
    save, keep = api.training.save_decision_policies, api.training.preservation_policies
    best = keep.BestN(
        get_metric_fn=lambda metrics: metrics["loss"], reverse=choose.random() < 0.5, n=choose.choice([0, 1, 2, None]),
        keep_checkpoints_without_metrics=choose.random() < 0.5,
    )  # fmt: skip
    decided = [
        None, save.FixedIntervalPolicy(2), save.SpecificStepsPolicy([1, 4, 6]), save.InitialSavePolicy(),
        save.AnySavePolicy([save.InitialSavePolicy(), save.FixedIntervalPolicy(3)]),
    ]  # fmt: skip
    preserved = [
        None, best, keep.LatestN(2), keep.EveryNSteps(3), keep.EveryNSteps(2, exact_interval=False, max_to_keep=2),
        keep.EveryNStepsClosest(4), keep.CustomSteps([1, 5]), keep.LatestDuration(dt.timedelta(hours=1)),
        keep.AnyPreservationPolicy([keep.LatestN(1), keep.EveryNSteps(4)]),
    ]  # fmt: skip
    names = api.path.step.standard_name_format(
        step_prefix=choose.choice([None, "ck"]), step_format_fixed_length=choose.choice([None, 4])
    )
    return {
        "save_decision_policy": choose.choice(decided),
        "preservation_policy": choose.choice(preserved),
        "step_name_format": choose.choice([None, names]),
    }


class ProgramV1:
    """A program against a Checkpointer of one of the libraries, and all that it sees."""

    def __init__(self, api: Any, folder: Path, seed: int) -> None:
        self.api, self.folder, self.choose = api, folder, random.Random(seed)
        self.options = options_v1(api, self.choose)
        self.step = self.choose.randrange(3)
        self.reopen()

    def run(self) -> list[Any]:
        told: list[Any] = []
        for _ in range(CALLS):
            what = self.choose.choice(["save"] * 4 + ["again", "over", "delete", "reload", "reopen", "load"])
            told.append((what, outcome(getattr(self, what)), self.seen()))
        self.ckptr.close()
        return told

    def seen(self) -> Any:
        steps = [(each.step, each.metrics) for each in self.ckptr.checkpoints]
        return steps, None if self.ckptr.latest is None else self.ckptr.latest.step

    def save(self) -> Any:
        step, metrics, force = self.step, self.choose.choice(METRICS), self.choose.random() < 0.15
        self.step += self.choose.choice([1, 1, 2])
        return self.ckptr.should_save(step), self.saved(step, metrics=metrics, force=force)

    def saved(self, step: int, **options: Any) -> Any:
        return self.ckptr.save(step, {"w": np.full(2, step)}, **options)

    def there(self) -> int:
        return self.choose.choice([each.step for each in self.ckptr.checkpoints] or [99])

    def again(self) -> Any:
        return self.saved(self.there(), force=True) if self.ckptr.checkpoints else None

    def over(self) -> Any:
        latest = self.ckptr.latest
        return None if latest is None else self.saved(latest.step, force=True, overwrite=True)

    def delete(self) -> Any:
        return self.ckptr.delete(self.there(), missing_ok=self.choose.random() < 0.5)

    def load(self) -> Any:
        return self.ckptr.load()["w"].tolist(), self.ckptr.metadata().metrics

    def reload(self) -> None:
        self.ckptr.reload()

    def reopen(self) -> None:
        if hasattr(self, "ckptr"):
            self.ckptr.close()
        self.ckptr = self.api.training.Checkpointer(self.folder, **self.options)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_program_sees_the_same_through_the_v1_door(tmp_path: Path, seed: int) -> None:
    assert ProgramV1(door_v1, tmp_path / "ours", seed).run() == ProgramV1(ocp.v1, tmp_path / "theirs", seed).run()
