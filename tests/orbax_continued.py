# SPDX-License-Identifier: Apache-2.0
"""A training loop that goes on where it was: `python orbax_continued.py v0|v1 real|ours folder first last`.

Prints what it restored and which steps are there, for the program to be the same whoever saved before.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import jax
import numpy as np
import optax

OPTIMIZER = optax.adam(0.1)


def start() -> Any:
    params = {"w": jax.numpy.zeros(3), "b": jax.numpy.ones(())}
    return {"params": params, "opt": OPTIMIZER.init(params), "step": 0}


def train(state: Any) -> Any:
    gradients = jax.tree.map(jax.numpy.cos, state["params"])
    updates, opt = OPTIMIZER.update(gradients, state["opt"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt, "step": state["step"] + 1}


def total(state: Any) -> str:
    return f"{float(sum(np.asarray(leaf, np.float64).sum() for leaf in jax.tree.leaves(state))):.6f}"


def v0(ocp: Any, folder: str, first: int, last: int) -> None:
    options = ocp.CheckpointManagerOptions(max_to_keep=3, best_fn=lambda metrics: metrics["total"])
    with ocp.CheckpointManager(folder, options=options, metadata={"run": 7}) as manager:
        state = start()
        if manager.latest_step() is not None:
            print("there", list(manager.all_steps()), manager.metrics(manager.latest_step()))
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
            print("restored", total(state), type(state["opt"][1]).__name__)
        for step in range(first, last):
            state = train(state)
            manager.save(step, args=ocp.args.StandardSave(state), metrics={"total": float(total(state))})
        manager.wait_until_finished()
        print("left", list(manager.all_steps()), manager.latest_step(), manager.metadata().custom_metadata)
        for step in manager.all_steps():
            restored = manager.restore(step, args=ocp.args.StandardRestore(start()))
            print(step, total(restored), manager.metrics(step))
    for step in ocp.checkpoint_utils.checkpoints_iterator(folder, timeout=0):
        print("seen", step)


def v1(ocp: Any, folder: str, first: int, last: int) -> None:
    latest = ocp.training.preservation_policies.LatestN(3)
    with ocp.training.Checkpointer(folder, preservation_policy=latest, custom_metadata={"run": 7}) as checkpointer:
        state = start()
        if checkpointer.latest is not None:
            print("there", [each.step for each in checkpointer.checkpoints], checkpointer.latest.metrics)
            state = checkpointer.load(None, state)
            print("restored", total(state), type(state["opt"][1]).__name__)
        for step in range(first, last):
            state = train(state)
            checkpointer.save(step, state, metrics={"total": float(total(state))})
        print("left", [each.step for each in checkpointer.checkpoints], checkpointer.root_metadata().custom_metadata)
        for each in checkpointer.checkpoints:
            print(each.step, total(checkpointer.load(each.step, start())), each.metrics)
        print(total(ocp.load(checkpointer.latest.path, start())))


if __name__ == "__main__":
    kind, side, path, begin, end = sys.argv[1:]
    doors = {
        ("v0", "real"): "orbax.checkpoint",
        ("v0", "ours"): "milepost.compat.orbax",
        ("v1", "real"): "orbax.checkpoint.experimental.v1",
        ("v1", "ours"): "milepost.compat.orbax_v1",
    }
    (v0 if kind == "v0" else v1)(importlib.import_module(doors[kind, side]), path, int(begin), int(end))
