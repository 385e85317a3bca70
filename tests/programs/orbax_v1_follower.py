# SPDX-License-Identifier: Apache-2.0
"""A user's evaluation job with Orbax v1 that follows a training job in the same folder.

Run with a folder as its argument. Both jobs are played by one process, in turns.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

root = Path(sys.argv[1]) / "followed"
abstract = {"w": jax.ShapeDtypeStruct((4,), jnp.float32), "note": "", "table": np.zeros((2, 2))}


def state_at(step):
    return {"w": jnp.full(4, float(step)), "note": f"after {step}", "table": np.arange(4.0).reshape(2, 2) * step}


class Follower:
    def __init__(self):
        self.reader = ocp.training.Checkpointer(root)
        self.seen = -1

    def turn(self):
        self.reader.reload()
        latest = self.reader.latest
        if latest is None or latest.step <= self.seen:
            print("  nothing new")
            return
        state = self.reader.load(latest, abstract)
        self.seen = latest.step
        score = float(state["w"].sum() + state["table"].sum())
        print("  evaluated", latest.step, state["note"], "score", score, "metrics", latest.metrics)


follower = Follower()
follower.turn()
trainer = ocp.training.Checkpointer(
    root,
    save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(2),
    preservation_policy=ocp.training.preservation_policies.LatestN(2),
)
for step in range(7):
    if trainer.save(step, state_at(step), metrics={"loss": 1.0 / (step + 1)}):
        print("saved", step)
        follower.turn()
follower.turn()
trainer.close()

print("one step by its path")
path = root / "6"
print("  is a checkpoint", ocp.is_orbax_checkpoint(path), ocp.is_orbax_checkpoint(root / "5"))
print("  note", ocp.load(path)["note"])
described = ocp.metadata(path).metadata
print("  w", described["w"].shape, described["w"].dtype, "note", described["note"])

print("a copy of it")
copy = Path(sys.argv[1]) / "exported"
response = ocp.save_async(copy, ocp.load(path, abstract), custom_metadata={"from": 6})
response.result()
print("  ", ocp.load(copy)["w"].tolist(), ocp.metadata(copy).custom_metadata)
try:
    ocp.save(copy, {"other": 1})
except ValueError as error:
    print("  refused:", str(error).splitlines()[0].replace(str(copy), "<copy>"))
ocp.save(copy, {"other": 1}, overwrite=True)
print("  ", ocp.load(copy))
print("  deleted", ocp.delete(copy), ocp.delete(copy, missing_ok=True), copy.exists())
