# SPDX-License-Identifier: Apache-2.0
"""A user's search for the best model with Orbax v0: the best few by a metric stay, an evaluation follows.

Run with a folder as its argument.
"""

import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

LOSSES = [3.0, 2.5, 2.7, 1.9, 1.9, 2.2, 1.2, 1.4]


def options(mode="min", keep=2, **more):
    return ocp.CheckpointManagerOptions(
        max_to_keep=keep, best_fn=lambda metrics: metrics["eval"]["loss"], best_mode=mode, **more
    )


def fill(directory, **more):
    with ocp.CheckpointManager(directory, options=options(**more)) as manager:
        for step, loss in enumerate(LOSSES):
            metrics = {"eval": {"loss": loss}, "name": f"s{step}"}
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(3, step)}), metrics=metrics)
            manager.wait_until_finished()
            print(step, "kept", manager.all_steps(), "best", manager.best_step(), "latest", manager.latest_step())
        print("in progress", manager.is_saving_in_progress())


root = Path(sys.argv[1]) / "best"
fill(root / "min")
fill(root / "max", mode="max")
fill(root / "period", keep=1, keep_period=4)
fill(root / "none", keep=0)

with ocp.CheckpointManager(root / "min", options=options()) as manager:
    best = manager.best_step()
    print("after a restart", manager.all_steps(), best, manager.metrics(best))
    print("restored", manager.restore(best)["w"].tolist(), manager.metadata(best).metrics)
    manager.save(20, args=ocp.args.StandardSave({"w": np.zeros(3)}))
    manager.wait_until_finished()
    print("without metrics", manager.all_steps(), manager.metrics(20), manager.best_step())
    manager.delete(best)
    print("deleted", manager.all_steps(), manager.best_step())
    manager.reload()
    print("reloaded", manager.all_steps())

policy = ocp.checkpoint_managers.AnyPreservationPolicy(
    [ocp.checkpoint_managers.LatestN(1), ocp.checkpoint_managers.EveryNSteps(3)]
)
interval = ocp.checkpoint_managers.AnySavePolicy(
    [ocp.checkpoint_managers.FixedIntervalPolicy(2), ocp.checkpoint_managers.SpecificStepsPolicy({3, 9})]
)
with ocp.CheckpointManager(
    root / "policies",
    options=ocp.CheckpointManagerOptions(preservation_policy=policy, save_decision_policy=interval),
) as manager:
    for step in range(12):
        manager.save(step, args=ocp.args.StandardSave({"w": np.full(3, step)}))
    manager.wait_until_finished()
    print("policies", manager.all_steps())

for step in ocp.checkpoint_utils.checkpoints_iterator(root / "policies", timeout=0, seconds_to_sleep=0.01):
    print("evaluating", step)
with ocp.checkpoint_utils.wait_for_new_checkpoint(root / "policies", until_step=99, timeout=0) as step:
    print("nothing new", step)
